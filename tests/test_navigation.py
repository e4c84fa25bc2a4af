"""Point robots: MAML's and the sparse one, against plain scalar code."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest

from metarl.digest import task_digest
from metarl.envs.navigation import DISTRIBUTIONS
from metarl.tasks.distribution import TaskDistribution

BY_ID = {distribution.id: distribution for distribution in DISTRIBUTIONS}


def scalar_step(
    position: list[float], goal: tuple[float, float], action: list[float], sparse: bool
) -> tuple[list[float], float, bool]:
    """One step of one robot, in Python floats: new position, reward, terminated."""
    x, y = (p + min(max(a, -0.1), 0.1) for p, a in zip(position, action, strict=True))
    dx, dy = x - goal[0], y - goal[1]
    distance = math.sqrt(dx * dx + dy * dy)
    if sparse:
        return [x, y], (1.0 - distance if distance <= 0.2 else 0.0), False
    return [x, y], -distance, abs(dx) < 0.01 and abs(dy) < 0.01


@pytest.mark.parametrize("task_id", ["navigation-2d", "navigation-2d-sparse"])
def test_array_step_equals_a_scalar_robot_step_by_step(task_id: str) -> None:
    """1,000 episodes, actions beyond the bounds included; half of the robots head for their goal, so ends occur."""
    distribution = BY_ID[task_id]
    num = 1000
    rng = np.random.default_rng(0)
    tasks = distribution.train.sample(num, rng)
    goals = np.stack([task["goal"] for task in tasks])
    env = distribution.make_vector_env(num)
    obs, _ = env.reset(seed=0, options={"tasks": tasks})
    assert not obs.any()
    positions = [[0.0, 0.0] for _ in range(num)]
    running = np.ones(num, bool)
    rewarded = ended = 0
    for step in range(distribution.spec.horizon):
        actions = rng.normal(0.0, 0.1, (num, 2))
        actions[::2] = goals[::2] - np.array(positions)[::2]
        obs, rewards, terminated, truncated, info = env.step(actions)
        for i in np.flatnonzero(running):
            positions[i], reward, done = scalar_step(
                positions[i],
                (float(goals[i][0]), float(goals[i][1])),
                actions[i].tolist(),
                task_id == "navigation-2d-sparse",
            )
            assert np.abs(obs[i] - positions[i]).max() < 1e-6
            assert abs(rewards[i] - reward) < 1e-6
            assert terminated[i] == done
            rewarded += bool(info["success"][i])
        assert truncated.all() == truncated.any() == (step == distribution.spec.horizon - 1)
        ended += int((running & terminated).sum())
        running &= ~terminated
    assert rewarded >= num // 2
    assert ended >= num // 2 if task_id == "navigation-2d" else ended == 0


def test_the_reward_is_the_plain_distance_after_the_move() -> None:
    env = BY_ID["navigation-2d"].make_vector_env(1)
    env.reset(options={"tasks": [{"goal": np.array([0.4, -0.3])}]})
    _, rewards, _, _, _ = env.step(np.array([[0.1, 0.1]]))
    assert rewards[0] == pytest.approx(-0.5, abs=1e-12)


@pytest.mark.parametrize(("offset", "ends"), [((0.009, 0.009), True), ((0.011, 0.0), False), ((0.0, -0.011), False)])
def test_an_episode_ends_in_a_square_around_the_goal(offset: tuple[float, float], ends: bool) -> None:
    """A corner of the square, 0.0127 away, ends the episode; a point 0.011 away along one axis does not."""
    env = BY_ID["navigation-2d"].make_vector_env(1)
    env.reset(options={"tasks": [{"goal": np.array([0.05, 0.05])}]})
    _, _, terminated, _, info = env.step(np.array([0.05, 0.05]) + np.array([offset]))
    assert terminated[0] == info["success"][0] == ends


def test_a_reset_mask_moves_only_the_chosen_robots_to_the_origin() -> None:
    distribution = BY_ID["navigation-2d"]
    env = distribution.make_vector_env(3)
    env.reset(options={"tasks": distribution.train.sample(3, np.random.default_rng(0))})
    env.step(np.full((3, 2), 0.1))
    obs, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert np.allclose(obs, [[0.1, 0.1], [0.0, 0.0], [0.1, 0.1]])


def test_action_bounds_are_mamls() -> None:
    """The collector maps a policy's [-1, 1] onto these bounds, so they set the scale of the task."""
    for distribution in DISTRIBUTIONS:
        space = distribution.make_vector_env(1).single_action_space
        assert isinstance(space, gym.spaces.Box)
        assert np.allclose(space.low, -0.1) and np.allclose(space.high, 0.1)


def test_goals_lie_where_the_papers_put_them() -> None:
    square = np.stack([t["goal"] for t in BY_ID["navigation-2d"].train.sample(2000, np.random.default_rng(0))])
    assert np.abs(square).max() <= 0.5
    assert np.abs(square.mean(0)).max() < 5 * math.sqrt(1 / 12 / 2000)
    assert np.abs(square.var(0) - 1 / 12).max() < 0.01
    circle = np.stack([t["goal"] for t in BY_ID["navigation-2d-sparse"].train.sample(2000, np.random.default_rng(0))])
    assert np.allclose(np.linalg.norm(circle, axis=1), 1.0) and (circle[:, 1] >= 0).all()
    assert abs(np.arctan2(circle[:, 1], circle[:, 0]).mean() - math.pi / 2) < 5 * math.pi / math.sqrt(12 * 2000)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda distribution: distribution.id)
def test_splits_are_disjoint_and_sampling_is_a_function_of_the_seed(distribution: TaskDistribution) -> None:
    def digests(split: str, seed: int) -> list[bytes]:
        return [task_digest(task) for task in getattr(distribution, split).sample(100, np.random.default_rng(seed))]

    assert digests("train", 0) == digests("train", 0)
    assert digests("train", 0) != digests("train", 1)
    assert not {*digests("train", 0), *digests("train", 1)} & {*digests("test", 0), *digests("test", 1)}
