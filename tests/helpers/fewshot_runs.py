"""Training and scoring of few-shot learners, for tests."""

from __future__ import annotations

from typing import Any

import torch

from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.objective import task_scores
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.types import EpisodeConfig, Examples, TaskBatch
from metarl.seeding import derive, numpy_stream

CPU = torch.device("cpu")


def built(config: LearnerConfig, tasks: FewShotTasks, episode: EpisodeConfig, seed: int = 0) -> Learner[Any]:
    """A learner for tasks of this size."""
    return config.build(tasks.spec(episode), CPU, seed)


def train(
    learner: Learner[Any], tasks: FewShotTasks, episode: EpisodeConfig, num_iterations: int, meta_batch_size: int = 16
) -> dict[str, float]:
    """Meta-update many times; the last metrics."""
    metrics: dict[str, float] = {}
    size = learner.training_episode(episode)
    for iteration in range(num_iterations):
        batch = tasks.sample("train", meta_batch_size, size, numpy_stream(0, "train", iteration))
        learner.seed(derive(0, "learner", iteration))
        metrics = learner.meta_update(batch)
    return metrics


def adapted(learner: Learner[Any], support: Examples) -> Any:
    """The state after as many calls of ``adapt`` as an evaluation makes."""
    state = learner.begin(len(support.y))
    for _ in range(learner.num_eval_adaptations):
        state = learner.adapt(state, support)
    return state


def scores(
    learner: Learner[Any], tasks: FewShotTasks, episode: EpisodeConfig, num_tasks: int = 200
) -> tuple[float, float]:
    """Mean scores on test tasks, before and after adaptation."""
    batch = tasks.sample("test", num_tasks, episode, numpy_stream(0, "test"))
    before = learner.predict(learner.begin(num_tasks), batch.query.x)
    after = learner.predict(adapted(learner, batch.support), batch.query.x)
    kind = learner.spec.kind
    return tuple(float(task_scores(outputs, batch.query.y, kind).mean()) for outputs in (before, after))  # type: ignore[return-value]


def double(batch: TaskBatch) -> TaskBatch:
    """The same with inputs (and targets of regression) in float64."""

    def cast(examples: Examples) -> Examples:
        y = examples.y.double() if examples.y.is_floating_point() else examples.y
        return Examples(examples.x.double(), y)

    return TaskBatch(cast(batch.support), cast(batch.query), batch.classes)
