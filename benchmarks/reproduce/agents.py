"""Cells of tables that train an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metarl.benchmarks.cells import Cell, train_and_score, variant_of
from metarl.benchmarks.engines import Report
from metarl.benchmarks.reproduce.costs import training_speed
from metarl.benchmarks.reproduce.table import Source
from metarl.statistics import Float


@dataclass(frozen=True)
class AgentSource(Source):
    """Train an agent, and take its returns on held-out tasks.

    A cell's measure is the number of adaptations after which they are taken; default: all.

    Attributes:
        agent: name of the agent.
        tasks: id of the distribution.
        preset: to begin with, if not that of agent and tasks.
        train: fields of TrainConfig that differ from the preset's.
        settings: fields of the agent's config that do.
        num_tasks: held-out tasks to score on.
        rollouts_per_task: episodes of each task and shot in the score; default: as in training.
        whole_trial: score the sum of the returns of all episodes of a trial, and not the last one's.
    """

    agent: str
    tasks: str
    preset: str | None = None
    train: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    num_tasks: int = 1000
    rollouts_per_task: int | None = None
    whole_trial: bool = False

    trained: ClassVar[bool] = True

    def steps(self, fraction: float) -> int:
        """Environment steps of training."""
        setup = self._cell(0, fraction).setup()
        return setup.train_config.num_iterations * setup.steps_per_iteration

    @property
    def kind(self) -> str:
        """The agent."""
        return self.agent

    def speed(self, seconds: float) -> float:
        """That of training."""
        return training_speed(self._cell(0, 1.0).setup(), seconds)

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any] | None:
        """Train with a fraction of the meta-updates, and score."""
        return train_and_score(self._cell(seed, fraction), runs, self.num_tasks, self.rollouts_per_task, report)

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """Returns ``[task]``: of the whole trial, or after as many adaptations as ``measure`` says; default: all."""
        returns = np.asarray(content["returns"], np.float64)
        return returns.sum(1) if self.whole_trial else returns[:, int(measure or -1)]

    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """How long it was trained."""
        return f"{content['env_steps'] / 1e6:.3g} M steps a seed"

    def _cell(self, seed: int, fraction: float) -> Cell:
        # Tables call presets by what they train on, but settings differ between rows of the same tasks.
        variant = variant_of({**self.train, **self.settings})
        return Cell(self.agent, self.tasks, seed, self.train, self.settings, variant, self.preset).part(fraction)
