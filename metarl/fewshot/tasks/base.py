"""The interface of every family of few-shot tasks."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import get_args

import numpy as np

from metarl.errors import ConfigError
from metarl.fewshot.types import EpisodeConfig, FewShotSpec, Split, TaskBatch


class FewShotTasks(abc.ABC):
    """A distribution of few-shot tasks, split into tasks to train on, to choose settings by, and to test on.

    Attributes:
        id: the family's name.
        default_episode: the usual size of its tasks.
        splits: those that it has tasks of; without a validation split, training is not monitored.
    """

    id: str
    default_episode: EpisodeConfig = EpisodeConfig()
    splits: tuple[Split, ...] = get_args(Split)

    @property
    def digests(self) -> Mapping[str, str]:
        """What tells that the data is the same when a run goes on; empty where nothing is known.

        Of ``classes``, without which a checkpoint is refused; of ``examples`` or of the ``draws`` of a function,
        without which there is a warning.
        """
        return {}

    @abc.abstractmethod
    def spec(self, episode: EpisodeConfig) -> FewShotSpec:
        """Shapes of the tasks of this size."""

    @abc.abstractmethod
    def check(self, split: Split, episode: EpisodeConfig) -> None:
        """Refuse a size of which the split has no tasks.

        Raises:
            ConfigError: saying what came, what there is, and what to do.
        """

    @abc.abstractmethod
    def sample(self, split: Split, num_tasks: int, episode: EpisodeConfig, rng: np.random.Generator) -> TaskBatch:
        """Draw tasks of the split; a function of ``rng``'s state alone, and on the CPU.

        Args:
            split: whose tasks; no class of one split is in another.
            num_tasks: how many.
            episode: their size.
            rng: source of everything that is random.
        """


class RegressionTasks(FewShotTasks):
    """What families of regression share: a task has no classes."""

    def check(self, split: Split, episode: EpisodeConfig) -> None:
        """Refuse ways other than 1."""
        if episode.ways != 1:
            raise ConfigError(
                f"{self.id} is regression: its tasks have no classes, so ways must be 1, got {episode.ways}."
            )
