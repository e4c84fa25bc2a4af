"""Cells of tables whose scores a strategy for bandits plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from metarl.benchmarks.bandits.play import choose, play
from metarl.benchmarks.bandits.strategies import Strategy, candidates
from metarl.benchmarks.cells import BENCHMARK_SEED
from metarl.benchmarks.engines import Report
from metarl.benchmarks.reproduce.costs import extrapolated
from metarl.benchmarks.reproduce.table import Source, part
from metarl.runs.folder import surroundings
from metarl.seeding import derive, numpy_stream
from metarl.statistics import Float
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution
from metarl.types import Task

_MEASURED = 1000
"""Tasks, at most, that the speed is measured on."""


@dataclass(frozen=True)
class StrategySource(Source):
    """Choose a strategy's settings on training tasks, then play on test tasks.

    Those of the test begin with the tasks that agents are scored on.

    Attributes:
        strategy: its name among the :func:`~metarl.benchmarks.bandits.strategies.candidates`.
        tasks: id of the bandits.
        num_tasks: test tasks.
        num_tuning: training tasks that the settings are chosen on.
    """

    strategy: str
    tasks: str
    num_tasks: int = 10_000
    num_tuning: int = 1000

    trained: ClassVar[bool] = False

    def steps(self, fraction: float) -> int:
        """Pulls, those of tuning included."""
        horizon = load_distribution(self.tasks).spec.horizon
        num_candidates = len(candidates(horizon)[self.strategy])
        tuning = num_candidates * part(self.num_tuning, fraction) if num_candidates > 1 else 0
        return (tuning + part(self.num_tasks, fraction)) * horizon

    @property
    def kind(self) -> str:
        """The strategy."""
        return self.strategy

    def speed(self, seconds: float) -> float:
        """That of the candidate in the middle."""
        distribution = load_distribution(self.tasks)
        strategies = candidates(distribution.spec.horizon)[self.strategy]
        strategy = strategies[len(strategies) // 2]
        tasks = distribution.train.sample(_MEASURED, numpy_stream(0, "speed"))
        taken = extrapolated(lambda number: _play(strategy, distribution, tasks[:number]), _MEASURED, seconds, 64)
        return _MEASURED * distribution.spec.horizon / taken

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any]:
        """Choose settings and play the test tasks; short, and not resumed."""
        distribution = load_distribution(self.tasks)
        num_tasks, num_tuning = part(self.num_tasks, fraction), part(self.num_tuning, fraction)
        strategies = candidates(distribution.spec.horizon)[self.strategy]
        chosen = choose(
            strategies,
            distribution,
            distribution.train.sample(num_tuning, numpy_stream(BENCHMARK_SEED, "tuning")),
            derive(seed, "tuning"),
            lambda done: report("settings", done, len(strategies)),
        )
        # As metarl.evaluation.evaluator draws them.
        tasks = distribution.test.sample(num_tasks, numpy_stream(BENCHMARK_SEED, "evaluation", "test"))
        totals = play(
            chosen.strategy, distribution, tasks, derive(seed, "test"), lambda done: report("tasks", done, num_tasks)
        )
        return {
            "strategy": repr(chosen.strategy),
            "candidates": dict(zip(map(repr, strategies), chosen.means, strict=False)),
            "totals": totals.astype(int).tolist(),
            "manifest": surroundings(torch.device("cpu")),
        }

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """Total rewards ``[task]``."""
        return np.asarray(content["totals"], np.float64)

    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """The strategy with its settings, where there were several to choose from."""
        return f"`{content['strategy']}`" if content["candidates"] else ""


def _play(strategy: Strategy, distribution: TaskDistribution, tasks: Sequence[Task]) -> None:
    play(strategy, distribution, tasks, seed=0)
