"""Many Meta-World simulations stepped as one batch: upstream's numbers, bit for bit, at the speed of their physics.

One worker process for each core holds its share of the instances, shares memory with this process, and gets one message
for each batch step. Inside, models lose what can only be seen and slow helpers are replaced by value-identical ones
(:mod:`metarl.envs.metaworld.worker.patches`), all instances are observed at once, and v2 rewards run on floats
(:mod:`metarl.envs.metaworld.worker.rewards`). Metaworld in this process stays untouched, and is not even imported.

A task in which that does not give upstream's numbers here (:mod:`metarl.envs.metaworld.verification`) is stepped by
upstream's own code, in worker processes of its own, where no helper was replaced.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from metarl.distributed import ranks_here
from metarl.envs.metaworld.upstream import TASK_NAMES
from metarl.envs.metaworld.verification import fast_code_differences, is_verified
from metarl.envs.metaworld.worker.layout import FLOAT32_COLUMNS, INFO, INFO_KEYS, INVALID, NUM_COLUMNS, OBS, REWARD
from metarl.envs.metaworld.worker.start import make_group
from metarl.errors import ConfigError, WorkerError
from metarl.tasks.distribution import Sampler
from metarl.types import Task
from metarl.vector.buffers import Buffers, Layout
from metarl.vector.contract import as_actions, require_open, require_reset
from metarl.vector.options import NO_TASK, instance_seeds, parse_reset_options
from metarl.vector.watchdog import CALL_TIMEOUT
from metarl.vector.workers import WorkerPool

Array = NDArray[Any]

_HAND_LOW, _HAND_HIGH = (-0.525, 0.348, -0.0525), (0.525, 1.025, 0.7)
_FRAME_LOW = np.array([*_HAND_LOW, -1.0, *[-np.inf] * 14])
_FRAME_HIGH = np.array([*_HAND_HIGH, 1.0, *[np.inf] * 14])
OBSERVATION_SPACE = gym.spaces.Box(
    np.concatenate([_FRAME_LOW, _FRAME_LOW, np.zeros(3)]),
    np.concatenate([_FRAME_HIGH, _FRAME_HIGH, np.zeros(3)]),
    dtype=np.float64,
)
"""Upstream's, with the goal hidden."""

_TOLD = (*INFO_KEYS, "invalid")
_MASKS = tuple(f"_{name}" for name in _TOLD)

ACTION_SPACE = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
"""Upstream's: three moves of the hand and the grip."""


def default_workers() -> int:
    """Worker processes: one for each core that this process may use, shared with the other ranks of its machine."""
    return max(1, len(os.sched_getaffinity(0)) // ranks_here())


class MetaWorldVectorEnv(VectorEnv[Array, Array, Array]):
    """Instances of Meta-World's tasks, each with a task of its own; autoreset is disabled.

    ``reset(options={"tasks": [...], "reset_mask": ...})`` sets tasks; without ``tasks`` the old ones stay, or new ones
    are drawn if there is a sampler. An episode is truncated after 500 steps and never terminates. An instance that
    has ended is not stepped until its next reset: it returns its last observation, reward 0 and its flags. An instance
    whose simulation diverges is truncated with ``info["invalid"]``, and counted in ``num_invalid``.

    Workers start at the first reset. Every failure of theirs raises ``WorkerError`` and closes this object.

    Args:
        num_envs: number of instances.
        reward_version: upstream's reward functions, ``"v1"`` or ``"v2"``.
        num_workers: worker processes; default: one for each core that this process may use, shared with the
            other ranks of its machine.
        sample: draws a task for each instance that is reset without one.
        seed: seed for ``sample``'s stream, until ``reset(seed=...)`` gives another.
        fast: True steps every task with the value-identical helpers, False with upstream's own code; default: the
            helpers where they were shown to be identical, by a test at the first use if need be.
        worker_timeout: seconds that one instance may take for one call before its worker counts as hung.

    Attributes:
        num_invalid: episodes whose simulation diverged, so far.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        reward_version: str = "v2",
        num_workers: int | None = None,
        sample: Sampler | None = None,
        seed: int | None = None,
        fast: bool | None = None,
        worker_timeout: float = CALL_TIMEOUT,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"MetaWorldVectorEnv: num_envs must be 1 or more, got {num_envs!r}.")
        if num_workers is not None and num_workers < 1:
            raise ConfigError(f"MetaWorldVectorEnv: num_workers must be 1 or more, got {num_workers!r}.")
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}
        self.single_observation_space, self.single_action_space = OBSERVATION_SPACE, ACTION_SPACE
        self.observation_space = gym.vector.utils.batch_space(OBSERVATION_SPACE, num_envs)
        self.action_space = gym.vector.utils.batch_space(ACTION_SPACE, num_envs)
        self.num_invalid = 0
        self._reward_version = reward_version
        self._num_workers = min(num_workers or default_workers(), num_envs)
        self._sample = sample
        self._rng = np.random.default_rng(seed)
        # Asked in any case: this is where a package that is not installed is told.
        verified = is_verified()
        self._fast = True if fast is None and verified else fast
        self._differences: dict[str, str] = {}
        self._timeout = worker_timeout
        self._tasks: list[Task | None] = [None] * num_envs
        self._ended = np.ones(num_envs, bool)
        self._pools: dict[bool, WorkerPool] = {}
        self._is_fast = np.ones(num_envs, bool)
        self._shares: list[tuple[slice, Buffers, Array]] = []
        self._is_stepping = False

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every instance, or in those of ``options["reset_mask"]``.

        Returns:
            Observations ``[num_envs, 39]`` float64 (those outside the mask unchanged), and ``{"tasks": ...}``: the
            task of each instance, ``[num_envs]`` objects, which no observation shows.

        Raises:
            ConfigError: for a wrong number of tasks, a wrong mask, or if there is neither a task nor a sampler.
            WorkerError: if a simulation or its worker fails.
        """
        require_open(self)
        self._require_rest()
        tasks, mask = parse_reset_options(options, self.num_envs)
        seeds = [one for one in instance_seeds(seed, self.num_envs) if one is not None]
        if seeds:
            # The simulations are deterministic: only the tasks that are drawn are random.
            self._rng = np.random.default_rng(seed if isinstance(seed, int) else seeds)
        rows = np.flatnonzero(mask).tolist()
        self._choose_tasks(tasks, rows)
        self._choose_code(rows)
        self._open_pools({bool(self._is_fast[row]) for row in rows})
        for fast, pool in self._pools.items():
            own = [row for row in rows if self._is_fast[row] == fast]
            self._call(pool.reset, [(row, self._tasks[row], None) for row in own])
        self._ended[mask] = False
        told = np.empty(self.num_envs, object)
        told[:] = self._tasks
        return self._gather()[:, OBS], {"tasks": told, "_tasks": np.array([task is not None for task in self._tasks])}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Advance every running instance by one step.

        Args:
            actions: ``[num_envs, 4]`` float32.

        Returns:
            Observations ``[num_envs, 39]`` float64, rewards ``[num_envs]`` float64, terminated (never) and truncated
            ``[num_envs]`` bool, and upstream's info by name, ``[num_envs]`` float64 each, with ``"invalid"`` bool
            and Gymnasium's masks of who reports it, which is everybody.

        Raises:
            ConfigError: for actions of a wrong shape or kind, or before the first reset.
            WorkerError: if a simulation or its worker fails.
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Array) -> None:
        """Have every running instance advance, and do not wait for it.

        Args:
            actions: ``[num_envs, 4]`` float32.

        Raises:
            ConfigError: for actions of a wrong shape or kind, before the first reset, or during another step.
            WorkerError: if a worker died.
        """
        require_open(self)
        self._require_rest()
        actions = as_actions(actions, ACTION_SPACE, self.num_envs)
        require_reset(self, bool(self._pools))
        for rows, share, _ in self._shares:
            share.actions[...] = actions[rows]
        for pool in self._pools.values():
            self._call(pool.begin_step)
        self._is_stepping = True

    def step_wait(self) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """What :meth:`step` returns, of the step that :meth:`step_async` began.

        Raises:
            ConfigError: if none was begun.
            WorkerError: if a simulation or its worker fails.
        """
        require_open(self)
        if not self._is_stepping:
            raise ConfigError("step_wait without a step under way: call step_async first.")
        for pool in self._pools.values():
            self._call(pool.end_step)
        self._is_stepping = False
        table = self._gather()
        truncated = np.zeros(self.num_envs, bool)
        for rows, share, own in self._shares:
            truncated[rows][own] = share.truncated[own]
        invalid = table[:, INVALID] > 0
        info: dict[str, Any] = dict(zip(_TOLD, (*table.T[INFO], invalid), strict=True))
        info |= dict.fromkeys(_MASKS, np.ones(self.num_envs, bool))
        if truncated.any():
            self.num_invalid += int(np.sum(invalid & ~self._ended))
            self._ended |= truncated
        return table[:, OBS], table[:, REWARD].copy(), np.zeros(self.num_envs, bool), truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """End the worker processes."""
        for pool in self._pools.values():
            pool.close()

    def _require_rest(self) -> None:
        if self._is_stepping:
            raise ConfigError("a step is under way: take its results with step_wait first.")

    def _choose_tasks(self, tasks: Sequence[Task] | None, rows: list[int]) -> None:
        if tasks is not None:
            self._tasks = list(tasks)
        elif self._sample is not None:
            for row in rows:
                self._tasks[row] = self._sample(self._rng)
        if any(self._tasks[row] is None for row in rows):
            raise ConfigError(NO_TASK)

    def _choose_code(self, rows: list[int]) -> None:
        """Whether the fast code steps these instances: all, none, or those whose task it was shown to step rightly."""
        if self._fast is not None:
            self._is_fast[rows] = self._fast
            return
        tasks: list[Any] = [self._tasks[row] for row in rows]
        names = [task["env_name"] for task in tasks]
        unknown = [name for name in dict.fromkeys(names) if name in TASK_NAMES and name not in self._differences]
        if unknown:
            self._differences |= fast_code_differences(unknown, self._reward_version, self._num_workers)
        # An unknown name is for the worker to refuse.
        self._is_fast[rows] = [not self._differences.get(name, "") for name in names]

    def _open_pools(self, needed: set[bool]) -> None:
        """Start the workers that are needed, and end in each pool the episodes of instances that are not its own."""
        layout = Layout(self.num_envs, FLOAT32_COLUMNS, 4)
        for fast in needed - self._pools.keys():
            make_share = partial(make_group, self._reward_version, fast)
            self._pools[fast] = WorkerPool(make_share, layout, self._num_workers, self._timeout)
        self._shares = [
            (rows, share, self._is_fast[rows] == fast)
            for fast, pool in self._pools.items()
            for rows, share in pool.rows
        ]
        for _, share, own in self._shares:
            share.truncated[~own] = True

    def _call(self, verb: Any, *arguments: Any) -> None:
        try:
            verb(*arguments)
        except WorkerError:
            self.close()
            raise

    def _gather(self) -> Array:
        table = np.zeros((self.num_envs, NUM_COLUMNS))
        for rows, share, own in self._shares:
            table[rows][own] = share.observations.view(np.float64)[own]
        return table
