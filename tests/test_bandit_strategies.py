"""Strategies for bandits do what their papers say, by hand-computed numbers, plain loops and exact expectations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metarl.benchmarks.bandits import play as play_module
from metarl.benchmarks.bandits.gittins import calibrated_index, whittle_index
from metarl.benchmarks.bandits.play import choose, play
from metarl.benchmarks.bandits.source import StrategySource
from metarl.benchmarks.bandits.strategies import (
    UCB1,
    CalibratedIndex,
    EpsilonGreedy,
    OptimisticThompson,
    Random,
    Strategy,
    ThompsonSampling,
    WhittleIndex,
    candidates,
)
from metarl.envs.bandits import bandit
from metarl.errors import ConfigError
from metarl.seeding import derive

Array = NDArray[Any]


def _choices(strategy: Strategy, successes: Sequence[float], failures: Sequence[float], pull: int, num: int) -> Array:
    """What a strategy does ``num`` times in one situation."""
    counts = (np.tile(np.array(counts, float), (num, 1)) for counts in (successes, failures))
    return strategy(*counts, pull, np.random.default_rng(0))


def test_whittles_index_by_hand() -> None:
    # mean 1/2, variance 1/4, count 2: 1/2 + (1/4) / (2 sqrt(1/8)).
    assert whittle_index(np.array(1.0), np.array(1.0), 1.0) == pytest.approx(0.5 + 0.25 / math.sqrt(0.5))
    # mean 2/3, variance 2/9, count 3, c = log 2: 2/3 + (2/9) / (3 sqrt((2 log 2 + 1/3) 2/9) + 1/6).
    by_hand = 2 / 3 + (2 / 9) / (3 * math.sqrt((2 * math.log(2) + 1 / 3) * 2 / 9) + 1 / 6)
    assert whittle_index(np.array(2.0), np.array(1.0), 0.5) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("discount", "successes", "failures", "index"),
    [(0.9, 0, 0, 0.7029), (0.9, 1, 0, 0.8001), (0.9, 0, 1, 0.5001), (0.99, 0, 0, 0.8699), (0.99, 1, 0, 0.9102)],
)
def test_calibrated_indices_are_those_of_gittins_tables(
    discount: float, successes: int, failures: int, index: float
) -> None:
    """Those printed by Gittins, 1989, to four digits."""
    assert calibrated_index(300, discount)[successes, failures] == pytest.approx(index, abs=4e-4)


def test_the_calibrated_index_makes_a_sure_arm_worth_as_much() -> None:
    """By its definition, for one arm: a plain recursion over what a sure arm of that rate adds."""
    discount, index = 0.8, calibrated_index(40, 0.8)

    @cache
    def value(successes: int, failures: int, rate: float) -> float:
        mean = (successes + 1) / (successes + failures + 2)
        if successes + failures >= 60:
            return max(rate, mean)
        return max(rate, advantage(successes, failures, rate) + rate)

    def advantage(successes: int, failures: int, rate: float) -> float:
        mean = (successes + 1) / (successes + failures + 2)
        good, bad = value(successes + 1, failures, rate), value(successes, failures + 1, rate)
        return mean * (1 - discount + discount * good) + (1 - mean) * discount * bad - rate

    for successes, failures in ((0, 0), (3, 1), (1, 4)):
        rate = float(index[successes, failures])
        assert advantage(successes, failures, rate - 3e-3) > 0 > advantage(successes, failures, rate + 3e-3)


def test_ucb1_by_hand() -> None:
    # Means 3/5 and 1/2; 4 pulls in: widths sqrt(2 log 4 / T) = 0.745 and 1.177.
    assert _choices(UCB1(0.0), [3, 1], [2, 1], 4, 1)[0] == 0
    assert _choices(UCB1(0.2), [3, 1], [2, 1], 4, 1)[0] == 0
    assert _choices(UCB1(0.25), [3, 1], [2, 1], 4, 1)[0] == 1
    # The width is zero in the first two pulls.
    assert _choices(UCB1(1.0), [1, 1], [2, 1], 1, 1)[0] == 1
    assert _choices(UCB1(1.0), [1, 1], [1, 1], 0, 1)[0] == 0


def test_epsilon_is_the_chance_of_any_arm() -> None:
    shares = np.bincount(_choices(EpsilonGreedy(0.3), [1, 2, 1], [1, 1, 1], 1, 40_000), minlength=3) / 40_000
    np.testing.assert_allclose(shares, [0.1, 0.8, 0.1], atol=0.01)
    assert (_choices(EpsilonGreedy(), [1, 2, 1], [1, 1, 1], 1, 100) == 1).all()
    np.testing.assert_allclose(np.bincount(_choices(Random(), [9, 1], [1, 9], 1, 40_000)) / 40_000, 0.5, atol=0.01)


def test_thompson_samples_in_proportion_to_the_chance_of_being_best() -> None:
    # Beta(2, 1) against Beta(1, 1): P(x > y) = E[x] = 2/3.
    share = (_choices(ThompsonSampling(), [2, 1], [1, 1], 1, 40_000) == 0).mean()
    assert share == pytest.approx(2 / 3, abs=0.01)


def test_optimistic_thompson_takes_the_likeliest_sample() -> None:
    one = _choices(OptimisticThompson(1), [2, 1], [1, 1], 1, 1000)
    np.testing.assert_array_equal(one, _choices(ThompsonSampling(), [2, 1], [1, 1], 1, 1000))
    # The density 2x of the first arm, whatever the second: of N samples the highest x is taken, Beta(2N, 1) by its
    # distribution x^2N, and the second is uniform: P = E[x] = 2N / (2N + 1).
    share = (_choices(OptimisticThompson(4), [2, 1], [1, 1], 1, 40_000) == 0).mean()
    assert share == pytest.approx(8 / 9, abs=0.01)


def test_play_is_a_loop_over_pulls() -> None:
    distribution = bandit(num_arms=3, num_pulls=12)
    tasks = distribution.train.sample(5, np.random.default_rng(0))
    env = distribution.make_vector_env(5)
    env.reset(seed=derive(7, "pulls", 0), options={"tasks": tasks})
    counts = [[[1, 1] for _ in range(3)] for _ in tasks]
    totals = [0.0] * 5
    for pull in range(12):
        arms = []
        for arm_counts in counts:
            indices = [
                good / (good + bad) + 0.4 * math.sqrt(2 * math.log(max(pull, 1)) / (good + bad))
                for good, bad in arm_counts
            ]
            arms.append(indices.index(max(indices)))
        _, rewards, *_ = env.step(np.array(arms))
        for instance, (arm, reward) in enumerate(zip(arms, rewards, strict=True)):
            counts[instance][arm][0 if reward else 1] += 1
            totals[instance] += reward
    assert play(UCB1(0.4), distribution, tasks, 7).tolist() == totals
    assert 0 < sum(totals) < 60


def test_what_a_task_comes_to_does_not_depend_on_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = bandit(num_arms=3, num_pulls=5)
    tasks = distribution.train.sample(10, np.random.default_rng(0))
    monkeypatch.setattr(play_module, "_BLOCK", 4)
    told: list[int] = []
    totals = play(EpsilonGreedy(), distribution, tasks, 1, told.append)
    assert told == [4, 8, 10]
    assert play(EpsilonGreedy(), distribution, tasks[:6], 1).tolist() == totals[:6].tolist()
    assert play(EpsilonGreedy(), distribution, tasks, 2).tolist() != totals.tolist()


@pytest.mark.parametrize(
    ("strategy", "num_arms", "published"),
    [
        (UCB1(0.0), 5, 6.6),  # Greedy, which draws nothing here.
        (UCB1(0.1), 5, 6.7),
        (UCB1(0.1), 50, 6.6),
        (WhittleIndex(), 5, 6.6),
        (WhittleIndex(), 50, 6.5),
        (ThompsonSampling(), 5, 5.7),
        (ThompsonSampling(), 10, 5.5),
        (ThompsonSampling(), 50, 5.2),
        (OptimisticThompson(20), 10, 6.2),
        (OptimisticThompson(20), 50, 5.5),
    ],
)
def test_the_digits_of_the_paper_come_out_on_the_instances_of_its_authors(
    strategy: Strategy, num_arms: int, published: float
) -> None:
    """Table 1 of RL² at n = 10."""
    assert _on_the_authors_instances(strategy, num_arms, 10) == published


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "num_pulls", "num_arms", "published"),
    [
        (WhittleIndex(), 100, 5, 78.3),
        (WhittleIndex(), 100, 10, 82.8),
        (WhittleIndex(), 100, 50, 85.2),
        (WhittleIndex(), 500, 5, 405.8),
        (UCB1(0.0), 500, 5, 380.6),
        (UCB1(0.0), 500, 10, 395.0),
        (UCB1(0.0), 500, 50, 402.8),
    ],
)
def test_so_do_those_of_long_trials(strategy: Strategy, num_pulls: int, num_arms: int, published: float) -> None:
    assert _on_the_authors_instances(strategy, num_arms, num_pulls) == published


def _on_the_authors_instances(strategy: Strategy, num_arms: int, num_pulls: int) -> float:
    """Mean total reward, rounded as in the paper.

    Seeds 0 to 999 of NumPy's old generator draw arms first, then the strategy and the reward of every pull in turn.
    """
    totals = []
    for seed in range(1000):
        rng: Any = np.random.RandomState(seed)
        means = rng.uniform(size=(1, num_arms))
        successes, failures = np.ones((1, num_arms)), np.ones((1, num_arms))
        for pull in range(num_pulls):
            arm = strategy(successes, failures, pull, rng)
            reward = rng.binomial(1, means[0, arm])
            successes[0, arm] += reward
            failures[0, arm] += 1 - reward
        totals.append(successes.sum() - num_arms)
    return round(float(np.mean(totals)), 1)


def test_the_ten_arms_of_the_authors_are_worse_than_most() -> None:
    """What the page of Table 1 says of its instances."""
    best = [np.random.RandomState(seed).uniform(size=(1, 10)).max() for seed in range(1000)]
    assert 500 * (10 / 11 - np.mean(best)) == pytest.approx(1.34, abs=0.005)


def _expected(index: Callable[[float, float, int], float], num_arms: int, num_pulls: int) -> float:
    """Exact expectation of the total reward of an index strategy, by the tree of all outcomes."""

    @cache
    def after(counts: tuple[tuple[int, int], ...], pull: int) -> float:
        if pull == num_pulls:
            return 0.0
        indices = [index(good, bad, pull) for good, bad in counts]
        arm = indices.index(max(indices))
        good, bad = counts[arm]
        chance = good / (good + bad)
        won = (*counts[:arm], (good + 1, bad), *counts[arm + 1 :])
        lost = (*counts[:arm], (good, bad + 1), *counts[arm + 1 :])
        return chance * (1.0 + after(won, pull + 1)) + (1.0 - chance) * after(lost, pull + 1)

    return after(((1, 1),) * num_arms, 0)


@pytest.mark.parametrize(
    ("strategy", "index"),
    [
        (EpsilonGreedy(), lambda good, bad, pull: good / (good + bad)),
        (WhittleIndex(), lambda good, bad, pull: float(whittle_index(np.array(good), np.array(bad), 1.0))),
        (CalibratedIndex(0.8, 10), lambda good, bad, pull: float(calibrated_index(10, 0.8)[good - 1, bad - 1])),
    ],
)
def test_mean_totals_are_the_exact_expectation(strategy: Strategy, index: Callable[..., float]) -> None:
    distribution = bandit(num_arms=5, num_pulls=10)
    totals = play(strategy, distribution, distribution.train.sample(4000, np.random.default_rng(3)), 0)
    error = totals.std() / math.sqrt(len(totals))
    assert abs(totals.mean() - _expected(index, 5, 10)) < 3.5 * error < 0.15


def test_the_best_of_the_candidates_is_chosen() -> None:
    distribution = bandit(num_arms=3, num_pulls=20)
    tasks = distribution.train.sample(300, np.random.default_rng(0))
    told: list[int] = []
    chosen = choose((EpsilonGreedy(1.0), EpsilonGreedy(0.1), Random()), distribution, tasks, 0, told.append)
    assert chosen.strategy == EpsilonGreedy(0.1)
    assert chosen.means[1] == max(chosen.means)
    assert chosen.means[1] == play(EpsilonGreedy(0.1), distribution, tasks, 0).mean()
    assert told == [1, 2, 3]
    assert choose((Random(),), distribution, tasks, 0).means == ()
    with pytest.raises(ConfigError, match="expected at least one strategy to choose from, got none"):
        choose((), distribution, tasks, 0)


def test_grids_are_those_of_the_authors() -> None:
    found = candidates(100)
    assert [*found] == ["Random", "Gittins", "TS", "OTS", "UCB1", "eps-Greedy", "Greedy"]
    assert found["OTS"] == tuple(OptimisticThompson(num) for num in range(1, 21))
    assert [strategy.c for strategy in found["UCB1"] if isinstance(strategy, UCB1)] == [i / 10 for i in range(11)]


def test_a_source_chooses_on_train_tasks_and_plays_test_tasks() -> None:
    source = StrategySource("UCB1", "bandit-k5-n10", num_tasks=40, num_tuning=20)
    told: list[tuple[str, int, int]] = []
    content = source.run(1, 0.5, None, lambda *what: told.append(what))  # type: ignore[arg-type]
    assert source.values(content, "").shape == (20,)
    assert len(content["candidates"]) == 11
    assert source.remark(content, "") == f"`{content['strategy']}`"
    assert told[0] == ("settings", 1, 11) and told[-1] == ("tasks", 20, 20)
    assert source.steps(0.5) == (11 * 10 + 20) * 10
    assert StrategySource("TS", "bandit-k5-n10", num_tasks=40).steps(1.0) == 400
    assert source.run(1, 0.5, None, lambda *_: None)["totals"] == content["totals"]  # type: ignore[arg-type]
    assert source.run(2, 0.5, None, lambda *_: None)["totals"] != content["totals"]  # type: ignore[arg-type]
