"""Sinusoids to be regressed from a few points (Finn et al., 2017, arXiv 1703.03400, section 5.1)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from metarl.fewshot.tasks.base import RegressionTasks
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, Split, TaskBatch

_DEFAULT = EpisodeConfig(ways=1, shots=10, queries=10)


class Sinusoid(RegressionTasks):
    """``y = a sin(x - p)`` with ``a`` in [0.1, 5], ``p`` in [0, pi] and ``x`` in [-5, 5], all uniform.

    Its splits draw from the same continuum of tasks, as in the paper.
    """

    id = "sinusoid"
    default_episode = _DEFAULT

    def spec(self, episode: EpisodeConfig) -> FewShotSpec:
        """One number in, one out."""
        return FewShotSpec((1,), 1, "regression", num_support=episode.shots)

    def sample(self, split: Split, num_tasks: int, episode: EpisodeConfig, rng: np.random.Generator) -> TaskBatch:
        """See :meth:`FewShotTasks.sample`."""
        amplitude, phase, x = _draw(num_tasks, episode, rng)
        return _split(x, amplitude * np.sin(x - phase), episode.shots)


class SinusoidAndLine(RegressionTasks):
    """Half of the tasks are sinusoids as in :class:`Sinusoid`, half lines ``y = s x + c`` with noise of 0.3.

    ``s`` and ``c`` are uniform in [-3, 3]; the noise is added to sinusoids as well, also to their queries (Finn, Xu,
    Levine, 2018, "Probabilistic model-agnostic meta-learning", arXiv 1806.02817, section 6: "illustrative 5-shot
    regression"; the ranges of its code).
    """

    id = "sinusoid-and-line"
    default_episode = EpisodeConfig(ways=1, shots=5, queries=10)

    def spec(self, episode: EpisodeConfig) -> FewShotSpec:
        """One number in, one out."""
        return FewShotSpec((1,), 1, "regression", num_support=episode.shots)

    def sample(self, split: Split, num_tasks: int, episode: EpisodeConfig, rng: np.random.Generator) -> TaskBatch:
        """See :meth:`FewShotTasks.sample`."""
        amplitude, phase, x = _draw(num_tasks, episode, rng)
        slope, intercept = rng.uniform(-3.0, 3.0, (2, num_tasks, 1, 1))
        is_line = rng.random((num_tasks, 1, 1)) < 0.5
        y = np.where(is_line, slope * x + intercept, amplitude * np.sin(x - phase))
        return _split(x, y + rng.normal(0.0, 0.3, y.shape), episode.shots)


def _draw(
    num_tasks: int, episode: EpisodeConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Amplitudes and phases ``[task, 1, 1]``, and inputs ``[task, example, 1]``, the support's first."""
    amplitude = rng.uniform(0.1, 5.0, (num_tasks, 1, 1))
    phase = rng.uniform(0.0, math.pi, (num_tasks, 1, 1))
    return amplitude, phase, rng.uniform(-5.0, 5.0, (num_tasks, episode.shots + episode.queries, 1))


def _split(x: NDArray[np.float64], y: NDArray[np.float64], shots: int) -> TaskBatch:
    inputs, targets = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    return TaskBatch(Examples(inputs[:, :shots], targets[:, :shots]), Examples(inputs[:, shots:], targets[:, shots:]))
