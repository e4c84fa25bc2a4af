"""Few-shot tasks whose right answers are known: Gaussian clusters in a few dimensions, noise in the others."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from metarl.errors import ConfigError
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, Split, TaskBatch
from metarl.seeding import numpy_stream

_NUM_CLASSES: dict[Split, int] = {"train": 40, "validation": 12, "test": 20}


class Clusters(FewShotTasks):
    """Classes are points, drawn once, in the first dimensions; an example adds noise to its class's point.

    The other dimensions are noise alone, and so much of it that distances in all of them say little. Whoever ignores
    them is right nearly always.

    Args:
        num_signal: dimensions in which classes differ.
        num_noise: dimensions in which they do not.
        noise: standard deviation there; 1 is the one of class points.
        shape: of one input, e.g. of an image; default: a vector.
    """

    id = "clusters"
    default_episode = EpisodeConfig(ways=4, shots=2, queries=3)

    def __init__(
        self, num_signal: int = 6, num_noise: int = 6, noise: float = 3.0, shape: tuple[int, ...] | None = None
    ) -> None:
        self.shape = shape or (num_signal + num_noise,)
        self.num_signal = num_signal
        self.num_noise = num_noise
        self.noise = noise
        self.points: dict[Split, NDArray[np.float64]] = {
            split: numpy_stream(7, split).normal(size=(number, num_signal)) for split, number in _NUM_CLASSES.items()
        }

    def spec(self, episode: EpisodeConfig) -> FewShotSpec:
        return FewShotSpec(
            self.shape,
            episode.ways,
            "classification",
            num_support=episode.ways * episode.shots,
            num_classes=_NUM_CLASSES["train"],
        )

    def check(self, split: Split, episode: EpisodeConfig) -> None:
        if episode.ways > _NUM_CLASSES[split]:
            raise ConfigError(f"{split} has {_NUM_CLASSES[split]} classes, got ways {episode.ways}.")

    def sample(self, split: Split, num_tasks: int, episode: EpisodeConfig, rng: np.random.Generator) -> TaskBatch:
        points = self.points[split]
        classes = rng.random((num_tasks, len(points))).argsort(1)[:, : episode.ways]
        per_class = episode.shots + episode.queries
        x = rng.normal(size=(num_tasks, episode.ways, per_class, self.num_signal + self.num_noise))
        x[..., : self.num_signal] = points[classes][:, :, None] + 0.1 * x[..., : self.num_signal]
        x[..., self.num_signal :] *= self.noise
        y = np.broadcast_to(np.arange(episode.ways)[None, :, None], x.shape[:3])

        def examples(chosen: slice) -> Examples:
            inputs = torch.from_numpy(x[:, :, chosen]).float().flatten(1, 2)
            return Examples(inputs.unflatten(2, self.shape), torch.tensor(y[:, :, chosen]).flatten(1))

        support, query = examples(slice(episode.shots)), examples(slice(episode.shots, per_class))
        return TaskBatch(support, query, torch.from_numpy(classes))
