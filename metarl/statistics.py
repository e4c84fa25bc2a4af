"""Intervals of scores: means with their 95 % confidence intervals over tasks, goals and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Float = NDArray[np.float64]

Interval = tuple[float, float, float]
"""Mean, low end and high end."""


def mean_interval(scores: Float, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent ``scores`` ``[task]``, low and high end of the percentile bootstrap interval."""
    mean = float(np.mean(scores))
    if len(scores) < 2 or np.ptp(scores) == 0:
        return mean, mean, mean
    result = stats.bootstrap(
        (scores,), np.mean, confidence_level=confidence, method="percentile", rng=np.random.default_rng(0)
    )
    return mean, float(result.confidence_interval.low), float(result.confidence_interval.high)


def share_interval(scores: Float) -> tuple[float, float, float]:
    """Mean of independent ``scores`` ``[task]`` in [0, 1], low and high end of Wilson's 95 % interval.

    Wilson, 1927, with the mean in place of the share of successes: scores between 0 and 1 vary less than those of a
    coin with their mean, so the interval is wide enough. Unlike a bootstrap it is no point where all scores agree.
    """
    mean, count, z = float(np.mean(scores)), len(scores), float(stats.norm.ppf(0.975))
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (mean * (1 - mean) / count + z * z / (4 * count * count)) ** 0.5
    return mean, max(0.0, centre - half), min(1.0, centre + half)


def mean_of_intervals(intervals: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The mean of independent estimates, each with its interval, and the interval of that mean.

    Their distances from the means add up like standard errors (MOVER; Zou & Donner, 2008).
    """
    means, low, high = (np.array(column) for column in zip(*intervals, strict=True))
    mean, count = float(means.mean()), len(means)
    return (
        mean,
        mean - float(np.sqrt(np.square(means - low).sum())) / count,
        mean + float(np.sqrt(np.square(high - means).sum())) / count,
    )


def stratified_interval(scores: NDArray[np.float64], num_resamples: int = 5000) -> tuple[float, float, float]:
    """Mean over seeds and tasks with a 95 % interval, resampling tasks within each seed.

    The stratified bootstrap of Agarwal et al., 2021 (arXiv 2108.13264, section 4.1), with training seeds as strata.

    Args:
        scores: ``[seed, task]``.
        num_resamples: bootstrap samples.

    Returns:
        Mean, low end, high end.
    """
    rng = np.random.default_rng(0)
    num_seeds, num_tasks = scores.shape
    chosen = rng.integers(num_tasks, size=(num_resamples, num_seeds, num_tasks))
    means = np.take_along_axis(scores[None], chosen, axis=2).mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(scores.mean()), float(low), float(high)
