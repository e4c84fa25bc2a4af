"""Short ways to a task distribution from Gymnasium environments that others wrote.

An environment whose constructor takes the task's parameters, in full::

    from metarl import register
    from metarl.envs.gymnasium_tasks import gymnasium_tasks

    register(gymnasium_tasks(
        "mine/pendulum",
        env="Pendulum-v1",
        sample=lambda rng: {"g": rng.uniform(5.0, 15.0)},
    ))

One with ``sample_tasks / set_task``: :func:`from_set_task`. Anything else: :class:`metarl.tasks.TaskDistribution`.
"""

from __future__ import annotations

import contextlib
import importlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from metarl.envs.mujoco_graphics import OwnContext, choose_backend, import_mujoco
from metarl.errors import ConfigError
from metarl.tasks.distribution import Sampler, TaskDistribution
from metarl.types import Task


@runtime_checkable
class SetTaskEnv(Protocol):
    """What :func:`from_set_task` needs of an unwrapped environment; ``get_task`` may exist and is not used."""

    def sample_tasks(self, num_tasks: int) -> Sequence[Task]:
        """Draw tasks."""

    def set_task(self, task: Task) -> Any:
        """Pose ``task`` from the next reset on."""


def gymnasium_tasks(
    id: str,
    *,
    env: str,
    sample: Sampler,
    horizon: int | None = None,
    sample_test: Sampler | None = None,
    num_workers: int = 0,
    description: str = "",
) -> TaskDistribution:
    """Tasks that are keyword arguments of ``gymnasium.make(env, **task)``.

    Args:
        id: name of the distribution.
        env: registered environment id, or ``"module:id"`` to import what registers it.
        sample: draws the arguments of one task from a NumPy generator.
        horizon: most steps in an episode; default: the registered ``max_episode_steps``.
        sample_test: draws a test task; default: one in five of ``sample``'s tasks is a test task.
        num_workers: worker processes that step the instances.
        description: one line for ``metarl list``.
    """
    return TaskDistribution(
        id=id,
        sample=sample,
        make_env=partial(_make, env, horizon),
        horizon=horizon,
        sample_test=sample_test,
        num_workers=num_workers,
        make_render_env=partial(_make_rendering, env, horizon),
        description=description or f"{env} with sampled arguments",
    )


def from_set_task(
    id: str,
    make_env: Callable[[], gym.Env[Any, Any]],
    horizon: int | None = None,
    *,
    make_test_env: Callable[[], gym.Env[Any, Any]] | None = None,
    num_workers: int = 0,
    description: str = "",
) -> TaskDistribution:
    """Tasks of an environment that has ``sample_tasks(num)`` and ``set_task(task)``.

    ``sample_tasks`` may draw from the environment's ``np_random``, from ``numpy.random`` or from ``random``: all
    three are seeded for the call, and the global ones put back after it.

    Args:
        id: name of the distribution.
        make_env: builds one environment, without arguments.
        horizon: most steps in an episode; default: the environment's registered ``max_episode_steps``.
        make_test_env: builds the environment whose ``sample_tasks`` yields test tasks; default: one in five of
            ``make_env``'s tasks is a test task.
        num_workers: worker processes that step the instances.
        description: one line for ``metarl list``.
    """
    return TaskDistribution(
        id=id,
        sample=_SetTaskSampler(make_env),
        make_env=partial(_make_set_task, make_env),
        horizon=horizon,
        sample_test=None if make_test_env is None else _SetTaskSampler(make_test_env),
        task_on_reset=True,
        num_workers=num_workers,
        description=description,
    )


class SetTaskOnReset(gym.Wrapper[Any, Any, Any, Any]):
    """``reset(options={"task": task})`` for an environment with ``set_task``."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Set the task, if one is given, then reset; other options are passed on."""
        rest = dict(options or {})
        if "task" in rest:
            _as_set_task_env(self.env).set_task(rest.pop("task"))
        return self.env.reset(seed=seed, options=rest or None)


class _SetTaskSampler:
    """``sample_tasks`` as a function of a NumPy generator; one environment is kept for it."""

    def __init__(self, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        self._make_env = make_env
        self._env: gym.Env[Any, Any] | None = None

    def __call__(self, rng: np.random.Generator) -> Task:
        if self._env is None:
            self._env = self._make_env()
        seed = int(rng.integers(2**32))
        self._env.unwrapped.np_random = np.random.default_rng(seed)
        with _global_streams(seed):
            return _as_set_task_env(self._env).sample_tasks(1)[0]


@contextlib.contextmanager
def _global_streams(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy and Python for a block, then put their old states back."""
    # Old environments draw from NumPy's global generator: what is legacy here is what has to be seeded.
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _as_set_task_env(env: gym.Env[Any, Any]) -> SetTaskEnv:
    inner = env.unwrapped
    if not isinstance(inner, SetTaskEnv):
        old = " It has reset_task: rename that to set_task." if hasattr(inner, "reset_task") else ""
        raise ConfigError(
            f"{type(inner).__name__} must have the methods sample_tasks(num_tasks) and set_task(task); for other "
            f"environments use TaskDistribution(sample=..., make_env=...).{old}"
        )
    return inner


def _make(env: str, horizon: int | None, task: Task) -> gym.Env[Any, Any]:
    if _uses_mujoco(env):
        import_mujoco()
    return gym.make(env, max_episode_steps=horizon, **task)


def _uses_mujoco(env: str) -> bool:
    module, _, env_id = env.rpartition(":")
    if module:
        importlib.import_module(module)
    return "mujoco" in str(gym.spec(env_id).entry_point)


def _make_rendering(env: str, horizon: int | None, task: Task) -> gym.Env[Any, Any]:
    uses_mujoco = _uses_mujoco(env)
    if uses_mujoco:
        choose_backend()
    made = gym.make(env, max_episode_steps=horizon, render_mode="rgb_array", **task)
    return OwnContext(made) if uses_mujoco else made


def _make_set_task(make_env: Callable[[], gym.Env[Any, Any]], task: Task) -> gym.Env[Any, Any]:
    """The task comes with every reset; giving it here too lets spaces be read for it."""
    env = SetTaskOnReset(make_env())
    _as_set_task_env(env).set_task(task)
    return env
