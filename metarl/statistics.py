"""Aggregates of scores with their 95 % intervals, over tasks or goals and over seeds, and how both are written.

Training seeds are scored on the same held-out tasks. A score of seed ``s`` on task ``t`` is then
``mean + a_s + b_t + e_st``, with seeds and tasks as crossed random effects: both are sources of error, and the error
of a task is the same for all seeds. Resampling tasks for each seed apart, as a stratified bootstrap does, averages
that error over the seeds, where it does not average out: :func:`bootstrap_interval` is for tasks that are no sample,
but the whole of a benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from metarl.errors import ConfigError
from metarl.seeding import numpy_stream

Float = NDArray[np.float64]

Interval = tuple[float, float, float]
"""Mean, low end and high end."""

_CONFIDENCE = 0.95


def mean_interval(scores: Float) -> Interval:
    """Mean of independent ``scores`` ``[task]`` with Student's t interval.

    With few tasks a percentile bootstrap is too narrow: of 5 to 10 normal scores it holds the mean in 79 to 86 % of all
    cases, the t interval in 95 %.
    """
    return crossed_interval([scores[None]])


def crossed_interval(groups: Sequence[Float]) -> Interval:
    """Mean over seeds, items and groups with its interval, seeds and items being crossed random effects.

    The variance of the mean is ``V_seeds + V_items - V_residual``: from the mean squares of a two-way analysis of
    variance, which counts the residual in each of the first two. Degrees of freedom are Satterthwaite's (1946,
    "An approximate distribution of estimates of variance components"). With one seed the interval is over items alone:
    it cannot know what another seed would have come to.

    Args:
        groups: scores ``[seed, item]`` for each group, e.g. the goals of each task; groups count alike, and are no
            sample of anything. One group is the usual case, its items being tasks.

    Raises:
        ConfigError: for groups without scores or with other numbers of seeds.
    """
    shapes = [group.shape for group in groups]
    if not groups or any(len(shape) != 2 or 0 in shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ConfigError(f"expected scores [seed, item] for each group, with the same seeds, got the shapes {shapes}.")
    num_seeds, num_groups = shapes[0][0], len(groups)
    by_seed = np.mean([group.mean(1) for group in groups], axis=0)
    mean = float(by_seed.mean())
    parts = [_Variance.of_items(group, num_groups) for group in groups]
    items = _Variance.sum(parts)
    if num_seeds == 1:
        return _t_interval(mean, items)
    seeds = _Variance(float(by_seed.var(ddof=1)) / num_seeds, num_seeds - 1)
    residual = _Variance.sum([_Variance.of_residuals(group, num_groups) for group in groups])
    total = seeds.value + items.value - residual.value
    largest = max(seeds.value, items.value)
    if total <= largest:
        # By chance: the effects of seeds, or of items, are not below zero.
        return _t_interval(mean, _Variance.sum([seeds, items]).scaled_to(largest))
    return _t_interval(mean, _Variance.sum([seeds, items, residual]).scaled_to(total))


class _Variance:
    """An estimate of a variance, and the degrees of freedom behind it."""

    def __init__(self, value: float, freedom: float) -> None:
        self.value, self.freedom = value, freedom

    @classmethod
    def of_items(cls, group: Float, num_groups: int) -> _Variance:
        """What items add to the variance of the mean over groups."""
        num_items = group.shape[1]
        if num_items == 1:
            return cls(0.0, np.inf)
        return cls(float(group.mean(0).var(ddof=1)) / (num_items * num_groups**2), num_items - 1)

    @classmethod
    def of_residuals(cls, group: Float, num_groups: int) -> _Variance:
        """What neither seeds nor items explain."""
        freedom = (group.shape[0] - 1) * (group.shape[1] - 1)
        if freedom == 0:
            return cls(0.0, np.inf)
        residual = group - group.mean(0) - group.mean(1, keepdims=True) + group.mean()
        return cls(float(np.square(residual).sum()) / (freedom * group.size * num_groups**2), freedom)

    @classmethod
    def sum(cls, parts: Sequence[_Variance]) -> _Variance:
        """The sum of independent estimates; Satterthwaite's degrees of freedom."""
        value = sum(part.value for part in parts)
        spread = sum(part.value**2 / part.freedom for part in parts)
        return cls(value, value**2 / spread if spread > 0 else np.inf)

    def scaled_to(self, value: float) -> _Variance:
        """Another value with the same uncertainty, in absolute terms."""
        if self.value == 0:
            return _Variance(value, self.freedom)
        return _Variance(value, max(1.0, self.freedom * (value / self.value) ** 2))


def _t_interval(mean: float, variance: _Variance) -> Interval:
    if variance.value == 0:
        return mean, mean, mean
    half = float(stdtrit(variance.freedom, 0.5 + _CONFIDENCE / 2)) * variance.value**0.5
    return mean, mean - half, mean + half


def share_interval(scores: Float) -> Interval:
    """Mean of independent ``scores`` ``[task]`` in [0, 1], low and high end of Wilson's 95 % interval.

    Wilson, 1927, with the mean in place of the share of successes: scores between 0 and 1 vary less than those of a
    coin with their mean, so the interval is wide enough. Unlike a bootstrap it is no point where all scores agree.
    """
    mean, count, z = float(np.mean(scores)), len(scores), float(ndtri(0.5 + _CONFIDENCE / 2))
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (mean * (1 - mean) / count + z * z / (4 * count * count)) ** 0.5
    return mean, max(0.0, centre - half), min(1.0, centre + half)


def crossed_share_interval(groups: Sequence[Float]) -> Interval:
    """As :func:`crossed_interval`, for scores in [0, 1]: never narrower than Wilson's intervals over items.

    Also for one seed: a score that stands for a product of shares may vary more than a coin.

    Args:
        groups: scores ``[seed, item]`` in [0, 1] for each group.

    Raises:
        ConfigError: see :func:`crossed_interval`.
    """
    mean, low, high = crossed_interval(groups)
    _, lowest, highest = mean_of_intervals([share_interval(group.mean(0)) for group in groups])
    return mean, max(0.0, min(low, lowest)), min(1.0, max(high, highest))


def mean_of_intervals(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent estimates, each with its interval, and the interval of that mean.

    Their distances from the means add up like standard errors (MOVER; Zou & Donner, 2008). Seeds that are scored on the
    same items are not independent: see :func:`crossed_share_interval`.
    """
    means, low, high = (np.array(column) for column in zip(*intervals, strict=True))
    mean, count = float(means.mean()), len(means)
    return (
        mean,
        mean - float(np.sqrt(np.square(means - low).sum())) / count,
        mean + float(np.sqrt(np.square(high - means).sum())) / count,
    )


def _trimmed_mean(scores: Float, axis: int) -> Float:
    from scipy import stats  # Loading it takes a second, which no command that does without it should wait.

    found: Float = stats.trim_mean(scores, 0.25, axis=axis)
    return found


def interquartile_mean(scores: Float) -> float:
    """Mean of the middle half of all scores, over runs and tasks together.

    Agarwal et al., 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv 2108.13264),
    section 4.3: as robust as the median against a few runs that fail, with the error of a mean. Of ``n`` scores,
    ``floor(n / 4)`` are left out on either side.

    Args:
        scores: of any shape, usually ``[run, task]``.

    Raises:
        ConfigError: if there are none.
    """
    if scores.size == 0:
        raise ConfigError(f"expected at least one score, got the shape {scores.shape}.")
    return float(_trimmed_mean(scores.reshape(-1), axis=0))


def improvement_probability(scores: Float, others: Float) -> float:
    """Chance that a run of one method beats a run of another on the same task, mean over tasks; ties count half.

    ``mean_t P(X_t > Y_t) + P(X_t = Y_t) / 2``, Mann and Whitney's U over the number of pairs (Agarwal et al., 2021,
    section 4.3).

    Args:
        scores: of the one, ``[run, task]``.
        others: of the other, ``[run, task]``; runs may be more or fewer.

    Raises:
        ConfigError: for other shapes, or other tasks; for a score that is NaN, which is neither more nor less.
    """
    shapes = scores.shape, others.shape
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ConfigError(f"expected scores [run, task] of both methods on the same tasks, got the shapes {shapes}.")
    if missing := int(np.isnan(scores).sum() + np.isnan(others).sum()):
        raise ConfigError(
            f"expected numbers, got {missing} NaN, of which nobody can tell whether they are better. Leave out runs "
            "without a score, or give one that failed the score that it deserves."
        )
    differences = scores[:, None] - others[None]
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def bootstrap_interval(
    aggregate: Callable[..., float], *scores: Float, seed: int = 0, num_resamples: int = 2000
) -> Interval:
    """An aggregate with its 95 % interval by the stratified bootstrap: percentiles over resampled runs.

    Every task is a stratum, whose runs are drawn with replacement, apart from those of other tasks (Agarwal et al.,
    2021, section 4.2). It answers how much the aggregate would change with other runs on the same tasks, and is too
    narrow where tasks are a sample on which all runs are scored: see :func:`crossed_interval`.

    Args:
        aggregate: e.g. :func:`interquartile_mean`, or :func:`improvement_probability` of two arrays.
        scores: the arrays that it is of, each ``[run, task]`` and resampled by itself.
        seed: seed for the resampling.
        num_resamples: how often to resample.

    Raises:
        ConfigError: for scores of another shape.
    """
    if not scores or any(array.ndim != 2 or 0 in array.shape for array in scores):
        raise ConfigError(f"expected scores [run, task], got the shapes {[array.shape for array in scores]}.")
    rng = numpy_stream(seed, "bootstrap")
    values = np.empty(num_resamples)
    for resample in range(num_resamples):
        drawn = [np.take_along_axis(array, rng.integers(len(array), size=array.shape), axis=0) for array in scores]
        values[resample] = aggregate(*drawn)
    low, high = np.quantile(values, [0.5 - _CONFIDENCE / 2, 0.5 + _CONFIDENCE / 2])
    return aggregate(*scores), float(low), float(high)


FEWEST_FOR_IQM = 4
"""Of fewer scores nothing is left out on either side: their interquartile mean is their mean."""


def seed_intervals(scores: Float, *, seed: int = 0, num_resamples: int = 2000) -> tuple[Float, Float, Float]:
    """At each point of a curve the interquartile mean over seeds with its 95 % interval.

    The interval is that of the percentile bootstrap over whole runs, the same resampled ones at every point (Agarwal et
    al., 2021). Fewer than four seeds, whose interquartile mean is their mean, have Student's t interval: of so few a
    bootstrap knows next to nothing, and would say that it is sure.

    Args:
        scores: ``[seed, point]``; NaN where a run has none.
        seed: seed for the resampling.
        num_resamples: how often to resample.

    Returns:
        Aggregate, low end and high end, each ``[point]``; NaN without any score, and the ends also with one.
    """
    found = np.full((3, scores.shape[1]), np.nan)
    present = np.isfinite(scores)
    # Points at which the same runs are there share their resamples.
    patterns, index = np.unique(present, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        points = np.flatnonzero(index.ravel() == number)
        there = scores[pattern][:, points]
        count = len(there)
        if count == 0:
            continue
        if count == 1:
            found[0, points] = there[0]
        elif count < FEWEST_FOR_IQM:
            found[:, points] = np.array([mean_interval(column) for column in there.T]).T
        else:
            drawn = numpy_stream(seed, "bootstrap").integers(count, size=(num_resamples, count))
            found[0, points] = _trimmed_mean(there, axis=0)
            for point, column in zip(points, there.T, strict=True):
                resampled = _trimmed_mean(column[drawn], axis=1)
                found[1:, point] = np.quantile(resampled, [0.5 - _CONFIDENCE / 2, 0.5 + _CONFIDENCE / 2])
    aggregate, low, high = found
    return aggregate, low, high


def number_text(value: float) -> str:
    """A number with three significant digits and one decimal at least: ``156.2``, ``6.61``, ``0.00123``."""
    return interval_texts((value, value, value))[0]


def interval_texts(interval: Interval) -> tuple[str, str, str]:
    """Mean, low and high end, with as many decimals as give half the interval two significant digits.

    Numbers that would need more than six decimals, and those of ten million or more, are written as ``1.23e-09``.
    """
    mean, low, high = interval
    largest, half = max(map(abs, interval)), (high - low) / 2
    if largest == 0:
        return "0.0", "0.0", "0.0"
    magnitude = _magnitude(largest)
    decimals = 1 - _magnitude(half) if half > 0 else 2 - magnitude
    exponent = magnitude < -4 or magnitude >= 7
    digits = min(max(2, decimals + magnitude) if exponent else max(0 if half > 0 else 1, decimals), 6)

    def text(value: float) -> str:
        # Adding zero takes the sign from a negative number that is rounded to zero.
        return f"{value:.{digits}e}" if exponent else f"{round(value, digits) + 0.0:.{digits}f}"

    return text(mean), text(low), text(high)


def _magnitude(value: float) -> int:
    """The power of ten of a positive number."""
    return math.floor(math.log10(value))
