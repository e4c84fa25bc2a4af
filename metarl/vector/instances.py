"""Gymnasium environments that are stepped one after another in one process, each with its own task."""

from __future__ import annotations

import copy
import reprlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from metarl.digest import task_digest
from metarl.errors import ConfigError
from metarl.types import Task
from metarl.vector.buffers import Buffers
from metarl.vector.protocol import reported_success, reset_result, step_result
from metarl.vector.spaces import ActionSpace, flat_observation, flat_spaces, own_action
from metarl.vector.watchdog import Call
from metarl.vector.workers import Request

MakeEnv = Callable[[Task], gym.Env[Any, Any]]


def own_copy(task: Task) -> Task:
    """A deep copy of a task: who is given it may pop its keys or empty its lists, and nobody else's task changes.

    Raises:
        ConfigError: for a task that cannot be copied.
    """
    try:
        return copy.deepcopy(task)
    except Exception as error:
        raise ConfigError(
            f"the task {reprlib.repr(task)} cannot be copied ({type(error).__name__}: {error}): expected numbers, "
            "text, arrays, and dicts, lists, sets, dataclasses or plain objects of these."
        ) from error


def close_env(env: gym.Env[Any, Any], call: Call) -> None:
    """Close an environment that is not needed any more; one that raises is warned of, as nothing is lost by it.

    Args:
        env: any environment.
        call: for the warning.
    """
    try:
        env.close()
    except ENVIRONMENT_ERRORS as error:
        warnings.warn(
            f"an environment raised {call}: {type(error).__name__}: {error}. It counts as closed.",
            RuntimeWarning,
            stacklevel=3,
        )


def digest_or_none(task: Task) -> bytes | None:
    """The digest of a task that others may have changed; None if they put something in that has no content."""
    try:
        return task_digest(task)
    except ConfigError:
        return None


@dataclass(slots=True)
class _Instance:
    """One environment, the task it poses, and what is needed to translate its spaces.

    ``held`` is the copy of the task that the environment was built from, and ``held_digest`` its digest just then: the
    constructor may have changed it, to no harm.
    """

    env: gym.Env[Any, Any]
    digest: bytes
    held: Task
    held_digest: bytes | None
    observation_space: gym.Space[Any]
    action_space: ActionSpace


ENVIRONMENT_ERRORS = (Exception, SystemExit)
"""What code of an environment may raise; none of it, ``sys.exit`` included, ends the process that calls it."""


class Failure(Exception):
    """An environment raised; the text tells which one, and the cause is what it raised."""


class Instances:
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
        self._verb = "reset"

    def reset(self, requests: Sequence[Request]) -> None:
        """Start episodes: ``(row, task, seed)`` each."""
        buffers, self._verb = self._buffers, "reset"
        for row, task, seed in requests:
            self._enter(row)
            try:
                self._tasks[row] = task
                instance = self._prepare(row, task)
                options = {"task": own_copy(task)} if self._task_on_reset else None
                observation, _ = reset_result(instance.env.reset(seed=seed, options=options))
                self._write_observation(row, instance, observation)
            except ENVIRONMENT_ERRORS as error:
                raise Failure(self._describe(row, "reset")) from error
            buffers.terminated[row] = buffers.truncated[row] = self._ended[row] = False
            buffers.rewards[row], buffers.success[row] = 0.0, np.nan

    def step(self) -> None:
        """Advance every running instance by the action in its row."""
        buffers, self._verb = self._buffers, "step"
        # An environment may keep the action it got; rows of a copy are not overwritten by the next step.
        actions = buffers.actions.tolist() if self._discrete else buffers.actions.copy()
        ended = self._ended.tolist()
        for row, instance in enumerate(self._instances):
            if ended[row] or instance is None:
                buffers.rewards[row], buffers.success[row] = 0.0, np.nan
                continue
            self._enter(row)
            try:
                action = own_action(instance.action_space, actions[row])
                observation, reward, terminated, truncated, info = step_result(instance.env.step(action))
                self._write_observation(row, instance, observation)
                buffers.rewards[row] = reward
                buffers.success[row] = reported_success(info)
            except ENVIRONMENT_ERRORS as error:
                raise Failure(self._describe(row, "step")) from error
            if terminated or truncated:
                buffers.terminated[row] = terminated
                buffers.truncated[row] = truncated
                self._ended[row] = True

    def close(self) -> None:
        """Close every environment."""
        instances, self._instances = self._instances, [None] * len(self._instances)
        self._verb = "close"
        for row, instance in enumerate(instances):
            if instance is not None:
                self._enter(row)
                close_env(instance.env, self.at_work())

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
            # An environment that changed its task while it was stepped does not pose that task any more.
            if instance.digest == digest and instance.held_digest == digest_or_none(instance.held) is not None:
                return instance
            self._instances[row] = None
            close_env(instance.env, Call("close", self._first + row, self._tasks[row]))
        held = own_copy(task)
        env = self._make_env(held)
        observation_space, action_space = flat_spaces(env)
        if observation_space.shape != (self._obs_dim,) or action_space != self._action_space:
            raise ConfigError(
                f"spaces differ between tasks: flat observation {observation_space.shape} and {action_space}, "
                f"expected ({self._obs_dim},) and {self._action_space} as for the first task."
            )
        own: Any = env.action_space
        instance = _Instance(
            env,
            digest,
            held,
            digest_or_none(held),
            env.observation_space,
            own,
        )
        self._instances[row] = instance
        return instance

    def _write_observation(self, row: int, instance: _Instance, observation: Any) -> None:
        flat = flat_observation(instance.observation_space, observation, self._obs_dim)
        self._buffers.observations[row] = flat

    def at_work(self) -> Call:
        """The call into an environment that is under way, or was the last one."""
        row = int(self._buffers.progress[0])
        return Call(self._verb, self._first + row, self._tasks[row])

    def _describe(self, row: int, verb: str) -> str:
        return f"instance {self._first + row} raised in {verb} with task {reprlib.repr(self._tasks[row])}"
