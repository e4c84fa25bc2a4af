"""Quadratic functions to be minimised, on which optimisers are learned (Andrychowicz et al., 2016)."""

from __future__ import annotations

import math

import numpy as np
import torch

from metarl.errors import ConfigError
from metarl.fewshot.tasks.base import RegressionTasks
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, Split, TaskBatch


class Quadratic(RegressionTasks):
    """``f(theta) = ||W theta - y||^2`` in 10 dimensions, all of ``W`` and ``y`` standard normal (section 3.1).

    As regression: the ``shots`` examples are the rows of ``sqrt(shots) W`` with the numbers of ``sqrt(shots) y``, so
    that the mean squared error of the network ``linear``, which has no bias, is ``f`` of its weights. The queries are
    the examples, since what is to be minimised is the loss itself. ``W`` has as many rows as there are shots, 10 in the
    paper. Splits draw from the same continuum of functions.
    """

    id = "quadratic"
    default_episode = EpisodeConfig(ways=1, shots=10, queries=10)
    num_dimensions = 10

    def spec(self, episode: EpisodeConfig) -> FewShotSpec:
        """A row of ``W`` in, a number of ``y`` out."""
        return FewShotSpec((self.num_dimensions,), 1, "regression")

    def check(self, split: Split, episode: EpisodeConfig) -> None:
        """Refuse ways other than 1, and queries that are not as many as the shots."""
        super().check(split, episode)
        if episode.queries != episode.shots:
            raise ConfigError(
                f"the queries of {self.id} are its shots, a row of W each: expected as many of both, got "
                f"{episode.shots} shots and {episode.queries} queries. Learners that train on such tasks: "
                "learned-optimiser, maml, pretrained, random, with --backbone linear."
            )

    def sample(self, split: Split, num_tasks: int, episode: EpisodeConfig, rng: np.random.Generator) -> TaskBatch:
        """See :meth:`FewShotTasks.sample`."""
        self.check(split, episode)
        drawn = rng.standard_normal((num_tasks, episode.shots, self.num_dimensions + 1)) * math.sqrt(episode.shots)
        rows = torch.from_numpy(drawn).float()
        examples = Examples(rows[..., :-1].contiguous(), rows[..., -1:].contiguous())
        return TaskBatch(examples, examples)
