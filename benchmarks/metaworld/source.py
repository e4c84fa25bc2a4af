"""Cells of tables that are scored by Meta-World's official protocol."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from metarl.benchmarks.cells import BENCHMARK_SEED, Cell, variant_of
from metarl.benchmarks.engines import Report
from metarl.benchmarks.metaworld.references import reference_scores
from metarl.benchmarks.metaworld.runs import Split, train_and_score
from metarl.benchmarks.reproduce.costs import training_speed
from metarl.benchmarks.reproduce.table import Source
from metarl.envs.metaworld.distributions import meta_world
from metarl.envs.metaworld.task_sets import by_name
from metarl.evaluation.metaworld_protocol import EVALUATION_EPISODES
from metarl.evaluation.metaworld_scores import OfficialScores
from metarl.experiments import resolve
from metarl.runs.files import safe_name
from metarl.runs.folder import surroundings
from metarl.statistics import Float
from metarl.tasks.registry import load_distribution

BEST = "best in training"
"""Measure of a cell: the highest success of a meta-batch in training, as older papers report maxima."""

_GOALS = 50
"""Of each task in a split."""


@dataclass(frozen=True)
class _Official(Source):
    """What is scored by the protocol.

    A cell's measure is a split, ``SPLIT sampled`` for actions that are sampled where the protocol takes the mode, or
    ``SPLIT TASK`` for one task alone.
    """

    tasks: str
    splits: tuple[Split, ...]

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """Success in per cent, ``[goal]``; every task has as many of them."""
        split, _, part = measure.partition(" ")
        if split not in content["official"]:
            return self.further(content, measure)
        scores = OfficialScores.from_json(content["official"][split])
        if part == "sampled":
            return np.array([100.0 * success for task in scores.sampled.values() for success in task.success])
        chosen = [scores.by_task[part]] if part else scores.by_task.values()
        return np.array([100.0 * success for task in chosen for success in task.success])

    def num_groups(self, content: Mapping[str, Any], measure: str) -> int:
        """The tasks, of which none is left out; goals are a sample."""
        split, _, part = measure.partition(" ")
        alone = split not in content["official"] or part not in ("", "sampled")
        return 1 if alone else len(OfficialScores.from_json(content["official"][split]).by_task)

    @abstractmethod
    def further(self, content: Mapping[str, Any], measure: str) -> Float:
        """Another measure than the protocol's."""


@dataclass(frozen=True)
class OfficialSource(_Official):
    """Train an agent on a task set of Meta-World, and score it by the protocol, by the mode and by samples.

    Attributes:
        tasks: id of the task set.
        splits: that are scored.
        agent: name of the agent.
        preset: to begin with, if not that of agent and tasks.
        train: fields of TrainConfig that differ from the preset's.
        settings: fields of the agent's config that do.
    """

    agent: str
    preset: str | None = None
    train: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    trained: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        """The agent and what it is trained with."""
        return f"{self.agent} {self.preset} {sorted(self.settings.items())}"

    def speed(self, seconds: float) -> float:
        """That of training."""
        return training_speed(self._cell(0, 1.0).setup(), seconds)

    def steps(self, fraction: float) -> int:
        """Environment steps of training."""
        setup = self._cell(0, fraction).setup()
        return setup.train_config.num_iterations * setup.steps_per_iteration

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any] | None:
        """Train with a fraction of the meta-updates, and score on a fraction of the goals."""
        return train_and_score(self._cell(seed, fraction), runs, self.splits, _goals(fraction), report)

    def further(self, content: Mapping[str, Any], measure: str) -> Float:
        """The best of training: one number, the largest of many, that has no interval over tasks."""
        assert measure == BEST
        return np.array([100.0 * max(content["curve"]["success"])])

    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """How long it was trained, and how many of its evaluation episodes were invalid, if any were."""
        scores = [OfficialScores.from_json(official) for official in content["official"].values()]
        invalid = sum(entry.num_invalid for entry in scores)
        told = f"; {invalid} invalid episodes, which failed" if invalid else ""
        return f"{content['env_steps'] / 1e6:.3g} M steps a seed{told}"

    def _cell(self, seed: int, fraction: float) -> Cell:
        variant = variant_of({**self.train, **self.settings}, self.preset)
        return Cell(self.agent, self.tasks, seed, self.train, self.settings, variant, self.preset).part(fraction)


@dataclass(frozen=True)
class ReferenceSource(_Official):
    """A policy that does not adapt, on the same goals: the scripted expert, which alone sees them, or random actions.

    Attributes:
        tasks: id of the task set.
        splits: that are scored.
        name: one of :data:`metarl.benchmarks.metaworld.references.REFERENCES`.
    """

    name: str

    trained: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """Its name."""
        return self.name

    def speed(self, seconds: float) -> float:
        """That of the environments alone, with random actions."""
        return training_speed(resolve("random", self.tasks, settings={"rollouts_per_task": 1}), seconds)

    def steps(self, fraction: float) -> int:
        """Environment steps of the evaluation episodes."""
        distribution = load_distribution(self.tasks)
        goals = meta_world(distribution).task_set.goals
        num_tasks = sum(len(by_name(getattr(goals, split))) for split in self.splits)
        return num_tasks * (_goals(fraction) or _GOALS) * EVALUATION_EPISODES * distribution.spec.horizon

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any]:
        """Play every goal's evaluation episodes."""
        distribution = dataclasses.replace(meta_world(load_distribution(self.tasks)), pool_workers=1)
        official = {}
        for number, split in enumerate(self.splits):
            report("splits", number, len(self.splits))
            goals = _goals(fraction)
            store = runs / safe_name(f"reference-{self.tasks}-{self.name}-{split}-{goals or 'all'}goals.json")
            scores = reference_scores(self.name, distribution, split, store, goals=goals, seed=BENCHMARK_SEED)
            official[split] = scores.to_json()
        return {"official": official, "manifest": surroundings(torch.device("cpu"))}

    def further(self, content: Mapping[str, Any], measure: str) -> Float:
        """There is none: it is not trained."""
        raise KeyError(measure)

    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """Nothing."""
        return ""


def _goals(fraction: float) -> int | None:
    """Goals of each task that are scored; all of them is None, and alone the official protocol."""
    return None if fraction == 1.0 else max(2, round(_GOALS * fraction))
