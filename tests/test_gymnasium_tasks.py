"""Short ways from other people's environments to distributions that pass check_tasks."""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from metarl.envs.gymnasium_tasks import from_set_task, gymnasium_tasks
from metarl.errors import ConfigError
from metarl.testing import check_tasks


class Classic(gym.Env[Any, Any]):
    """An environment in the manner of 2018: a task from a generator that ``source`` names, set before a reset."""

    def __init__(self, source: str = "own", low: float = 0.0) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.source, self.low, self.goal = source, low, 0.0

    def sample_tasks(self, num_tasks: int) -> list[dict[str, float]]:
        draw: Any = {"own": self.np_random.random, "numpy": np.random.rand, "python": random.random}[self.source]
        return [{"goal": self.low + float(draw())} for _ in range(num_tasks)]

    def set_task(self, task: dict[str, float]) -> None:
        self.goal = task["goal"]

    def get_task(self) -> dict[str, float]:
        return {"goal": self.goal}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        assert not options or "task" not in options
        self.place = self.np_random.normal(size=1)
        return self.place.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = self.place + action
        return self.place.astype(np.float32), -abs(float(self.place[0]) - self.goal), False, False, {}


def test_documented_example_passes_the_check_and_keeps_the_registered_time_limit() -> None:
    tasks = gymnasium_tasks("mine/pendulum", env="Pendulum-v1", sample=lambda rng: {"g": rng.uniform(5.0, 15.0)})
    assert tasks.spec.horizon == 200
    check_tasks(tasks)


def test_horizon_replaces_the_registered_time_limit() -> None:
    tasks = gymnasium_tasks("mine/short", env="Pendulum-v1", sample=lambda rng: {"g": rng.uniform(5, 15)}, horizon=3)
    env = tasks.make_vector_env(1)
    env.reset(seed=0, options={"tasks": [{"g": 9.0}]})
    assert [bool(env.step(np.zeros((1, 1)))[3][0]) for _ in range(3)] == [False, False, True]
    assert tasks.spec.horizon == 3


@pytest.mark.parametrize("source", ["own", "numpy", "python"])
def test_set_task_environment_passes_the_check_whatever_generator_it_samples_from(source: str) -> None:
    check_tasks(from_set_task("mine/classic", lambda: Classic(source), horizon=10))


def test_sampling_leaves_the_global_generators_alone() -> None:
    tasks = from_set_task("mine/classic", Classic, horizon=10)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    expected = np.random.rand(), random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    tasks.train.sample(5, np.random.default_rng(0))
    assert (np.random.rand(), random.random()) == expected  # noqa: NPY002


def test_test_tasks_come_from_the_test_environment() -> None:
    tasks = from_set_task("mine/classic", Classic, horizon=10, make_test_env=lambda: Classic(low=5.0))
    assert all(task["goal"] >= 5 for task in tasks.test.sample(20, np.random.default_rng(0)))
    assert all(task["goal"] < 1 for task in tasks.train.sample(20, np.random.default_rng(0)))
    check_tasks(tasks)


def test_task_is_set_before_the_reset() -> None:
    env = from_set_task("mine/classic", Classic, horizon=10).make_vector_env(2)
    observations, _ = env.reset(seed=0, options={"tasks": [{"goal": 1.0}, {"goal": 2.0}]})
    rewards = env.step(np.zeros((2, 1), np.float32))[1]
    np.testing.assert_allclose(rewards, -np.abs(observations[:, 0] - [1.0, 2.0]), rtol=1e-6)


def test_environment_without_set_task_is_refused_with_the_way_out() -> None:
    tasks = from_set_task("mine/none", lambda: gym.make("Pendulum-v1"))
    with pytest.raises(ConfigError, match=r"PendulumEnv must have the methods sample_tasks.*TaskDistribution"):
        tasks.sample(np.random.default_rng(0))


def test_reset_task_of_older_environments_is_told_its_new_name() -> None:
    class Older(gym.Env[Any, Any]):
        def sample_tasks(self, num_tasks: int) -> list[float]:
            return [0.0] * num_tasks

        def reset_task(self, task: float) -> None:
            """Pose a task."""

    with pytest.raises(ConfigError, match=r"Older must have .*It has reset_task: rename that to set_task"):
        from_set_task("mine/older", Older).sample(np.random.default_rng(0))


@pytest.mark.parametrize("env", ["gymnasium:Pendulum-v1", "gymnasium.envs.mujoco:InvertedPendulum-v5"])
def test_an_id_may_name_the_module_that_registers_it(env: str) -> None:
    tasks = gymnasium_tasks("mine/named", env=env, sample=lambda rng: {}, horizon=5)
    assert tasks.spec.horizon == 5
