"""Intervals hold the truth about as often as they say, whatever varies: tasks, seeds, or both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import binomtest

from metarl.errors import ConfigError
from metarl.statistics import (
    crossed_interval,
    crossed_share_interval,
    interval_texts,
    mean_interval,
    mean_of_intervals,
    number_text,
    share_interval,
)

Array = NDArray[Any]


@pytest.mark.parametrize("num_tasks", [5, 10, 20, 100])
def test_interval_of_the_mean_is_students(num_tasks: int) -> None:
    scores = np.random.default_rng(num_tasks).normal(2.0, 1.0, num_tasks)
    expected = stats.ttest_1samp(scores, 0.0).confidence_interval(0.95)
    assert mean_interval(scores) == pytest.approx((scores.mean(), expected.low, expected.high))


@pytest.mark.parametrize("scores", [[3.0], [2.0, 2.0, 2.0]])
def test_interval_of_scores_that_do_not_vary_is_a_point(scores: list[float]) -> None:
    assert mean_interval(np.array(scores)) == (scores[0],) * 3


def _scores(
    rng: np.random.Generator, num_seeds: int, num_tasks: int, num_groups: int, spreads: tuple[float, float, float]
) -> list[Array]:
    """Normal scores ``[seed, task]`` around 100, with these spreads of seeds, tasks and what is left."""
    of_seeds = rng.normal(0.0, spreads[0], (num_seeds, 1))
    return [
        100.0
        + of_seeds
        + rng.normal(0.0, spreads[1], (1, num_tasks))
        + rng.normal(0.0, spreads[2], (num_seeds, num_tasks))
        for _ in range(num_groups)
    ]


@pytest.mark.parametrize("spreads", [(0.0, 10.0, 3.0), (3.0, 10.0, 3.0), (10.0, 10.0, 3.0), (0.0, 0.0, 3.0)])
@pytest.mark.parametrize("sizes", [(3, 5, 1), (3, 60, 1), (5, 20, 3)])
def test_the_crossed_interval_holds_the_mean_as_often_as_it_says(
    sizes: tuple[int, int, int], spreads: tuple[float, float, float]
) -> None:
    """Measured over 600 samples of each, also of 10 seeds and of 100 tasks: 91.7 to 99.5 %."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(300):
        mean, low, high = crossed_interval(_scores(rng, *sizes, spreads))
        assert low <= mean <= high
        covered += low <= 100.0 <= high
    assert covered >= 0.9 * 300
    if spreads[1]:
        assert covered <= 0.99 * 300


def _apart(scores: Array, num_resamples: int = 500) -> tuple[float, float]:
    """The interval of a bootstrap that resamples tasks for each seed apart."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(scores.shape[1], size=(num_resamples, *scores.shape))
    means = np.take_along_axis(scores[None], chosen, axis=2).mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def test_the_test_of_coverage_finds_an_interval_that_forgets_that_seeds_share_their_tasks() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(300):
        low, high = _apart(_scores(rng, 3, 60, 1, (0.0, 10.0, 3.0))[0])
        covered += low <= 100.0 <= high
    assert covered < 0.85 * 300


def test_the_variance_is_that_of_the_two_way_analysis_of_variance() -> None:
    scores = np.array([[1.0, 4.0, 9.0], [2.0, 3.0, 12.0]])
    rows, columns = scores.mean(1), scores.mean(0)
    squares = (
        3 * np.square(rows - scores.mean()).sum() / 1,
        2 * np.square(columns - scores.mean()).sum() / 2,
        np.square(scores - rows[:, None] - columns + scores.mean()).sum() / 2,
    )
    # Seeds differ by less than what is left would make them differ: then the larger of the two counts alone.
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1]) / 6
    freedom = total**2 / ((squares[0] / 6) ** 2 / 1 + (squares[1] / 6) ** 2 / 2)
    half = stats.t.ppf(0.975, max(1.0, freedom)) * total**0.5
    assert crossed_interval([scores]) == pytest.approx((scores.mean(), scores.mean() - half, scores.mean() + half))


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    tasks = rng.normal(0.0, 1.0, (1, 100))
    alike = np.array([[72.0], [73.0], [74.0]]) + tasks
    apart = np.array([[85.6], [44.8], [89.9]]) + tasks
    narrow, wide = crossed_interval([alike]), crossed_interval([apart])
    assert narrow[2] - narrow[1] < 6.0
    assert wide[1] < 44.8 and wide[2] > 89.9


@pytest.mark.parametrize("groups", [[], [np.zeros(3)], [np.zeros((2, 0))], [np.zeros((2, 3)), np.zeros((3, 3))]])
def test_scores_of_another_shape_are_refused(groups: list[Array]) -> None:
    with pytest.raises(ConfigError, match=r"expected scores \[seed, item\] for each group, with the same seeds, got"):
        crossed_interval(groups)


def test_the_interval_of_shares_covers_them_where_all_agree() -> None:
    mean, low, high = crossed_share_interval([np.ones((3, 50))])
    assert (mean, high) == (1.0, 1.0)
    assert low == pytest.approx(share_interval(np.ones(50))[1])
    assert crossed_share_interval([np.zeros((2, 1)), np.ones((2, 1))])[0] == 0.5


def test_the_interval_of_shares_covers_their_mean() -> None:
    """Goals with three episodes, scored with three seeds. Measured over 500 samples of each chance: 92.6 to 100 %."""
    rng, covered = np.random.default_rng(0), 0
    logistic = lambda x: 1.0 / (1.0 + np.exp(-x))  # noqa: E731
    truth = logistic(1.0 + rng.normal(0, 0.7, (2000, 1)) + rng.normal(0, 1, (1, 2000))).mean()
    for _ in range(300):
        of_seeds = rng.normal(0, 0.7, (3, 1))
        groups = [rng.binomial(3, logistic(1.0 + of_seeds + rng.normal(0, 1, (1, 50)))) / 3 for _ in range(5)]
        _, low, high = crossed_share_interval(groups)
        covered += low <= truth <= high
    assert covered >= 0.9 * 300


def test_the_interval_of_one_seed_covers_what_varies_more_than_a_coin() -> None:
    """Tasks' parts in a geometric mean of three shares, one of them small; Wilson's alone held it 76 times in 100."""
    rng, chances, covered = np.random.default_rng(0), np.array([0.99, 0.9, 0.01]), 0
    for _ in range(300):
        solved = rng.random((3, 1000)) < chances[:, None]
        shares = solved.mean(1)
        parts = shares.prod() ** (1 / 3) * (solved / np.maximum(shares, 1e-9)[:, None]).mean(0)
        _, low, high = crossed_share_interval([parts[None]])
        covered += low <= chances.prod() ** (1 / 3) <= high
    assert covered >= 0.9 * 300


@pytest.mark.parametrize(("num_solved", "num"), [(0, 50), (25, 50), (50, 50), (1, 5), (1, 1)])
def test_share_interval_is_wilsons(num_solved: int, num: int) -> None:
    expected = binomtest(num_solved, num).proportion_ci(method="wilson")
    found = share_interval(np.where(np.arange(num) < num_solved, 1.0, 0.0))
    assert found == pytest.approx((num_solved / num, expected.low, expected.high))


def test_share_interval_covers_the_mean_of_scores_between_0_and_1() -> None:
    """Goals with three episodes each: the interval must hold the truth at least as often as it says."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        chance = rng.beta(0.4, 0.6, 50)
        _, low, high = share_interval(rng.binomial(3, chance) / 3)
        inside += low <= 0.4 <= high
    assert inside >= 0.93 * 300


def test_the_mean_of_intervals_is_narrower_by_the_root_of_their_number() -> None:
    one = (0.5, 0.3, 0.6)
    assert mean_of_intervals([one]) == pytest.approx(one)
    assert mean_of_intervals([one] * 4) == pytest.approx((0.5, 0.4, 0.55))
    assert mean_of_intervals([(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("interval", "texts"),
    [
        ((156.4, 145.0, 167.8), ("156", "145", "168")),
        ((-11.8, -13.1, -10.5), ("-11.8", "-13.1", "-10.5")),
        ((6.612, 6.561, 6.663), ("6.612", "6.561", "6.663")),
        ((0.00123, 0.00101, 0.00145), ("0.00123", "0.00101", "0.00145")),
        ((-0.01, -3.0, 3.0), ("0.0", "-3.0", "3.0")),
        ((0.0, 0.0, 0.0), ("0.0", "0.0", "0.0")),
        ((5.0, 5.0, 5.0), ("5.00", "5.00", "5.00")),
        ((1e-9, 0.0, 2e-9), ("1.00e-09", "0.00e+00", "2.00e-09")),
        ((3.2e9, 3.1e9, 3.3e9), ("3.20e+09", "3.10e+09", "3.30e+09")),
    ],
)
def test_an_interval_is_written_with_two_significant_digits_of_its_half(
    interval: tuple[float, float, float], texts: tuple[str, str, str]
) -> None:
    assert interval_texts(interval) == texts


@pytest.mark.parametrize(
    ("value", "text"),
    [(156.24, "156.2"), (-37.46, "-37.5"), (6.61, "6.61"), (0.00123, "0.00123"), (0.0, "0.0"), (-2e-7, "-2.00e-07")],
)
def test_a_small_number_is_not_written_as_zero(value: float, text: str) -> None:
    assert number_text(value) == text
