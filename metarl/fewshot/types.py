"""What few-shot learning is about: examples, tasks of a support and a query set, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metarl.config.settings import Count, check_settings

Split = Literal["train", "validation", "test"]

Kind = Literal["classification", "regression"]


@dataclass(frozen=True)
class EpisodeConfig:
    """How large a task is; few-shot learning calls one an episode (Vinyals et al., 2016)."""

    ways: Count = 5
    """Classes in a task; 1 in regression."""
    shots: Count = 1
    """Labelled examples of each class."""
    queries: Count = 15
    """Examples of each class to be predicted."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class FewShotSpec:
    """Shapes of inputs and targets, and what the targets are.

    Attributes:
        input_shape: shape of one input, e.g. ``(1, 28, 28)``.
        num_outputs: classes in a task, or numbers in a target of regression.
        kind: what is predicted; decides loss and score.
        num_support: examples in a support set, for networks that are built for a length (SNAIL); None if unknown.
        num_classes: classes of the training split, for learners that tell all of them apart; None if unknown, or if
            classes have no identity beyond a task.
    """

    input_shape: tuple[int, ...]
    num_outputs: int
    kind: Kind
    num_support: int | None = None
    num_classes: int | None = None


@dataclass(frozen=True)
class Examples:
    """Inputs and targets of many tasks.

    Attributes:
        x: ``[task, example, *input_shape]``, float32.
        y: class indices ``[task, example]``, int64, each of ``0 .. ways - 1`` anew in every task; in regression
            ``[task, example, output]``, float32.
    """

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Examples:
        """The same on ``device``."""
        return Examples(self.x.to(device), self.y.to(device))

    def __getitem__(self, tasks: slice) -> Examples:
        """Those of some of the tasks."""
        return Examples(self.x[tasks], self.y[tasks])


@dataclass(frozen=True)
class TaskBatch:
    """Many tasks: what they are learned from, and what tells how well.

    Attributes:
        support: examples to adapt to; in classification ``shots`` of each class.
        query: examples to predict; none of them is in ``support``.
        classes: ``[task, way]``, int64: which class of its split, of ``0 .. FewShotSpec.num_classes - 1`` in training,
            each of a task's classes is; None if classes have no identity beyond a task.
    """

    support: Examples
    query: Examples
    classes: Tensor | None = None

    @property
    def num_tasks(self) -> int:
        """Tasks in the batch."""
        return len(self.support.y)

    def to(self, device: torch.device) -> TaskBatch:
        """The same on ``device``."""
        classes = None if self.classes is None else self.classes.to(device)
        return TaskBatch(self.support.to(device), self.query.to(device), classes)

    def __getitem__(self, tasks: slice) -> TaskBatch:
        """Some of the tasks."""
        classes = None if self.classes is None else self.classes[tasks]
        return TaskBatch(self.support[tasks], self.query[tasks], classes)
