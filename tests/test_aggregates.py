"""Interquartile mean, probability of improvement and the stratified bootstrap are what their paper says: plain loops.

The first two are those of rliable 1.2 to the last digit, which cannot be imported whole beside pandas 3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from metarl.errors import ConfigError
from metarl.statistics import bootstrap_interval, improvement_probability, interquartile_mean

Array = NDArray[Any]


def _scores(num_runs: int, num_tasks: int, seed: int = 0, decimals: int = 8) -> Array:
    rng = np.random.default_rng(seed)
    return np.round(rng.gamma(2.0, 1.0, (num_runs, num_tasks)) + rng.normal(0, 2, num_tasks), decimals)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 7), (10, 26), (2, 2)])
def test_the_interquartile_mean_leaves_a_quarter_out_on_either_side(shape: tuple[int, int]) -> None:
    scores = _scores(*shape)
    ordered = sorted(scores.flatten().tolist())
    out = len(ordered) // 4
    kept = ordered[out : len(ordered) - out]
    assert interquartile_mean(scores) == pytest.approx(sum(kept) / len(kept))


@pytest.mark.parametrize("decimals", [8, 0])
def test_the_probability_of_improvement_counts_pairs(decimals: int) -> None:
    """With ``decimals`` = 0 many pairs tie."""
    ours, theirs = _scores(5, 7, 1, decimals), _scores(8, 7, 2, decimals)
    by_task = [sum((x > y) + 0.5 * (x == y) for x in ours[:, task] for y in theirs[:, task]) / 40 for task in range(7)]
    assert improvement_probability(ours, theirs) == pytest.approx(sum(by_task) / 7)
    by_scipy = [stats.mannwhitneyu(ours[:, task], theirs[:, task]).statistic / 40 for task in range(7)]
    assert improvement_probability(ours, theirs) == pytest.approx(np.mean(by_scipy))
    assert improvement_probability(ours, theirs) + improvement_probability(theirs, ours) == pytest.approx(1.0)
    assert improvement_probability(ours, ours) == 0.5
    assert improvement_probability(ours + 100, theirs) == 1.0


def _resampled(rng: np.random.Generator, scores: Array) -> Array:
    drawn = np.empty_like(scores)
    for task in range(scores.shape[1]):
        for run in range(scores.shape[0]):
            drawn[run, task] = scores[rng.integers(len(scores)), task]
    return drawn


def test_the_bootstrap_interval_is_of_runs_drawn_task_by_task() -> None:
    ours, theirs = _scores(10, 6, 3), _scores(7, 6, 4)
    rng = np.random.default_rng(0)
    for aggregate, scores in ((interquartile_mean, (ours,)), (improvement_probability, (ours, theirs))):
        values = [aggregate(*(_resampled(rng, array) for array in scores)) for _ in range(1000)]
        low, high = np.percentile(values, [2.5, 97.5])
        found = bootstrap_interval(aggregate, *scores)
        assert found[0] == pytest.approx(aggregate(*scores))
        # Percentiles of 1,000 and of 2,000 resamples; their error is some 3 % of the width.
        assert found[1:] == pytest.approx((low, high), abs=0.12 * (high - low))


def test_the_bootstrap_interval_of_a_mean_is_that_of_its_variance() -> None:
    """Of 40 runs on each of 5 tasks, normal: 1.96 standard errors to either side."""
    scores = np.random.default_rng(0).normal(size=(40, 5)) + np.arange(5.0)
    error = math.sqrt(scores.var(axis=0).mean() / 200)
    mean, low, high = bootstrap_interval(lambda drawn: float(drawn.mean()), scores, num_resamples=4000)
    assert (mean - low, high - mean) == pytest.approx((1.96 * error, 1.96 * error), rel=0.08)


def test_tasks_are_strata() -> None:
    """Runs that agree on every task leave nothing to be drawn, however far tasks lie apart."""
    scores = np.tile([0.0, 10.0, 1000.0], (4, 1))
    assert bootstrap_interval(lambda drawn: float(drawn.mean()), scores) == pytest.approx((1010 / 3,) * 3)


def test_the_seed_decides_what_is_drawn() -> None:
    scores = _scores(5, 4)
    assert bootstrap_interval(interquartile_mean, scores) == bootstrap_interval(interquartile_mean, scores)
    assert bootstrap_interval(interquartile_mean, scores) != bootstrap_interval(interquartile_mean, scores, seed=1)


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected at least one score, got the shape \(0, 3\)"):
        interquartile_mean(np.zeros((0, 3)))
    with pytest.raises(ConfigError, match=r"on the same tasks, got the shapes \(\(2, 3\), \(2, 4\)\)"):
        improvement_probability(np.zeros((2, 3)), np.zeros((2, 4)))
    for scores in ([np.zeros(3)], [], [np.zeros((2, 3)), np.zeros((0, 3))]):
        with pytest.raises(ConfigError, match=r"expected scores \[run, task\], got the shapes \["):
            bootstrap_interval(improvement_probability, *scores)


@pytest.mark.parametrize("swapped", [False, True])
def test_no_one_wins_or_loses_by_a_score_that_is_not_there(swapped: bool) -> None:
    both = [np.array([[np.nan], [2.0]]), np.array([[1.0], [0.0]])]
    with pytest.raises(ConfigError, match="expected numbers, got 1 NaN"):
        improvement_probability(*(reversed(both) if swapped else both))
