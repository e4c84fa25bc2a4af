"""Cells of tables whose scores a strategy for finite MDPs plays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from metarl.benchmarks.cells import BENCHMARK_SEED
from metarl.benchmarks.engines import Report
from metarl.benchmarks.mdps.play import play
from metarl.benchmarks.mdps.strategies import candidates
from metarl.benchmarks.reproduce.costs import extrapolated
from metarl.benchmarks.reproduce.table import Source, part
from metarl.errors import unknown_name
from metarl.runs.folder import surroundings
from metarl.seeding import derive, numpy_stream
from metarl.statistics import Float
from metarl.tasks.registry import load_distribution

_MEASURED = 256
"""Tasks, at most, that the speed is measured on."""

_FEW = 2
"""Episodes that are played on each of them."""


@dataclass(frozen=True)
class MDPSource(Source):
    """Choose a strategy's settings on training tasks, then play on test tasks, for trials of several lengths at once.

    A trial's first episodes are those of a shorter one: all lengths come of the same episodes, but for the settings,
    which are chosen for each. Test tasks begin with those that agents are scored on.

    Attributes:
        strategy: its name among the :func:`~metarl.benchmarks.mdps.strategies.candidates`.
        tasks: id of the MDPs.
        lengths: of trials, in episodes.
        num_tasks: test tasks.
        num_tuning: training tasks that the settings are chosen on.
    """

    strategy: str
    tasks: str
    lengths: tuple[int, ...]
    num_tasks: int = 10_000
    num_tuning: int = 500

    trained: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.strategy not in candidates():
            raise unknown_name("strategy", self.strategy, candidates())

    def steps(self, fraction: float) -> int:
        """Steps, those of tuning included, if all lengths choose the same settings."""
        num_candidates = len(candidates()[self.strategy])
        tuning = num_candidates * part(self.num_tuning, fraction) if num_candidates > 1 else 0
        horizon = load_distribution(self.tasks).spec.horizon
        return (tuning + part(self.num_tasks, fraction)) * max(self.lengths) * horizon

    @property
    def kind(self) -> str:
        """The strategy."""
        return self.strategy

    def speed(self, seconds: float) -> float:
        """That of the candidate in the middle, over a few episodes."""
        distribution, strategies = load_distribution(self.tasks), candidates()[self.strategy]
        tasks = distribution.train.sample(_MEASURED, numpy_stream(0, "speed"))

        def play_few(number: int) -> None:
            play(strategies[len(strategies) // 2], distribution, tasks[:number], _FEW, 0)

        steps = _MEASURED * _FEW * distribution.spec.horizon
        return steps / extrapolated(play_few, _MEASURED, seconds, 64)

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any]:
        """Choose settings and play the test tasks; short, and not resumed."""
        distribution, strategies, longest = (
            load_distribution(self.tasks),
            candidates()[self.strategy],
            max(self.lengths),
        )
        num_tasks, num_tuning = part(self.num_tasks, fraction), part(self.num_tuning, fraction)
        means = {length: [0.0] for length in self.lengths}
        if len(strategies) > 1:
            tasks = distribution.train.sample(num_tuning, numpy_stream(BENCHMARK_SEED, "tuning"))
            means = {length: [] for length in self.lengths}
            for number, strategy in enumerate(strategies):
                report("settings", number, len(strategies))
                rewards = play(strategy, distribution, tasks, longest, derive(seed, "tuning"))
                for length in self.lengths:
                    means[length].append(float(rewards[:, :length].sum(1).mean()))
        chosen = {length: int(np.argmax(means[length])) for length in self.lengths}
        # As metarl.evaluation.evaluator draws them.
        tasks = distribution.test.sample(num_tasks, numpy_stream(BENCHMARK_SEED, "evaluation", "test"))
        trials: dict[str, Any] = {}
        for number in sorted(set(chosen.values())):
            asked = [length for length in self.lengths if chosen[length] == number]
            strategy = strategies[number]
            rewards = play(
                strategy,
                distribution,
                tasks,
                max(asked),
                derive(seed, "test"),
                lambda done: report("tasks", done, num_tasks),
            )
            for length in asked:
                totals = np.round(rewards[:, :length].sum(1), 1)
                trials[str(length)] = {"strategy": repr(strategy), "totals": totals.tolist()}
        tuned = {str(length): dict(zip(map(repr, strategies), means[length], strict=True)) for length in self.lengths}
        return {
            "trials": trials,
            "candidates": tuned if len(strategies) > 1 else {},
            "manifest": surroundings(torch.device("cpu")),
        }

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """Total rewards ``[task]`` of a trial whose number of episodes is the measure."""
        return np.asarray(content["trials"][measure]["totals"], np.float64)

    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """The strategy with its settings, where there were several to choose from."""
        return f"`{content['trials'][measure]['strategy']}`" if content["candidates"] else ""
