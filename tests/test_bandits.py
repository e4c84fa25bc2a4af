"""Bandits: the arithmetic, the generator and what a random policy earns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarl.digest import task_digest
from metarl.envs.bandits import DISTRIBUTIONS, bandit
from metarl.errors import ConfigError
from metarl.tasks.distribution import TaskDistribution
from metarl.vector.options import instance_seeds
from metarl.vector.streams import RowStreams

BY_ID = {distribution.id: distribution for distribution in DISTRIBUTIONS}


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_array_step_equals_a_scalar_bandit_pull_by_pull(kind: str) -> None:
    """1,000 episodes agree with plain scalar code that is fed the same random numbers."""
    num, num_pulls = 1000, 10
    distribution = bandit(5, num_pulls, kind)
    tasks = distribution.train.sample(num, np.random.default_rng(1))
    env = distribution.make_vector_env(num)
    env.reset(seed=7, options={"tasks": tasks})
    draws, arms = RowStreams(np.array(instance_seeds(7, num))), np.random.default_rng(2)
    for pull in range(num_pulls):
        actions = arms.integers(5, size=num)
        obs, rewards, terminated, truncated, _ = env.step(actions)
        numbers = draws.random(num) if kind == "bernoulli" else draws.standard_normal(num)
        for i in range(num):
            mean = float(tasks[i]["means"][actions[i]])
            expected = (1.0 if numbers[i] < mean else 0.0) if kind == "bernoulli" else mean + float(numbers[i])
            assert abs(rewards[i] - expected) < 1e-6
        assert not obs.any()
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (pull == num_pulls - 1)


@pytest.mark.parametrize(
    ("kind", "means", "variances"),
    [("bernoulli", [0.0, 0.1, 0.5, 0.8, 1.0], [0.0, 0.09, 0.25, 0.16, 0.0]), ("gaussian", [-1.0, 0.0, 2.0], [1.0] * 3)],
)
def test_rewards_have_the_arms_mean_and_variance(kind: str, means: list[float], variances: list[float]) -> None:
    num = 40_000
    env = bandit(len(means), 10, kind).make_vector_env(num)
    env.reset(seed=0, options={"tasks": [{"means": np.array(means)}] * num})
    for arm, (mean, variance) in enumerate(zip(means, variances, strict=True)):
        rewards = env.step(np.full(num, arm))[1]
        assert abs(rewards.mean() - mean) <= 5 * math.sqrt(variance / num)
        assert abs(rewards.var() - variance) <= 5 * math.sqrt(2 / num)


@pytest.mark.parametrize(("kind", "mean", "variance"), [("bernoulli", 0.5, 1 / 12), ("gaussian", 0.0, 1.0)])
def test_arm_means_follow_the_prior_in_both_splits(kind: str, mean: float, variance: float) -> None:
    """U[0, 1] has mean 1/2 and variance 1/12; the split by digest must not bend it."""
    distribution = bandit(10, 10, kind)
    for split in (distribution.train, distribution.test):
        means = np.concatenate([task["means"] for task in split.sample(2000, np.random.default_rng(3))])
        assert abs(means.mean() - mean) < 5 * math.sqrt(variance / means.size)
        assert abs(means.var() - variance) < 5 * variance * math.sqrt(2 / means.size)
        if kind == "bernoulli":
            assert means.min() >= 0 and means.max() <= 1


def test_a_random_policy_earns_what_rl2_table_1_says() -> None:
    """Table 1, k=5, n=10: 5.0. The exact expectation is n / 2; 20,000 instances leave a standard error near 0.012."""
    distribution = BY_ID["bandit"]
    num = 20_000
    rng = np.random.default_rng(4)
    env = distribution.make_vector_env(num)
    env.reset(seed=5, options={"tasks": distribution.test.sample(num, rng)})
    returns = sum(env.step(rng.integers(5, size=num))[1] for _ in range(10))
    assert abs(returns.mean() - 5.0) < 4 * returns.std() / math.sqrt(num)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda distribution: distribution.id)
def test_splits_are_disjoint_and_sampling_is_a_function_of_the_seed(distribution: TaskDistribution) -> None:
    def digests(split: str, seed: int) -> list[bytes]:
        return [task_digest(task) for task in getattr(distribution, split).sample(100, np.random.default_rng(seed))]

    assert digests("train", 0) == digests("train", 0)
    assert digests("train", 0) != digests("train", 1)
    assert not {*digests("train", 0), *digests("train", 1)} & {*digests("test", 0), *digests("test", 1)}


def test_the_settings_of_table_1_are_registered_with_their_sizes() -> None:
    for num_arms in (5, 10, 50):
        for num_pulls in (10, 100, 500):
            spec = BY_ID[f"bandit-k{num_arms}-n{num_pulls}"].spec
            assert (spec.action_dim, spec.horizon, spec.obs_dim, spec.discrete) == (num_arms, num_pulls, 1, True)
    assert BY_ID["bandit"].spec == BY_ID["bandit-k5-n10"].spec == BY_ID["bandit-gaussian"].spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_arms": 1}, "num_arms.*2 or more, got 1"),
        ({"num_arms": 2.5}, "num_arms"),
        ({"num_pulls": 0}, "num_pulls.*got 0"),
        ({"num_pulls": True}, "num_pulls"),
        ({"kind": "gausian"}, "bandit.kind 'gausian'.*'gaussian'.*bernoulli, gaussian"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bandit(**arguments)  # type: ignore[arg-type]
