"""A worker's share of the Meta-World pool, stepped by upstream's own code where the fast code has other numbers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task

from metarl.envs.metaworld.worker.layout import INFO, INFO_KEYS, INVALID, OBS, OUTCOME, REWARD
from metarl.vector.buffers import Buffers


class SimulationError(Exception):
    """Upstream raised; the text says in which instance and task."""


class PlainSimulations:
    """Instances of upstream's environments, each with a model of its own, reset and stepped one after another.

    A row whose ``truncated`` is set, by whomever, is not stepped.

    Args:
        reward_version: upstream's reward functions.
        first: number of the first instance, for error messages.
        buffers: rows of these instances.
    """

    def __init__(self, reward_version: str, first: int, buffers: Buffers) -> None:
        self._reward_version = reward_version
        self._first = first
        self._buffers = buffers
        self._rows = buffers.observations.view(np.float64)
        self._envs: list[Any] = [None] * len(buffers.rewards)
        self._tasks: list[Any] = [None] * len(buffers.rewards)

    def reset(self, requests: Sequence[tuple[int, Any, int | None]]) -> None:
        """Start episodes."""
        buffers = self._buffers
        for row, task, _ in requests:
            self._enter(row)
            try:
                env_class = ALL_V3_ENVIRONMENTS[task["env_name"]]
                env = self._envs[row]
                if env is None or self._tasks[row]["env_name"] != task["env_name"]:
                    env = self._envs[row] = env_class(reward_function_version=self._reward_version)
                self._tasks[row] = task
                settings = {"rand_vec": task["rand_vec"], "env_cls": env_class, "partially_observable": True}
                env.set_task(Task(task["env_name"], pickle.dumps(settings)))
                observation, _ = env.reset()
            except Exception as error:
                raise SimulationError(f"instance {self._first + row} raised in reset with task {task}") from error
            self._rows[row] = 0.0
            self._rows[row, OBS] = observation
            buffers.terminated[row] = buffers.truncated[row] = False

    def step(self) -> None:
        """Advance every running instance by the action in its row."""
        buffers = self._buffers
        actions = buffers.actions.copy()
        self._rows[:, OUTCOME] = 0.0
        for row in np.flatnonzero(~buffers.truncated).tolist():
            env = self._envs[row]
            if env is None:
                continue
            self._enter(row)
            before = env.data.time
            try:
                observation, reward, _, truncated, info = env.step(actions[row])
            except Exception as error:
                raise SimulationError(
                    f"instance {self._first + row} raised in step with task {self._tasks[row]}"
                ) from error
            if env.data.time <= before or not np.isfinite(observation).all():
                self._rows[row, INVALID] = 1.0
                truncated = True
            else:
                self._rows[row, OBS] = observation
                self._rows[row, INFO] = [info[key] for key in INFO_KEYS]
                self._rows[row, REWARD] = reward
            if truncated:
                buffers.truncated[row] = True

    def close(self) -> None:
        """Nothing outlives the process."""

    def _enter(self, row: int) -> None:
        self._buffers.progress[0] = row
        self._buffers.progress[1] += 1
