"""Many Meta-World simulations stepped as one batch: upstream's numbers, bit for bit, at the speed of their physics.

One worker process for each core holds its share of the instances, shares memory with this process, and gets one message
for each batch step. Inside, models lose what can only be seen and slow helpers are replaced by value-identical ones
(:mod:`metarl.envs.metaworld.worker.patches`), all instances are observed at once, and v2 rewards run on floats
(:mod:`metarl.envs.metaworld.worker.rewards`). Metaworld in this process stays untouched, and is not even
imported.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from metarl.envs.metaworld.worker.layout import FLOAT32_COLUMNS, INFO, INFO_KEYS, INVALID, NUM_COLUMNS, OBS, REWARD
from metarl.errors import ConfigError, WorkerError
from metarl.tasks.distribution import Sampler
from metarl.types import Task
from metarl.vector.buffers import Buffers, Layout
from metarl.vector.workers import Group, WorkerPool

Array = NDArray[Any]

VERIFIED_VERSIONS = {
    "metaworld": ("3.1.1",),
    "mujoco": ("3.3.0",),
    "numpy": ("2.4.6",),
    "scipy": ("1.17.1",),
}
"""Versions with which the pool was shown to equal upstream; with others it steps upstream's own code."""

_HAND_LOW, _HAND_HIGH = (-0.525, 0.348, -0.0525), (0.525, 1.025, 0.7)
_FRAME_LOW = np.array([*_HAND_LOW, -1.0, *[-np.inf] * 14])
_FRAME_HIGH = np.array([*_HAND_HIGH, 1.0, *[np.inf] * 14])
OBSERVATION_SPACE = gym.spaces.Box(
    np.concatenate([_FRAME_LOW, _FRAME_LOW, np.zeros(3)]),
    np.concatenate([_FRAME_HIGH, _FRAME_HIGH, np.zeros(3)]),
    dtype=np.float64,
)
"""Upstream's, with the goal hidden."""

ACTION_SPACE = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
"""Upstream's: three moves of the hand and the grip."""


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
        num_workers: worker processes; default: one for each core that this process may use.
        sample: draws a task for each instance that is reset without one.
        seed: of ``sample``'s stream, until ``reset(seed=...)`` gives another.
        fast: use the value-identical helpers; default: if the installed versions are verified ones.
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
        worker_timeout: float = 45.0,
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
        self._num_workers = min(num_workers or len(os.sched_getaffinity(0)), num_envs)
        self._sample = sample
        self._rng = np.random.default_rng(seed)
        self._fast = is_verified() if fast is None else fast
        self._timeout = worker_timeout
        self._tasks: list[Task | None] = [None] * num_envs
        self._ended = np.ones(num_envs, bool)
        self._pool: WorkerPool | None = None
        self._shares: list[tuple[slice, Buffers]] = []

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every instance, or in those of ``options["reset_mask"]``.

        Returns:
            Observations ``[num_envs, 39]`` float64 (those outside the mask unchanged), and ``{"tasks": ...}``: the
            task of each instance, which no observation shows.

        Raises:
            ConfigError: for a wrong number of tasks, a wrong mask, or if there is neither a task nor a sampler.
            WorkerError: if a simulation or its worker fails.
        """
        options = options or {}
        if isinstance(seed, list):
            raise ConfigError("MetaWorldVectorEnv takes one integer seed: its simulations are deterministic.")
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ConfigError(
                f"reset_mask must be bool of shape ({self.num_envs},), got {mask.dtype} of shape {mask.shape}."
            )
        rows = np.flatnonzero(mask).tolist()
        self._choose_tasks(options.get("tasks"), rows)
        pool = self._started()
        self._call(pool.reset, [(row, self._tasks[row], None) for row in rows])
        self._ended[mask] = False
        return self._gather()[:, OBS], {"tasks": list(self._tasks)}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Advance every running instance by one step.

        Args:
            actions: ``[num_envs, 4]`` float32.

        Returns:
            Observations ``[num_envs, 39]`` float64, rewards ``[num_envs]`` float64, terminated (never) and truncated
            ``[num_envs]`` bool, and upstream's info by name, ``[num_envs]`` float64 each, with ``"invalid"`` bool.

        Raises:
            ConfigError: for actions of a wrong shape, or before the first reset.
            WorkerError: if a simulation or its worker fails.
        """
        if np.shape(actions) != (self.num_envs, 4):
            raise ConfigError(f"actions have shape {np.shape(actions)}, expected {(self.num_envs, 4)}.")
        if self._pool is None and not self.closed:
            raise ConfigError("call reset before step.")
        for rows, share in self._shares:
            share.actions[...] = actions[rows]
        self._call(self._started().step)
        table = self._gather()
        truncated = np.empty(self.num_envs, bool)
        for rows, share in self._shares:
            truncated[rows] = share.truncated
        info: dict[str, Any] = dict(zip(INFO_KEYS, table.T[INFO], strict=True))
        info["invalid"] = invalid = table[:, INVALID] > 0
        if truncated.any():
            self.num_invalid += int(np.sum(invalid & ~self._ended))
            self._ended |= truncated
        return table[:, OBS], table[:, REWARD].copy(), np.zeros(self.num_envs, bool), truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()

    def _choose_tasks(self, tasks: Sequence[Task] | None, rows: list[int]) -> None:
        if tasks is not None:
            if len(tasks) != self.num_envs:
                raise ConfigError(f"got {len(tasks)} tasks for {self.num_envs} instances: give one task per instance.")
            self._tasks = list(tasks)
        elif self._sample is not None:
            for row in rows:
                self._tasks[row] = self._sample(self._rng)
        if any(self._tasks[row] is None for row in rows):
            raise ConfigError('no task was given: call reset(options={"tasks": [...]}) first.')

    def _started(self) -> WorkerPool:
        if self.closed:
            raise WorkerError("this MetaWorldVectorEnv is closed; make a new one.")
        if self._pool is None:
            layout = Layout(self.num_envs, FLOAT32_COLUMNS, 4)
            self._pool = WorkerPool(
                _group_maker(self._reward_version, self._fast), layout, self._num_workers, self._timeout
            )
            self._shares = self._pool.rows
        return self._pool

    def _call(self, verb: Any, *arguments: Any) -> None:
        try:
            verb(*arguments)
        except WorkerError:
            self.close()
            raise

    def _gather(self) -> Array:
        table = np.empty((self.num_envs, NUM_COLUMNS))
        for rows, share in self._shares:
            table[rows] = share.observations.view(np.float64)
        return table


def is_verified() -> bool:
    """Whether the installed versions are ones whose results the fast helpers were shown to equal; warns if not."""
    wrong = {name: installed for name, known in VERIFIED_VERSIONS.items() if (installed := version(name)) not in known}
    if wrong:
        expected = ", ".join(f"{name} {' or '.join(VERIFIED_VERSIONS[name])}" for name in wrong)
        found = ", ".join(f"{name} {installed}" for name, installed in wrong.items())
        warnings.warn(
            f"Meta-World runs at upstream's speed: the pool's fast code was verified with {expected}; "
            f"installed is {found}.",
            stacklevel=2,
        )
    return not wrong


def _group_maker(reward_version: str, fast: bool) -> Any:
    """What builds a worker's share; a closure, so that it travels by value and imports nothing of this module."""

    def make_group(first: int, buffers: Buffers) -> Group:
        import importlib
        import os

        # Workers draw nothing: a graphics library that is missing is no matter of theirs, nor the time to load one.
        os.environ["MUJOCO_GL"] = "disable"
        import mujoco

        # A diverging simulation is reported in info; MuJoCo would also write a log into the working directory.
        mujoco.set_mju_user_warning(lambda text: None)
        name = "FastSimulations" if fast else "PlainSimulations"
        module = importlib.import_module(f"metarl.envs.metaworld.worker.{'fast' if fast else 'plain'}_group")
        group: Group = getattr(module, name)(reward_version, first, buffers)
        return group

    return make_group
