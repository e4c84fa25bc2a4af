"""Tell the agent its task: the upper reference of every adaptation method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from metarl.errors import ConfigError
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task
from metarl.vector.options import parse_reset_options

Array = NDArray[Any]

_NUM_SAMPLES = 256
"""Training tasks from which the scale of the task's numbers is read."""


def reveal_task(distribution: TaskDistribution) -> TaskDistribution:
    """The same tasks, with the task's numbers appended to every observation.

    Numbers are shifted and scaled by their moments over training tasks; those that never vary become 0.

    Args:
        distribution: whose tasks are numbers, arrays, or dicts or dataclasses of them.

    Raises:
        ConfigError: for tasks that hold anything else.
    """
    rng = np.random.default_rng(0)
    samples = np.stack([task_numbers(task) for task in distribution.train.sample(_NUM_SAMPLES, rng)])
    std = samples.std(0)
    scale = np.where(std > 1e-8, 1.0 / np.maximum(std, 1e-8), 0.0)
    return TaskDistribution(
        id=distribution.id,
        sample=distribution.sample,
        sample_test=distribution.sample_test,
        meta_batch=distribution.meta_batch,
        shared_split=distribution.shared_split,
        horizon=distribution.spec.horizon,
        make_render_env=distribution.make_render_env,
        make_vector=partial(_make, distribution, samples.mean(0), scale),
        description=f"{distribution.description}, task revealed",
    )


def task_numbers(task: Task) -> NDArray[np.float64]:
    """The numbers of a task in one vector, dict entries in the order of their keys, fields of a dataclass in theirs.

    Raises:
        ConfigError: if the task holds something that is not a number.
    """
    if isinstance(task, Mapping):
        return np.concatenate([task_numbers(task[key]) for key in sorted(task)])
    if dataclasses.is_dataclass(task) and not isinstance(task, type):
        return np.concatenate([task_numbers(getattr(task, field.name)) for field in dataclasses.fields(task)])
    try:
        return np.asarray(task, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a task can be told to an oracle only if it is made of numbers, got {type(task).__name__} {task!r}."
        ) from error


def _make(distribution: TaskDistribution, mean: Array, scale: Array, num_envs: int) -> RevealingVectorEnv:
    return RevealingVectorEnv(distribution.make_vector_env(num_envs), mean, scale)


class RevealingVectorEnv(VectorEnv[Array, Array, Array]):
    """Appends each instance's task to its observation.

    Args:
        env: a vector environment with flat observations, which takes tasks by ``reset(options={"tasks": [...]})``.
        mean: subtracted from the task's numbers, ``[number]``.
        scale: multiplies them, ``[number]``.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], mean: Array, scale: Array) -> None:
        self.metadata = env.metadata
        self.num_envs = env.num_envs
        self._env, self._mean, self._scale = env, mean, scale
        self._told = np.zeros((env.num_envs, len(mean)), np.float32)
        inner = env.single_observation_space
        assert isinstance(inner, gym.spaces.Box)
        free = np.full(len(mean), np.inf, np.float32)
        low, high = np.concatenate([inner.low, -free]), np.concatenate([inner.high, free])
        self.single_observation_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.single_action_space = env.single_action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, env.num_envs)
        self.action_space = env.action_space

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Reset the inner environment, and tell each instance its task.

        Raises:
            ConfigError: for whatever the inner environment refuses.
        """
        tasks, _ = parse_reset_options(options, self.num_envs)
        each: Any = seed  # Gymnasium declares an integer alone, and documents a list as well.
        obs, info = self._env.reset(seed=each, options=options)
        if tasks is not None:
            numbers = np.stack([task_numbers(task) for task in tasks])
            self._told = ((numbers - self._mean) * self._scale).astype(np.float32)
        return self._tell(obs), info

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step the inner environment, and tell each instance its task."""
        obs, rewards, terminated, truncated, info = self._env.step(actions)
        return self._tell(obs), rewards, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """Close the inner environment."""
        self._env.close(**kwargs)

    def _tell(self, obs: Array) -> Array:
        return np.concatenate([obs, self._told], axis=1)
