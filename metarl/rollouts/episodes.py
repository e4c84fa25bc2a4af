"""Episodes that are being played: neighbouring tasks in environments of their own, and what happens in them."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from metarl.errors import ConfigError, MetarlError, NonFiniteError, WorkerError, raised
from metarl.rollouts.actions import ActionMap
from metarl.types import Spec, Task
from metarl.vector.instances import ENVIRONMENT_ERRORS
from metarl.vector.protocol import success_of_batch

Flags = NDArray[np.bool_]
Answer = tuple[NDArray[np.float32], Flags, Flags]
"""Rewards, and where an episode terminated or was truncated, ``[instance]`` each; nothing where none was running."""


class Episodes:
    """One episode in every slot of some tasks, from an explicit reset to the last end.

    Args:
        name: of the task distribution, for messages.
        spec: sizes of observation and action, and the horizon.
        env: an instance for every slot.
        tasks: of these episodes.
        overlaps: step by the environment's ``step_async`` and ``step_wait``, as Gymnasium calls them, so that a step
            goes on while other things are done. Not by their presence: what inherits them may change ``step`` alone.

    Attributes:
        action_space: flat, of one instance.
        seen: ``[instance, obs_dim]`` float32, the last observation; zeros where the episode has ended.
        active: ``[instance]`` where the episode has not ended.
        is_stepping: a step was begun, whose answer nobody has taken.
        last_obs: ``[instance, obs_dim]`` float32, the observation after an episode's last step.
        success: ``[instance]`` where an environment reported success at any step.
        reported: ``[instance]`` where it said at any step whether it was a success.
        invalid: ``[instance]`` where the simulation diverged.
    """

    def __init__(
        self, name: str, spec: Spec, env: VectorEnv[Any, Any, Any], tasks: Sequence[Task], overlaps: bool = False
    ) -> None:
        self._overlaps = overlaps
        self._name, self._horizon = name, spec.horizon
        self._shape = env.num_envs, spec.obs_dim
        self._env, self._tasks = env, tasks
        self._slots = env.num_envs // len(tasks)
        self.action_space = env.single_action_space
        self._to_env = ActionMap(self.action_space)
        self._answer: Any = None
        self.is_stepping = False
        self.seen: NDArray[np.float32] = np.zeros(self._shape, np.float32)
        self.last_obs = self.seen.copy()
        self.active: Flags = np.ones(env.num_envs, bool)
        self.success: Flags = np.zeros(env.num_envs, bool)
        self.reported, self.invalid = self.success.copy(), self.success.copy()

    def reset(self, seeds: list[int]) -> None:
        """Begin, each instance with a seed of its own."""
        instance_tasks = [task for task in self._tasks for _ in range(self._slots)]
        obs, _ = self._call("reset", seed=seeds, options={"tasks": instance_tasks})
        self.seen = self._finite_obs(obs, 0)

    def begin_step(self, actions: Tensor) -> None:
        """Begin a step, with an action for every instance."""
        chosen = self._to_env(actions)
        if self._overlaps:
            self._call("step_async", chosen)
        else:
            self._answer = self._call("step", chosen)
        self.is_stepping = True

    def end_step(self, step: int) -> Answer:
        """What became of step number ``step``, counted from 0."""
        obs, rewards, terminated, truncated, info = self._answer or self._call("step_wait")
        self._answer, self.is_stepping = None, False
        active, seen = self.active, self.seen
        for name, array in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
            if np.shape(array) != active.shape:
                raise ConfigError(f"{self._name}: {name} have shape {np.shape(array)}, expected {active.shape}.")
            if name != "rewards" and np.asarray(array).dtype != bool:
                raise ConfigError(
                    f"{self._name}: {name} have dtype {np.asarray(array).dtype}, expected bool: array.astype(bool)."
                )
        if "invalid" in info and (diverged := active & np.asarray(info["invalid"], bool)).any():
            self.invalid |= diverged
            obs, rewards = np.where(diverged[:, None], seen, obs), np.where(diverged, 0.0, rewards)
            terminated, truncated = terminated & ~diverged, truncated | diverged
        rewards = self._finite("reward", rewards, step)
        # Also the last observation of an episode, whose value a truncated episode counts.
        obs = self._finite_obs(obs, step + 1)
        terminated = active & terminated
        truncated = active & (truncated | (step == self._horizon - 1)) & ~terminated
        successful, told = success_of_batch(info, len(active))
        self.success |= active & successful
        self.reported |= active & told
        ended = terminated | truncated
        if ended.any():
            self.active = active & ~ended
            self.last_obs[ended] = obs[ended]
            obs[ended] = 0.0
        self.seen = obs
        return rewards, terminated, truncated

    def _call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """What a method of the environments returns; those of a user's ``make_vector`` may raise anything."""
        try:
            return getattr(self._env, verb)(*arguments, **options)
        except MetarlError:
            raise
        except ENVIRONMENT_ERRORS as error:
            verb = verb.partition("_")[0]
            what = f"the vector environment raised in {verb} with tasks {reprlib.repr(list(self._tasks))}"
            raise WorkerError(raised(f"{self._name}: {what}", error)) from error

    def _finite_obs(self, obs: Any, step: int) -> NDArray[np.float32]:
        if np.shape(obs) != self._shape:
            raise ConfigError(f"{self._name}: observations have shape {np.shape(obs)}, expected {self._shape}.")
        return self._finite("observation", obs, step)

    def _finite(self, name: str, values: Any, step: int) -> NDArray[np.float32]:
        """As float32, zero where no episode is running: what is returned there is unspecified, and may be NaN."""
        values = np.asarray(values)
        with np.errstate(over="ignore"):
            # Agents see float32, in which a number beyond 3.4e38 is infinite.
            narrow: NDArray[np.float32] = values.astype(np.float32)
        if not self.active.all():
            narrow[~self.active] = 0.0
        if np.isfinite(narrow).all():
            return narrow
        instance = int(np.argwhere(~np.isfinite(narrow))[0][0])
        beyond = ", which is infinite in float32" if np.isfinite(values[instance]).all() else ""
        raise NonFiniteError(
            f"{self._name}: {name} {values[instance]} at step {step} in an environment of task "
            f"{self._tasks[instance // self._slots]!r}{beyond}."
        )
