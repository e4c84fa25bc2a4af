"""Random MDPs: transitions, rewards and generator of RL²."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarl.digest import task_digest
from metarl.envs.tabular_mdp import DISTRIBUTIONS, tabular_mdp
from metarl.errors import ConfigError
from metarl.vector.options import instance_seeds
from metarl.vector.streams import RowStreams

MDP = DISTRIBUTIONS[0]
S, A, T = 10, 5, 10


def test_array_step_equals_a_scalar_mdp_step_by_step() -> None:
    """1,000 episodes agree with plain scalar code that is fed the same random numbers."""
    num = 1000
    tasks = MDP.train.sample(num, np.random.default_rng(1))
    env = MDP.make_vector_env(num)
    obs, _ = env.reset(seed=7, options={"tasks": tasks})
    states = [0] * num
    draws, policy = RowStreams(np.array(instance_seeds(7, num))), np.random.default_rng(2)
    for step in range(T):
        assert np.array_equal(obs.argmax(1), states) and np.array_equal(obs.sum(1), np.ones(num))
        actions = policy.integers(A, size=num)
        obs, rewards, terminated, truncated, _ = env.step(actions)
        uniforms, normals = draws.random(num), draws.standard_normal(num)
        for i in range(num):
            state, action = states[i], int(actions[i])
            assert abs(rewards[i] - (tasks[i]["reward_means"][state, action] + normals[i])) < 1e-6
            cumulative, next_state = 0.0, 0
            for next_state in range(S):
                cumulative += tasks[i]["transitions"][state, action, next_state]
                if uniforms[i] < cumulative:
                    break
            states[i] = next_state
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step == T - 1)


def test_next_states_are_distributed_by_the_transition_row() -> None:
    """Many instances of one task: frequencies of the next state within 5 standard errors of the row."""
    num = 50_000
    task = MDP.train.sample(1, np.random.default_rng(3))[0]
    env = MDP.make_vector_env(num)
    obs, _ = env.reset(seed=4, options={"tasks": [task] * num})
    states, action = obs.argmax(1), 3
    for _ in range(3):
        next_states = env.step(np.full(num, action))[0].argmax(1)
        for state in np.unique(states):
            here = next_states[states == state]
            row = task["transitions"][state, action]
            error = np.abs(np.bincount(here, minlength=S) / len(here) - row)
            assert (error <= 5 * np.sqrt(row * (1 - row) / len(here)) + 1 / len(here)).all()
        states = next_states


def test_impossible_states_are_never_reached() -> None:
    """Deterministic transitions are followed exactly."""
    num = 1000
    transitions = np.zeros((S, A, S))
    for state in range(S):
        for action in range(A):
            transitions[state, action, (2 * state + action + 1) % S] = 1.0
    env = MDP.make_vector_env(num)
    obs, _ = env.reset(
        seed=0, options={"tasks": [{"transitions": transitions, "reward_means": np.zeros((S, A))}] * num}
    )
    policy = np.random.default_rng(0)
    for _ in range(T):
        actions = policy.integers(A, size=num)
        expected = (2 * obs.argmax(1) + actions + 1) % S
        obs = env.step(actions)[0]
        assert np.array_equal(obs.argmax(1), expected)


def test_reward_noise_is_standard_normal_and_drawn_at_every_step() -> None:
    num = 20_000
    task = MDP.train.sample(1, np.random.default_rng(3))[0]
    stay = {"reward_means": task["reward_means"], "transitions": np.tile(np.eye(S)[:, None], (1, A, 1))}
    env = MDP.make_vector_env(num)
    env.reset(seed=1, options={"tasks": [stay] * num})
    first, second = (env.step(np.full(num, 2))[1] - task["reward_means"][0, 2] for _ in range(2))
    for noise in (first, second):
        assert abs(noise.mean()) < 5 / math.sqrt(num)
        assert abs(noise.var() - 1) < 5 * math.sqrt(2 / num)
    assert abs((first * second).mean()) < 5 / math.sqrt(num)


def test_tasks_follow_rl2s_generator() -> None:
    """Means ~ N(1, 1); flat Dirichlet rows: each entry has mean 1/S and variance (S - 1) / (S^2 (S + 1))."""
    tasks = MDP.train.sample(500, np.random.default_rng(5))
    means = np.stack([task["reward_means"] for task in tasks])
    rows = np.stack([task["transitions"] for task in tasks])
    assert means.shape == (500, S, A) and rows.shape == (500, S, A, S)
    assert abs(means.mean() - 1) < 5 / math.sqrt(means.size)
    assert abs(means.var() - 1) < 5 * math.sqrt(2 / means.size)
    assert np.allclose(rows.sum(-1), 1) and (rows >= 0).all()
    assert abs(rows.var() - (S - 1) / (S**2 * (S + 1))) < 1e-4
    assert np.abs(rows.mean((0, 1, 2)) - 1 / S).max() < 5 * math.sqrt(0.0082 / (500 * S * A))


def test_a_random_policy_earns_what_rl2_table_2_says() -> None:
    """Table 2, n=10 episodes: 100.1, that is 10 per episode; the exact expectation is T times the prior mean 1."""
    num = 10_000
    rng = np.random.default_rng(6)
    tasks = MDP.test.sample(num, rng)
    env = MDP.make_vector_env(num)
    env.reset(seed=8, options={"tasks": tasks})
    returns = sum(env.step(rng.integers(A, size=num))[1] for _ in range(T))
    assert abs(returns.mean() - 10.0) < 4 * returns.std() / math.sqrt(num)


def test_splits_are_disjoint_and_sampling_is_a_function_of_the_seed() -> None:
    def digests(split: str, seed: int) -> list[bytes]:
        return [task_digest(task) for task in getattr(MDP, split).sample(100, np.random.default_rng(seed))]

    assert digests("train", 0) == digests("train", 0)
    assert digests("train", 0) != digests("train", 1)
    assert not {*digests("train", 0), *digests("train", 1)} & {*digests("test", 0), *digests("test", 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_states": 1}, "num_states.*2 or more, got 1"),
        ({"num_actions": 0}, "num_actions.*got 0"),
        ({"horizon": -1}, "horizon.*got -1"),
        ({"horizon": 1.5}, "horizon.*got 1.5"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tabular_mdp(**arguments)  # type: ignore[arg-type]


def test_the_constructor_sets_the_sizes() -> None:
    spec = tabular_mdp(4, 3, 6).spec
    assert (spec.obs_dim, spec.action_dim, spec.horizon) == (4, 3, 6)
