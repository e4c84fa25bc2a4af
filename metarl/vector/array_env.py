"""Families whose dynamics are arithmetic step all their instances as one array operation.

A family describes itself as :class:`Dynamics`: pure functions of arrays with one row per instance.
:class:`ArrayVectorEnv` turns that into a Gymnasium vector environment with one task per instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from metarl.errors import ConfigError
from metarl.vector.contract import as_actions, require_open, require_reset
from metarl.vector.options import NO_TASK, instance_seeds, parse_reset_options
from metarl.vector.streams import RowStreams

Array = NDArray[Any]
TaskParams = Mapping[str, Array]
"""Task parameters by name, one row per instance: ``[instance]`` or ``[instance, ...]``."""


class Dynamics(Protocol):
    """One family of tasks, as functions over a leading instance axis. All arithmetic is float64."""

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Space of one instance's observation, flat."""

    @property
    def action_space(self) -> gym.spaces.Discrete | gym.spaces.Box:
        """Space of one instance's action."""

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        """Initial states ``[num, ...]`` for instances with these ``params`` (already selected: ``num`` rows).

        ``rng`` has the methods of a NumPy generator and one stream for each row.
        """

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        """Next states ``[num, ...]``, rewards ``[num]``, terminated ``[num]`` bool and infos by name, ``[num]`` each.

        ``action`` is ``[num]`` integers (discrete) or ``[num, action_dim]`` inside the box.
        """

    def observe(self, state: Array, params: TaskParams) -> Array:
        """Observations ``[num, obs_dim]``; never reveals the task unless the family says so."""


class ArrayVectorEnv(VectorEnv[Array, Array, Array]):
    """Many instances of one :class:`Dynamics`, each with its own task, stepped together.

    ``reset(seed=..., options={"tasks": [...], "reset_mask": ...})`` sets tasks; without ``tasks`` the old ones stay.
    Autoreset is disabled: an instance that has ended returns unspecified values until it is reset.

    Args:
        dynamics: the family.
        num_envs: number of instances.
        horizon: steps after which an episode is truncated.
    """

    def __init__(self, dynamics: Dynamics, num_envs: int, horizon: int) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}
        self.num_envs = num_envs
        self.dynamics = dynamics
        self.horizon = horizon
        self.single_observation_space = dynamics.observation_space
        self.single_action_space = dynamics.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self._streams = RowStreams(np.random.default_rng().integers(2**63, size=num_envs))
        self._params: dict[str, Array] = {}
        self._state: Array = np.zeros((num_envs, 0))
        self._steps = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every instance, or in those of ``options["reset_mask"]``.

        Raises:
            ConfigError: for a wrong number of tasks, a wrong mask, or if no task was ever given.
            WorkerError: after close.
        """
        require_open(self)
        tasks, mask = parse_reset_options(options, self.num_envs)
        seeds = instance_seeds(seed, self.num_envs)
        anew = mask & np.array([one is not None for one in seeds])
        self._streams.reseed(anew, np.array([seeds[row] for row in np.flatnonzero(anew)], np.uint64))
        if tasks is not None:
            self._params = {name: np.stack([np.asarray(task[name]) for task in tasks]) for name in tasks[0]}
        if not self._params:
            raise ConfigError(NO_TASK)
        # Before their first episode all instances need a state, also those outside the mask.
        rows = np.ones_like(mask) if self._state.size == 0 else mask
        streams = self._streams.of(rows)
        state = self.dynamics.reset(
            {name: values[rows] for name, values in self._params.items()}, streams, len(streams)
        )
        self._streams.update(rows, streams)
        if self._state.size == 0:
            self._state = state
        else:
            self._state[rows] = state
        self._steps[rows] = 0
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Advance every instance by one step.

        Args:
            actions: ``[num_envs]`` integers, or ``[num_envs, action_dim]`` floats.

        Returns:
            Observations ``[num_envs, obs_dim]`` float32, rewards ``[num_envs]`` float64, terminated and truncated
            ``[num_envs]`` bool, and what the dynamics report: under each name ``[num_envs]``, and under the name with
            an underscore before it Gymnasium's mask of who reports it, which is everybody.

        Raises:
            ConfigError: for actions of a wrong shape or kind, or before the first reset.
            WorkerError: after close.
        """
        require_open(self)
        actions = as_actions(actions, self.dynamics.action_space, self.num_envs)
        require_reset(self, self._state.size > 0)
        self._state, rewards, terminated, reported = self.dynamics.step(
            self._state, actions, self._params, self._streams
        )
        self._steps += 1
        everybody = np.ones(self.num_envs, bool)
        info = dict(reported) | {f"_{name}": everybody for name in reported}
        return self._observe(), rewards, terminated, self._steps >= self.horizon, info

    def _observe(self) -> Array:
        return self.dynamics.observe(self._state, self._params).astype(np.float32)
