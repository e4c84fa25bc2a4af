"""Scores of a few-shot learner on tasks that it has not seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.distributed import current
from metarl.errors import ConfigError, NonFiniteError
from metarl.fewshot.learner import Learner
from metarl.fewshot.objective import task_scores
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.types import EpisodeConfig, Kind, Split, TaskBatch
from metarl.seeding import derive, numpy_stream
from metarl.statistics import Interval, mean_interval

_SCORED = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)

EVALUATION_BATCH = 25
"""Tasks at a time; each batch is drawn from a stream of its own."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one learner on many tasks.

    Attributes:
        scores: accuracies, or mean squared errors, ``[task, scored step]``.
        steps: after how many adaptations each column was scored, see :func:`scored_steps`.
        kind: whether they are accuracies or errors.
    """

    scores: NDArray[np.float64]
    steps: tuple[int, ...]
    kind: Kind

    @property
    def intervals(self) -> list[Interval]:
        """Mean over tasks after each of the steps, and its 95 % interval."""
        return [mean_interval(column) for column in self.scores.T]


def scored_steps(num_adaptations: int) -> tuple[int, ...]:
    """After how many of so many adaptations scores are taken: before the first, after the last, a few between.

    Predicting all queries after every one of 50 steps would cost more than the steps.
    """
    return tuple(sorted({step for step in _SCORED if step <= num_adaptations} | {num_adaptations}))


def score_batch(learner: Learner[Any], batch: TaskBatch, num_adaptations: int) -> Tensor:
    """Adapt to the support sets and score the predictions of the query sets.

    Args:
        learner: is not changed.
        batch: on the learner's device.
        num_adaptations: calls of ``adapt``.

    Returns:
        ``[task, scored step]``, see :func:`scored_steps`.

    Raises:
        NonFiniteError: in regression, if adaptation has diverged. In classification it is warned of, and what is not a
            number counts as wrong.
    """
    state = learner.begin(batch.num_tasks)
    wanted = scored_steps(num_adaptations)
    scores = []
    for step in range(num_adaptations + 1):
        if step in wanted:
            outputs = learner.predict(state, batch.query.x)
            scores.append(task_scores(outputs, batch.query.y, learner.spec.kind))
            _require_numbers(outputs, scores[-1], step, learner.spec.kind)
        if step < num_adaptations:
            state = learner.adapt(state, batch.support)
    return torch.stack(scores, 1)


def _require_numbers(outputs: Tensor, scores: Tensor, step: int, kind: Kind) -> None:
    if kind == "regression":
        if diverged := int((~scores.isfinite()).sum()):
            raise NonFiniteError(
                f"adaptation has diverged: after step {step} the errors of {diverged} of {len(scores)} tasks are not "
                "finite. Take fewer steps, or a smaller inner step."
            )
    elif outputs.isnan().any():
        warnings.warn(
            "adaptation has diverged in some tasks: their predictions are no numbers, and count as wrong. Take fewer "
            "steps, or a smaller inner step.",
            RuntimeWarning,
            stacklevel=3,
        )


def evaluate(
    learner: Learner[Any],
    tasks: FewShotTasks,
    episode: EpisodeConfig,
    *,
    num_tasks: int,
    seed: int,
    split: Split = "test",
    num_adaptations: int | None = None,
    listener: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Score ``learner`` on tasks that are a function of ``seed`` alone.

    The ranks of a group (:mod:`metarl.distributed`) share the batches of tasks out; each gets the scores of all.

    Args:
        learner: is not changed; neither are its random streams of any account to the result.
        tasks: the family.
        episode: size of the tasks.
        num_tasks: how many.
        seed: seed for tasks and for what adaptation draws.
        split: whose tasks.
        num_adaptations: calls of ``adapt``; default: what the learner asks for.
        listener: told the number of tasks that are done, by this rank's share of them.

    Raises:
        ConfigError: for sizes that the split has no tasks of, or other shapes than the learner was built for.
    """
    tasks.check(split, episode)
    if (spec := tasks.spec(episode)) != learner.spec:
        raise ConfigError(f"the learner was built for {learner.spec}, but the tasks are {spec}.")
    if num_tasks < 2:
        raise ConfigError(f"an interval over tasks needs two of them at least, got num_tasks = {num_tasks}.")
    adaptations = learner.num_eval_adaptations if num_adaptations is None else num_adaptations
    scores: list[NDArray[np.float64]] = []
    group, firsts = current(), list(enumerate(range(0, num_tasks, EVALUATION_BATCH)))
    for number, first in firsts[group.share(len(firsts))]:
        size = min(EVALUATION_BATCH, num_tasks - first)
        batch = tasks.sample(split, size, episode, numpy_stream(seed, "tasks", number)).to(learner.device)
        learner.seed(derive(seed, "learner", number))
        scores.append(score_batch(learner, batch, adaptations).double().cpu().numpy())
        listener(first + size)
    scores = [part for parts in group.gather(scores) for part in parts]
    return Evaluation(np.concatenate(scores), scored_steps(adaptations), learner.spec.kind)
