"""Few-shot tasks that a function draws."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, Kind, Split, TaskBatch
from metarl.seeding import numpy_stream

TaskSampler: TypeAlias = Callable[
    [np.random.Generator, EpisodeConfig, Split], tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]
]
"""Draws a task: inputs and targets of its support set, then inputs and targets of its query set."""


def sampled_tasks(
    sample: TaskSampler,
    input_shape: tuple[int, ...],
    kind: Kind = "classification",
    *,
    num_outputs: int | None = None,
    id: str = "sampled",
    default_episode: EpisodeConfig | None = None,
) -> SampledTasks:
    """Tasks that a function draws, one at a time.

    Args:
        sample: of ``(rng, episode, split)``; gives support inputs, support targets, query inputs, query targets.
            Inputs of uint8 become 0 to 1. Classification: targets are class indices from 0 to ``ways - 1``.
            Regression: ``[example, output]``.
        input_shape: shape of one input.
        kind: classification or regression.
        num_outputs: numbers in a target of regression, 1 unless given.
        id: the family's name.
        default_episode: the usual size of its tasks.

    Raises:
        ConfigError: for an unknown kind, or a number of outputs for classification, which has one for each class.
    """
    if kind not in get_args(Kind):
        raise unknown_name("kind of tasks", kind, get_args(Kind))
    if kind == "classification" and num_outputs is not None:
        raise ConfigError(f"classification has an output for each of its ways; leave out num_outputs={num_outputs}.")
    default = EpisodeConfig() if kind == "classification" else EpisodeConfig(1, 10, 10)
    return SampledTasks(sample, input_shape, kind, num_outputs or 1, id, default_episode or default)


class SampledTasks(FewShotTasks):
    """See :func:`sampled_tasks`."""

    def __init__(
        self,
        sample: TaskSampler,
        input_shape: tuple[int, ...],
        kind: Kind,
        num_outputs: int,
        id: str,
        default_episode: EpisodeConfig,
    ) -> None:
        self.id = id
        self.default_episode = default_episode
        self._sample = sample
        self._input_shape = tuple(input_shape)
        self._kind: Kind = kind
        self._num_outputs = num_outputs

    @functools.cached_property
    def digests(self) -> Mapping[str, str]:
        """Of the first task that the function draws for each split at the usual size; empty if it draws none."""
        found = hashlib.sha256()
        try:
            for split in self.splits:
                batch = self.sample(split, 1, self.default_episode, numpy_stream(0, "digest", split))
                for part in (batch.support.x, batch.support.y, batch.query.x, batch.query.y):
                    found.update(repr((split, part.shape, part.dtype)).encode())
                    found.update(part.numpy().data)
        except Exception:  # Of the user's function, which may know the sizes that it is trained on alone.
            return {}
        return {"draws": found.hexdigest()}

    def spec(self, episode: EpisodeConfig) -> FewShotSpec:
        """As the family was described."""
        num_outputs = episode.ways if self._kind == "classification" else self._num_outputs
        num_support = episode.ways * episode.shots
        return FewShotSpec(self._input_shape, num_outputs, self._kind, num_support=num_support)

    def check(self, split: Split, episode: EpisodeConfig) -> None:
        """Refuse ways that the kind of task cannot have; what else cannot be, the function itself must know."""
        if (self._kind == "regression") != (episode.ways == 1):
            expected = "1, since regression has no classes" if self._kind == "regression" else "2 or more"
            raise ConfigError(f"{self.id} needs ways of {expected}, got {episode.ways}.")

    def sample(self, split: Split, num_tasks: int, episode: EpisodeConfig, rng: np.random.Generator) -> TaskBatch:
        """See :meth:`FewShotTasks.sample`.

        Raises:
            ConfigError: for arrays of other shapes than described, unknown classes, or numbers that are not finite.
        """
        self.check(split, episode)
        drawn: list[Any] = [self._sample(rng, episode, split) for _ in range(num_tasks)]
        for task in drawn:
            if not isinstance(task, tuple) or len(task) != 4:
                got = f"{len(task)} values" if isinstance(task, tuple) else type(task).__name__
                raise ConfigError(
                    f"{self.id}: the function must return four arrays, inputs and targets of the support set and of "
                    f"the query set, got {got}."
                )
        support = self._examples("support", [(task[0], task[1]) for task in drawn], episode.shots, episode)
        query = self._examples("query", [(task[2], task[3]) for task in drawn], episode.queries, episode)
        return TaskBatch(support, query)

    def _examples(
        self, name: str, tasks: list[tuple[ArrayLike, ArrayLike]], of_class: int, episode: EpisodeConfig
    ) -> Examples:
        is_classes, count = self._kind == "classification", episode.ways * of_class
        shapes = ((count, *self._input_shape), (count,) if is_classes else (count, self._num_outputs))
        inputs, targets = [], []
        for drawn in tasks:
            try:
                x, y = _inputs(drawn[0]), np.asarray(drawn[1])
            except (ValueError, TypeError) as error:
                raise ConfigError(
                    f"{self.id}: inputs and targets of the {name} set must be arrays of numbers, all examples of one "
                    f"shape, of the shapes {shapes[0]} and {shapes[1]} for {episode}; NumPy says: {error}"
                ) from error
            if (x.shape, y.shape) != shapes:
                raise ConfigError(
                    f"{self.id}: the {name} set must have inputs and targets of the shapes {shapes[0]} and "
                    f"{shapes[1]} for {episode}, got {x.shape} and {y.shape}."
                )
            if is_classes and (y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= episode.ways):
                raise ConfigError(
                    f"{self.id}: targets of the {name} set must be whole numbers from 0 to {episode.ways - 1}, got "
                    f"{y.dtype} from {y.min()} to {y.max()}."
                )
            if is_classes and (np.bincount(y, minlength=episode.ways) != of_class).any():
                raise ConfigError(
                    f"{self.id}: the {name} set must hold {of_class} examples of each class for {episode}, got "
                    f"{np.bincount(y, minlength=episode.ways).tolist()}."
                )
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                raise ConfigError(f"{self.id}: the {name} set holds NaN or an infinity; expected finite numbers.")
            # In classification support examples come in the order of classes.
            order = np.argsort(y, kind="stable") if is_classes else slice(None)
            inputs.append(x[order])
            targets.append(y[order])
        y_type = np.int64 if is_classes else np.float32
        return Examples(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets).astype(y_type)))


def _inputs(values: ArrayLike) -> NDArray[np.float32]:
    """As float32; bytes become 0 to 1, as in every other family."""
    array = np.asarray(values)
    return array.astype(np.float32) / np.float32(255 if array.dtype == np.uint8 else 1)
