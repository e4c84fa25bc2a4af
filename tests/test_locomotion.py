"""Locomotion: rewards by hand, and tasks that change the reward and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from metarl.digest import task_digest
from metarl.envs.locomotion import DISTRIBUTIONS
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task

BY_NAME = {distribution.id.removeprefix("locomotion/"): distribution for distribution in DISTRIBUTIONS}
Env = gym.Env[Any, Any]

CONTROL_COST = {
    "cheetah-direction": 0.05,
    "cheetah-direction-promp": 0.05,
    "cheetah-velocity": 0.05,
    "cheetah-velocity-maml": 0.05,
    "cheetah-velocity-promp": 0.05,
    "ant-direction": 0.5,
    "ant-direction-maml": 0.005,
    "ant-velocity": 0.005,
    "ant-goal": 0.1,
}
BONUS = {"ant-direction": 1.0, "ant-direction-maml": 0.05, "ant-velocity": 1.05}


def make(distribution: TaskDistribution, task: Task) -> Env:
    assert distribution.make_env is not None
    return distribution.make_env(task)


def two_tasks(distribution: TaskDistribution) -> tuple[Task, Task]:
    """Two tasks that differ."""
    first, *others = distribution.train.sample(20, np.random.default_rng(0))
    return first, next(task for task in others if task_digest(task) != task_digest(first))


def play(env: Env, seed: int, num_steps: int = 30, task: Task = None) -> list[tuple[Any, ...]]:
    """What every step returned, the reset's observation first, under actions fixed by ``seed``."""
    options = None if task is None else {"task": task}
    actions = np.random.default_rng(seed)
    assert env.action_space.shape is not None
    trace: list[tuple[Any, ...]] = [(env.reset(seed=seed, options=options)[0], 0.0, False, False)]
    for _ in range(num_steps):
        obs, reward, terminated, truncated, _ = env.step(actions.uniform(-1, 1, env.action_space.shape[0]))
        trace.append((obs, reward, terminated, truncated))
        if terminated or truncated:
            break
    return trace


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_reward_equals_the_papers_formula_computed_by_hand(name: str) -> None:
    """From positions before and after the step, the action and the contact forces, not from the body's info."""
    distribution = BY_NAME[name]
    for task in two_tasks(distribution):
        env = make(distribution, task)
        env.reset(seed=3)
        body: Any = env.unwrapped
        torso = 1
        actions = np.random.default_rng(4)
        for _ in range(20):
            before = body.data.xpos[torso][0] if name.startswith("ant") else body.data.qpos[0]
            action = actions.uniform(-1, 1, env.action_space.shape[0])  # type: ignore[index]
            _, reward, terminated, _, _ = env.step(action)
            after = body.data.xpos[torso][0] if name.startswith("ant") else body.data.qpos[0]
            velocity = (after - before) / 0.05
            if "direction" in name:
                expected = task["direction"] * velocity
            elif "velocity" in name:
                expected = -abs(velocity - task["velocity"])
            else:
                expected = -np.abs(body.data.qpos[:2] - task["goal"]).sum()
            expected -= CONTROL_COST[name] * (action**2).sum()
            if name.startswith("ant"):
                expected -= 5e-4 * (np.clip(body.data.cfrc_ext, -1, 1) ** 2).sum()
            if 0.2 <= body.data.qpos[2] <= 1.0:
                expected += BONUS.get(name, 0.0)
            assert reward == pytest.approx(expected, abs=1e-9)
            if terminated:
                break


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_task_changes_the_reward_and_nothing_else(name: str) -> None:
    distribution = BY_NAME[name]
    one, other = (play(make(distribution, task), seed=5) for task in two_tasks(distribution))
    for (obs, _, *flags), (other_obs, _, *other_flags) in zip(one, other, strict=True):
        assert np.array_equal(obs, other_obs) and flags == other_flags
    assert all(a[1] != b[1] for a, b in zip(one[1:], other[1:], strict=True))


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_task_set_on_reset_equals_a_fresh_env_bit_for_bit(name: str) -> None:
    """An env that has lived through another task and half an episode keeps no trace of them."""
    distribution = BY_NAME[name]
    first, second = two_tasks(distribution)
    used = make(distribution, first)
    play(used, seed=6)
    fresh = play(make(distribution, second), seed=7)
    for expected, got in zip(fresh, play(used, seed=7, task=second), strict=True):
        assert np.array_equal(expected[0], got[0]) and expected[1:] == got[1:]


def test_a_reset_without_a_task_keeps_the_old_one() -> None:
    distribution = BY_NAME["cheetah-velocity"]
    first, second = two_tasks(distribution)
    env = make(distribution, first)
    set_once = [step[1] for step in play(env, seed=8, task=second)]
    assert [step[1] for step in play(env, seed=8)] == set_once


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_sizes_and_horizons(name: str) -> None:
    spec = BY_NAME[name].spec
    obs_dim = 17 if name.startswith("cheetah") else 29 if name == "ant-goal" else 27
    assert (spec.obs_dim, spec.action_dim) == (obs_dim, 6 if name.startswith("cheetah") else 8)
    assert spec.horizon == (100 if name == "cheetah-direction-promp" else 200)


def test_an_env_of_its_own_is_truncated_at_the_horizon() -> None:
    distribution = BY_NAME["cheetah-direction-promp"]
    trace = play(make(distribution, {"direction": 1.0}), seed=0, num_steps=200)
    assert len(trace) - 1 == 100 and trace[-1][2:] == (False, True)


def test_only_ant_goal_goes_on_after_a_fall() -> None:
    """A body lifted above the healthy range ends the episode, with the survival bonus withheld, or not."""
    for name in ("ant-direction", "ant-direction-maml", "ant-velocity", "ant-goal"):
        distribution = BY_NAME[name]
        env = make(distribution, two_tasks(distribution)[0])
        env.reset(seed=0)
        body: Any = env.unwrapped
        body.data.qpos[2] = 1.5
        _, _, terminated, truncated, _ = env.step(np.zeros(8))
        assert terminated == (name != "ant-goal") and not truncated


@pytest.mark.parametrize(
    ("name", "fastest"),
    [
        ("cheetah-velocity", 3.0),
        ("cheetah-velocity-maml", 2.0),
        ("cheetah-velocity-promp", 3.0),
        ("ant-velocity", 3.0),
    ],
)
def test_goal_velocities_cover_the_papers_range(name: str, fastest: float) -> None:
    goals = [task["velocity"] for task in BY_NAME[name].train.sample(1000, np.random.default_rng(0))]
    assert 0 <= min(goals) < 0.05 and fastest - 0.05 < max(goals) <= fastest
    assert np.mean(goals) == pytest.approx(fastest / 2, abs=0.15)


def test_ant_goals_are_uniform_over_the_disc() -> None:
    """Uniform over the area: half of the goals lie within radius 3 / sqrt(2)."""
    goals = np.stack([task["goal"] for task in BY_NAME["ant-goal"].train.sample(2000, np.random.default_rng(0))])
    radii = np.linalg.norm(goals, axis=1)
    assert radii.max() <= 3
    assert (radii < 3 / np.sqrt(2)).mean() == pytest.approx(0.5, abs=0.06)
    assert np.abs(goals.mean(0)).max() < 0.2


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_sampling_is_a_function_of_the_seed_and_splits_are_disjoint_unless_shared(name: str) -> None:
    distribution = BY_NAME[name]

    def digests(split: str, seed: int) -> list[bytes]:
        return [task_digest(task) for task in getattr(distribution, split).sample(100, np.random.default_rng(seed))]

    assert digests("train", 0) == digests("train", 0)
    assert digests("train", 0) != digests("train", 1)
    common = {*digests("train", 0)} & {*digests("test", 1)}
    assert len(common) == (2 if "direction" in name else 0)


def test_the_two_directions_are_equally_likely() -> None:
    directions = [t["direction"] for t in BY_NAME["cheetah-direction"].test.sample(2000, np.random.default_rng(0))]
    assert set(directions) == {-1.0, 1.0}
    assert abs(np.mean(directions)) < 5 / np.sqrt(2000)


def test_worker_processes_play_the_same_episodes_as_one_process() -> None:
    """The default of two workers changes the speed alone: observations and rewards agree bit for bit."""
    distribution = BY_NAME["cheetah-velocity"]
    tasks = distribution.train.sample(3, np.random.default_rng(0))
    actions = np.random.default_rng(1).uniform(-1, 1, (10, 3, 6)).astype(np.float32)
    traces = []
    for num_workers in (0, distribution.num_workers):
        vector = dataclasses.replace(distribution, num_workers=num_workers).make_vector_env(3)
        try:
            vector.reset(seed=0, options={"tasks": tasks})
            traces.append([vector.step(action)[:2] for action in actions])
        finally:
            vector.close()
    assert distribution.num_workers > 0
    for (obs, rewards), (other_obs, other_rewards) in zip(*traces, strict=True):
        assert np.array_equal(obs, other_obs) and np.array_equal(rewards, other_rewards)
