"""Cells of tables about generalization: agents trained on one distribution of physics and tested on others.

Packer et al., "Assessing Generalization in Deep Reinforcement Learning" (2018, arXiv 1810.12282, sections 4 and 5).
Of each environment there are the default task (D), random parameters (R) and extreme ones (E). DR is an agent that was
trained on D and is tested on R. "Default" is DD; "interpolation" RR; "extrapolation" the geometric mean of DR, DE and
RE. Every episode is a success or none; agents that adapt are scored on the last episode of a trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarl.benchmarks.cells import BENCHMARK_SEED, Cell, describe, train
from metarl.benchmarks.engines import Report
from metarl.benchmarks.reproduce.costs import training_speed
from metarl.benchmarks.reproduce.table import Source, part
from metarl.errors import unknown_name
from metarl.evaluation.evaluator import evaluate
from metarl.experiments import Experiment
from metarl.experiments.presets import steps_per_iteration
from metarl.statistics import Float
from metarl.tasks.registry import load_distribution
from metarl.types import Rollout

MEASURES = ("default", "interpolation", "extrapolation")

_SPLITS = {"D": "DRE", "R": "RE"}
"""What is trained on, and what each of these agents is tested on."""


def lasted(rollout: Rollout, steps: int) -> Tensor:
    """Episodes of at least so many steps, bool ``[task, episode]``; the one that ends them counts."""
    return rollout.lengths >= steps


def arrived(rollout: Rollout, steps: int) -> Tensor:
    """Episodes that the environment ended within so many steps, bool ``[task, episode]``."""
    return rollout.terminated.any(-1) & (rollout.lengths <= steps)


def held(rollout: Rollout, steps: int, least_cosine: float) -> Tensor:
    """Episodes that end with so many states of a pendulum near upright, bool ``[task, episode]``.

    Args:
        rollout: of a pendulum, whose first observation is the cosine of its angle, 1 upright; no episode ends early.
        steps: states at the end, the one after the last action included.
        least_cosine: of the angle in each of them.
    """
    cosines = torch.cat([rollout.obs[..., 0], rollout.last_obs[..., :1]], dim=-1)
    return (cosines[..., -steps:] >= least_cosine).all(-1)


@dataclass(frozen=True)
class Environment:
    """One of the paper's environments.

    Attributes:
        tasks: ids of its distributions by split, D, R and E.
        succeeded: which episodes of a rollout were a success.
    """

    tasks: Mapping[str, str]
    succeeded: Callable[[Rollout], Tensor]


def _splits(default: str, family: str | None = None) -> dict[str, str]:
    family = family or default
    return {"D": default, "R": f"{family}-random", "E": f"{family}-extreme"}


ENVIRONMENTS: Mapping[str, Environment] = {
    "CartPole": Environment(_splits("cartpole"), partial(lasted, steps=195)),
    "MountainCar": Environment(_splits("mountain-car"), partial(arrived, steps=110)),
    "Acrobot": Environment(_splits("acrobot", "acrobot-off-centre"), partial(arrived, steps=80)),
    "Pendulum": Environment(_splits("pendulum"), partial(held, steps=100, least_cosine=0.5)),
}
"""By the paper's names. 0.5 is the cosine of pi/3."""


@dataclass(frozen=True)
class GeneralizationSource(Source):
    """Train an agent on D and another on R, and score the two on D, R and E.

    Attributes:
        agent: name of the agent.
        environment: one of :data:`ENVIRONMENTS`.
        meta_batch_size: tasks in one meta-update.
        settings: fields of the agent's config that differ from those of its preset.
        num_episodes: training episodes, adaptation included, of each of the two; as many meta-updates as fit in.
        num_tasks: held-out tasks that each is tested on.
    """

    agent: str
    environment: str
    meta_batch_size: int
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    num_episodes: int = 15_000
    num_tasks: int = 1000

    trained: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.environment not in ENVIRONMENTS:
            raise unknown_name("environment", self.environment, ENVIRONMENTS)

    def steps(self, fraction: float) -> int:
        """Environment steps of both trainings, if no episode ends early."""
        setups = [self._cell(split, 0, fraction).setup() for split in _SPLITS]
        return sum(setup.train_config.num_iterations * setup.steps_per_iteration for setup in setups)

    @property
    def kind(self) -> str:
        """The agent."""
        return self.agent

    def speed(self, seconds: float) -> float:
        """That of training on R; tests cost less."""
        return training_speed(self._cell("R", 0, 1.0).setup(), seconds)

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any] | None:
        """Train both agents on a fraction of the episodes, and test them on one of the tasks."""
        trained: dict[str, dict[str, Any]] = {}
        success: dict[str, list[float]] = {}
        for split, tests in _SPLITS.items():
            cell = self._cell(split, seed, fraction)
            experiment = train(cell, runs, partial(_told, report, split))
            if experiment is None:
                return None
            trained[split] = describe(cell, experiment)
            for number, test in enumerate(tests):
                report(f"tests of {split}", number, len(tests))
                success[split + test] = self._test(experiment, test, part(self.num_tasks, fraction))
        manifest = trained["D"]["manifest"]
        for content in trained.values():
            del content["manifest"]
        return {"trained": trained, "success": success, "manifest": manifest}

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """Percentages of successful episodes, ``[task]``.

        A geometric mean ``g`` of three rates ``p_k`` is no mean over tasks. Task ``t`` with successes ``x_kt`` gets
        ``g * mean_k(x_kt / p_k)`` for it, whose mean is ``g``, and whose deviation over tasks gives the standard error
        of ``g`` by the delta method.
        """
        success = {pair: 100.0 * np.asarray(values, np.float64) for pair, values in content["success"].items()}
        if measure == "default":
            return success["DD"]
        if measure == "interpolation":
            return success["RR"]
        if measure != "extrapolation":
            raise unknown_name("measure", measure, MEASURES)
        parts = np.stack([success["DR"], success["DE"], success["RE"]])
        rates = parts.mean(1)
        if not rates.all():
            return np.zeros(parts.shape[1])
        mean = np.prod(rates) ** (1.0 / len(rates))
        return np.asarray(mean * (parts / rates[:, None]).mean(0), np.float64)

    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """What came of single pairs of splits, and how long it was trained."""
        rates = ", ".join(f"{pair} {100.0 * np.mean(values):.1f}" for pair, values in content["success"].items())
        steps = sum(trained["env_steps"] for trained in content["trained"].values())
        return f"{rates}; {steps / 1e6:.3g} M steps"

    def _cell(self, split: str, seed: int, fraction: float) -> Cell:
        tasks = ENVIRONMENTS[self.environment].tasks[split]
        train = {"meta_batch_size": self.meta_batch_size, "num_iterations": 1}
        setup = Cell(self.agent, tasks, seed, train, self.settings).setup()
        episodes = steps_per_iteration(setup.agent_config, self.meta_batch_size, horizon=1)
        num_iterations = max(1, int(fraction * self.num_episodes) // episodes)
        # One evaluation, at the end: nothing is chosen by it.
        train |= {"num_iterations": num_iterations, "eval_every": num_iterations}
        return Cell(self.agent, tasks, seed, train, self.settings, f"generalization-of{num_iterations}")

    def _test(self, experiment: Experiment, split: str, num_tasks: int) -> list[float]:
        """Shares of successful episodes after the last adaptation, by task."""
        environment = ENVIRONMENTS[self.environment]
        agent, _ = experiment.load()
        num_adaptations = experiment.agent_config.num_adaptations
        found = evaluate(
            agent,
            experiment.seen(load_distribution(environment.tasks[split])),
            num_tasks=num_tasks,
            seed=BENCHMARK_SEED,
            num_adaptations=num_adaptations,
            rollouts_per_task=None if num_adaptations else 1,  # Several are for adapting to.
            succeeded=environment.succeeded,
        )
        assert found.success is not None
        shares: list[float] = np.round(found.success[:, -1], 4).tolist()
        return shares


def _told(report: Report, split: str, what: str, done: int, total: int) -> None:
    report(f"{what} on {split}", done, total)
