"""Any Gymnasium environment as a vector environment with one task per instance."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from metarl.errors import ConfigError, WorkerError, raised
from metarl.types import Task
from metarl.vector.buffers import Buffers, Layout
from metarl.vector.contract import as_actions, require_open, require_reset
from metarl.vector.instances import ENVIRONMENT_ERRORS, Failure, Instances, MakeEnv, close_env, own_copy
from metarl.vector.options import NO_TASK, instance_seeds, parse_reset_options
from metarl.vector.spaces import ActionSpace, flat_spaces, require_env
from metarl.vector.watchdog import CALL_TIMEOUT, Call, Watchdog, no_progress
from metarl.vector.workers import Request, WorkerPool

Array = NDArray[Any]
_RESULTS = ("observations", "rewards", "terminated", "truncated", "success")
"""What comes out of workers."""


class GymVectorEnv(VectorEnv[Array, Array, Array]):
    """Instances of one Gymnasium environment, each with its own task; autoreset is disabled.

    ``reset(seed=..., options={"tasks": [...], "reset_mask": ...})`` sets tasks; without ``tasks`` the old ones stay.
    An instance that has ended is not stepped until its next reset: it returns its last observation, reward 0 and
    its flags. Every failure of an environment raises ``WorkerError``, after which this object is closed.

    Args:
        make_env: builds one environment for a task; called again when an instance's task changes. It gets a copy of
            the task that is the environment's own.
        num_envs: number of instances.
        first_task: a task to read the spaces from.
        task_on_reset: the environments take tasks through ``reset(options={"task": task})``, and are built once.
        num_workers: worker processes among which the instances are divided (at most one per instance); 0 steps them
            in this process. Results are the same, bit for bit. A worker does not run the main script: a package
            that registers environment ids must be imported inside ``make_env``.
        worker_timeout: seconds that one instance may take for one call before it counts as hung. A worker is then
            killed; a call in this process is ended if it runs Python code or waits for the system, and otherwise told
            on standard error.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        num_envs: int,
        *,
        first_task: Task,
        task_on_reset: bool = False,
        num_workers: int = 0,
        worker_timeout: float = CALL_TIMEOUT,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"GymVectorEnv: num_envs must be 1 or more, got {num_envs!r}.")
        if num_workers < 0:
            raise ConfigError(f"GymVectorEnv: num_workers must be 0 or more, got {num_workers!r}.")
        if not worker_timeout > 0:
            raise ConfigError(f"GymVectorEnv: worker_timeout must be above 0 seconds, got {worker_timeout!r}.")
        env = build_env(make_env, first_task, worker_timeout)
        try:
            observation_space, action_space = flat_spaces(env)
            self.single_observation_space: gym.spaces.Box = observation_space
            self.single_action_space: ActionSpace = action_space
        finally:
            close_env(env, Call("close", 0, first_task))
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}
        self.observation_space = gym.vector.utils.batch_space(observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(action_space, num_envs)
        self._tasks: list[Task] | None = None
        layout = Layout.of(num_envs, observation_space.shape[0], action_space)

        def make_group(first: int, buffers: Buffers) -> Instances:
            return Instances(make_env, task_on_reset, layout.obs_dim, action_space, first, buffers)

        self._buffers = layout.view(bytearray(layout.num_bytes))
        self._group: Instances | WorkerPool
        self._watchdog: Watchdog | None = None
        if num_workers == 0:
            group = self._group = make_group(0, self._buffers)
            self._shares: list[tuple[slice, Buffers]] = []
            who = f"the environment {env_name(env)}, which is stepped in this process,"

            def describe() -> str:
                return no_progress(who, worker_timeout, group.at_work())

            self._watchdog = Watchdog(self._buffers.progress, worker_timeout, describe)
        else:
            self._group = WorkerPool(make_group, layout, min(num_workers, num_envs), worker_timeout)
            self._shares = self._group.rows

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every instance, or in those of ``options["reset_mask"]``.

        Each instance gets a seed of its own, from a list or derived from one integer; without one its stream goes on.

        Returns:
            Observations ``[num_envs, obs_dim]`` float32 (those outside the mask unchanged) and an empty info.

        Raises:
            ConfigError: for a wrong number of tasks, a wrong mask, or if no task was ever given.
            WorkerError: if an environment or its worker fails.
        """
        require_open(self)
        tasks, mask = parse_reset_options(options, self.num_envs)
        seeds = instance_seeds(seed, self.num_envs)
        if tasks is not None:
            # What was handed in may change before a reset that gives no tasks.
            self._tasks = [own_copy(task) for task in tasks]
        if self._tasks is None:
            raise ConfigError(NO_TASK)
        requests = [(row, self._tasks[row], seeds[row]) for row in np.flatnonzero(mask).tolist()]
        self._run(requests)
        return self._buffers.observations.copy(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Advance every running instance by one step.

        Args:
            actions: ``[num_envs]`` integers, or ``[num_envs, action_dim]`` floats, which are clipped to their bounds.

        Returns:
            Observations ``[num_envs, obs_dim]`` float32, rewards ``[num_envs]`` float64, terminated and truncated
            ``[num_envs]`` bool, and ``{"success": [num_envs] float64, "_success": [num_envs] bool}``: 0 and False where
            an environment does not report success, under that name or as ``is_success``.

        Raises:
            ConfigError: for actions of a wrong shape or kind, or before the first reset.
            WorkerError: if an environment or its worker fails.
        """
        require_open(self)
        buffers = self._buffers
        buffers.actions[...] = as_actions(actions, self.single_action_space, self.num_envs)
        require_reset(self, self._tasks is not None)
        self._run(None)
        return (
            buffers.observations.copy(),
            buffers.rewards.copy(),
            buffers.terminated.copy(),
            buffers.truncated.copy(),
            {"success": np.nan_to_num(buffers.success), "_success": ~np.isnan(buffers.success)},
        )

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments, and end the worker processes."""
        self._watched(self._group.close)

    def _run(self, requests: Sequence[Request] | None) -> None:
        try:
            if requests is None:
                for rows, share in self._shares:
                    share.actions[...] = self._buffers.actions[rows]
                self._watched(self._group.step)
            else:
                self._watched(lambda: self._group.reset(requests))
        except Failure as failure:
            self.close()
            cause = failure.__cause__
            assert cause is not None
            raise WorkerError(raised(str(failure), cause)) from cause
        except WorkerError:
            self.close()
            raise
        for rows, share in self._shares:
            for name in _RESULTS:
                getattr(self._buffers, name)[rows] = getattr(share, name)

    def _watched(self, call: Callable[[], None]) -> None:
        """A pool of workers watches over them itself."""
        if self._watchdog is None:
            call()
        else:
            self._watchdog.watch(call)


def build_env(make_env: MakeEnv, task: Task, timeout: float = CALL_TIMEOUT) -> gym.Env[Any, Any]:
    """One environment in this process, to look at.

    Raises:
        ConfigError: if it returns no environment; of metarl's own, from within ``make_env``.
        WorkerError: if ``make_env`` raises anything else, or takes longer than ``timeout`` seconds.
    """

    def describe() -> str:
        return no_progress("make_env", timeout, f"with task {reprlib.repr(task)}")

    def build() -> gym.Env[Any, Any]:
        try:
            return make_env(held)
        except ConfigError:
            raise  # It says itself what to do, e.g. which extra is missing.
        except ENVIRONMENT_ERRORS as error:
            raise WorkerError(raised(f"make_env raised with task {reprlib.repr(task)}", error)) from error

    held = own_copy(task)
    env = Watchdog(np.zeros(2, np.int64), timeout, describe).watch(build)
    require_env(env)
    return env


def env_name(env: gym.Env[Any, Any]) -> str:
    """The id under which an environment is registered, or its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
