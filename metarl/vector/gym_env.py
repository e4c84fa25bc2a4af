"""Any Gymnasium environment as a vector environment with one task per instance."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from metarl.digest import task_digest
from metarl.errors import ConfigError, WorkerError
from metarl.seeding import derive
from metarl.types import Task
from metarl.vector.buffers import Buffers, Layout
from metarl.vector.options import NO_TASK, parse_reset_options
from metarl.vector.workers import Request, WorkerPool

Array = NDArray[Any]
MakeEnv = Callable[[Task], gym.Env[Any, Any]]
_RESULTS = ("observations", "rewards", "terminated", "truncated", "success")
"""What comes out of workers."""

ActionSpace = gym.spaces.Discrete | gym.spaces.Box


def flat_spaces(env: gym.Env[Any, Any]) -> tuple[gym.spaces.Box, ActionSpace]:
    """The spaces that an agent sees: a flat float32 observation, and actions ``0..n-1`` or a flat float32 box.

    Raises:
        ConfigError: naming a space that has no such form.
    """
    flat = gym.spaces.flatten_space(env.observation_space)
    if not isinstance(flat, gym.spaces.Box):
        raise ConfigError(
            f"observation space {env.observation_space} has no fixed flat size; accepted are Box, Discrete, "
            "MultiDiscrete, MultiBinary, and Tuple or Dict of these."
        )
    observation_space = gym.spaces.Box(_as_float32(flat.low), _as_float32(flat.high), dtype=np.float32)
    action_space = env.action_space
    if isinstance(action_space, gym.spaces.Discrete):
        return observation_space, gym.spaces.Discrete(int(action_space.n))
    if isinstance(action_space, gym.spaces.Box) and np.issubdtype(action_space.dtype, np.floating):
        low, high = _as_float32(action_space.low).reshape(-1), _as_float32(action_space.high).reshape(-1)
        return observation_space, gym.spaces.Box(low, high, dtype=np.float32)
    raise ConfigError(f"action space {action_space} is not accepted: use Discrete, or Box of floating-point numbers.")


def _as_float32(bound: Array) -> Array:
    """Bounds beyond float32 (such as Box's default for float64) become infinite, quietly."""
    with np.errstate(over="ignore"):
        return bound.astype(np.float32)


@dataclass(slots=True)
class _Instance:
    """One environment, the task it poses, and what is needed to translate its spaces."""

    env: gym.Env[Any, Any]
    digest: bytes
    observation_space: gym.Space[Any]
    plain_box: bool
    action_start: int
    action_shape: tuple[int, ...]
    action_dtype: np.dtype[Any]


class _Failure(Exception):
    """An environment raised; its text tells which, and the cause is what it raised."""


class _Instances:
    """Consecutive instances that are stepped one after another in one process, over rows of :class:`Buffers`.

    Args:
        make_env: builds an environment for a task.
        task_on_reset: tasks go through ``reset(options={"task": task})`` instead of ``make_env``.
        obs_dim: size of the flat observation, the same for every task.
        action_space: flat action space, the same for every task.
        first: number of the first instance, for error messages.
        buffers: rows of these instances only.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        task_on_reset: bool,
        obs_dim: int,
        action_space: ActionSpace,
        first: int,
        buffers: Buffers,
    ) -> None:
        self._make_env = make_env
        self._task_on_reset = task_on_reset
        self._obs_dim = obs_dim
        self._action_space = action_space
        self._first = first
        self._buffers = buffers
        self._discrete = isinstance(action_space, gym.spaces.Discrete)
        self._instances: list[_Instance | None] = [None] * len(buffers.rewards)
        self._tasks: list[Task] = [None] * len(buffers.rewards)
        self._ended = np.ones(len(buffers.rewards), bool)

    def reset(self, requests: Sequence[Request]) -> None:
        """Start episodes: ``(row, task, seed)`` each."""
        buffers = self._buffers
        for row, task, seed in requests:
            self._enter(row)
            try:
                self._tasks[row] = task
                instance = self._prepare(row, task)
                options = {"task": task} if self._task_on_reset else None
                observation, _ = instance.env.reset(seed=seed, options=options)
                self._write_observation(row, instance, observation)
            except Exception as error:
                raise _Failure(self._describe(row, "reset")) from error
            buffers.terminated[row] = buffers.truncated[row] = self._ended[row] = False
            buffers.rewards[row] = buffers.success[row] = 0.0

    def step(self) -> None:
        """Advance every running instance by the action in its row."""
        buffers = self._buffers
        # An environment may keep the action it got; rows of a copy are not overwritten by the next step.
        actions = buffers.actions.tolist() if self._discrete else buffers.actions.copy()
        ended = self._ended.tolist()
        for row, instance in enumerate(self._instances):
            if ended[row] or instance is None:
                buffers.rewards[row] = buffers.success[row] = 0.0
                continue
            self._enter(row)
            try:
                action = actions[row]
                if self._discrete:
                    action += instance.action_start
                else:
                    action = action.reshape(instance.action_shape).astype(instance.action_dtype, copy=False)
                observation, reward, terminated, truncated, info = instance.env.step(action)
                self._write_observation(row, instance, observation)
                buffers.rewards[row] = reward
                buffers.success[row] = info.get("success", 0.0)
            except Exception as error:
                raise _Failure(self._describe(row, "step")) from error
            if terminated or truncated:
                buffers.terminated[row] = terminated
                buffers.truncated[row] = truncated
                self._ended[row] = True

    def close(self) -> None:
        """Close every environment."""
        instances, self._instances = self._instances, [None] * len(self._instances)
        for instance in instances:
            if instance is not None:
                instance.env.close()

    def _enter(self, row: int) -> None:
        """Tell a watching parent which instance is at work, and that there is progress."""
        self._buffers.progress[0] = row
        self._buffers.progress[1] += 1

    def _prepare(self, row: int, task: Task) -> _Instance:
        instance = self._instances[row]
        if instance is not None and self._task_on_reset:
            return instance
        digest = task_digest(task)
        if instance is not None:
            if instance.digest == digest:
                return instance
            self._instances[row] = None
            instance.env.close()
        env = self._make_env(task)
        observation_space, action_space = flat_spaces(env)
        if observation_space.shape != (self._obs_dim,) or action_space != self._action_space:
            raise ConfigError(
                f"spaces differ between tasks: flat observation {observation_space.shape} and {action_space}, "
                f"expected ({self._obs_dim},) and {self._action_space} as for the first task."
            )
        own = env.action_space
        start = int(own.start) if isinstance(own, gym.spaces.Discrete) else 0
        instance = _Instance(
            env,
            digest,
            env.observation_space,
            isinstance(env.observation_space, gym.spaces.Box),
            start,
            own.shape or (),
            np.dtype(own.dtype),
        )
        self._instances[row] = instance
        return instance

    def _write_observation(self, row: int, instance: _Instance, observation: Any) -> None:
        if not instance.plain_box:
            observation = gym.spaces.flatten(instance.observation_space, observation)
        flat = np.asarray(observation, np.float32).reshape(-1)
        # Without this a single number would be broadcast over the whole row.
        if len(flat) != self._obs_dim:
            raise ConfigError(f"observation of {len(flat)} numbers, expected {self._obs_dim} by observation_space.")
        self._buffers.observations[row] = flat

    def _describe(self, row: int, verb: str) -> str:
        return f"instance {self._first + row} raised in {verb} with task {reprlib.repr(self._tasks[row])}"


class GymVectorEnv(VectorEnv[Array, Array, Array]):
    """Instances of one Gymnasium environment, each with its own task; autoreset is disabled.

    ``reset(seed=..., options={"tasks": [...], "reset_mask": ...})`` sets tasks; without ``tasks`` the old ones stay.
    An instance that has ended is not stepped until its next reset: it returns its last observation, reward 0 and
    its flags. Every failure of an environment raises ``WorkerError``, after which this object is closed.

    Args:
        make_env: builds one environment for a task; called again when an instance's task changes.
        num_envs: number of instances.
        first_task: a task to read the spaces from.
        task_on_reset: the environments take tasks through ``reset(options={"task": task})``, and are built once.
        num_workers: worker processes among which the instances are divided (at most one per instance); 0 steps them
            in this process. Results are the same, bit for bit. A worker does not run the main script: a package
            that registers environment ids must be imported inside ``make_env``.
        worker_timeout: seconds that one instance may take for one call before its worker counts as hung.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        num_envs: int,
        *,
        first_task: Task,
        task_on_reset: bool = False,
        num_workers: int = 0,
        worker_timeout: float = 45.0,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"GymVectorEnv: num_envs must be 1 or more, got {num_envs!r}.")
        if num_workers < 0:
            raise ConfigError(f"GymVectorEnv: num_workers must be 0 or more, got {num_workers!r}.")
        if not worker_timeout > 0:
            raise ConfigError(f"GymVectorEnv: worker_timeout must be above 0 seconds, got {worker_timeout!r}.")
        try:
            env = make_env(first_task)
        except Exception as error:
            raise WorkerError(
                f"make_env raised with task {reprlib.repr(first_task)}: {type(error).__name__}: {error}"
            ) from error
        try:
            observation_space, action_space = flat_spaces(env)
            self.single_observation_space, self.single_action_space = observation_space, action_space
        finally:
            env.close()
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}
        self.observation_space = gym.vector.utils.batch_space(observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(action_space, num_envs)
        self._tasks: list[Task] | None = None
        layout = Layout.of(num_envs, observation_space.shape[0], action_space)

        def make_group(first: int, buffers: Buffers) -> _Instances:
            return _Instances(make_env, task_on_reset, layout.obs_dim, action_space, first, buffers)

        self._buffers = layout.view(bytearray(layout.num_bytes))
        self._group: _Instances | WorkerPool
        if num_workers == 0:
            self._group = make_group(0, self._buffers)
            self._shares: list[tuple[slice, Buffers]] = []
        else:
            self._group = WorkerPool(make_group, layout, min(num_workers, num_envs), worker_timeout)
            self._shares = self._group.rows

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every instance, or in those of ``options["reset_mask"]``.

        Each instance gets a seed of its own, derived from ``seed``; without one its stream goes on.

        Returns:
            Observations ``[num_envs, obs_dim]`` float32 (those outside the mask unchanged) and an empty info.

        Raises:
            ConfigError: for a wrong number of tasks, a wrong mask, or if no task was ever given.
            WorkerError: if an environment or its worker fails.
        """
        tasks, mask = parse_reset_options(options, self.num_envs)
        if isinstance(seed, list):
            raise ConfigError("GymVectorEnv takes one integer seed and derives each instance's own from it.")
        if tasks is not None:
            self._tasks = tasks
        if self._tasks is None:
            raise ConfigError(NO_TASK)
        requests = [
            (row, self._tasks[row], None if seed is None else instance_seed(seed, row))
            for row in np.flatnonzero(mask).tolist()
        ]
        self._run("reset", requests)
        return self._buffers.observations.copy(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Advance every running instance by one step.

        Args:
            actions: ``[num_envs]`` int64, or ``[num_envs, action_dim]`` float32.

        Returns:
            Observations ``[num_envs, obs_dim]`` float32, rewards ``[num_envs]`` float64, terminated and truncated
            ``[num_envs]`` bool, and ``{"success": [num_envs] float64}``: 0 where an environment does not report it.

        Raises:
            ConfigError: for actions of a wrong shape.
            WorkerError: if an environment or its worker fails.
        """
        buffers = self._buffers
        if np.shape(actions) != buffers.actions.shape:
            raise ConfigError(f"actions have shape {np.shape(actions)}, expected {buffers.actions.shape}.")
        buffers.actions[...] = actions
        self._run("step", None)
        return (
            buffers.observations.copy(),
            buffers.rewards.copy(),
            buffers.terminated.copy(),
            buffers.truncated.copy(),
            {"success": buffers.success.copy()},
        )

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments, and end the worker processes."""
        self._group.close()

    def _run(self, verb: str, requests: Sequence[Request] | None) -> None:
        if self.closed:
            raise WorkerError("this GymVectorEnv is closed; make a new one.")
        try:
            if requests is None:
                for rows, share in self._shares:
                    share.actions[...] = self._buffers.actions[rows]
                self._group.step()
            else:
                self._group.reset(requests)
        except _Failure as failure:
            self.close()
            cause = failure.__cause__
            raise WorkerError(f"{failure}: {type(cause).__name__}: {cause}") from cause
        except WorkerError:
            self.close()
            raise
        for rows, share in self._shares:
            for name in _RESULTS:
                getattr(self._buffers, name)[rows] = getattr(share, name)


def instance_seed(seed: int, row: int) -> int:
    """What instance ``row`` is seeded with; below 2**31, since many environments hand it to ``numpy.random.seed``."""
    return derive(seed, "instance", row) & 0x7FFFFFFF
