"""What runs in a worker process of the Meta-World pool: its share of the simulations, stepped in phases.

This module is imported by workers: it must not import torch, nor anything of metarl that does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

from metarl.buffers import Buffers
from metarl.envs import metaworld_fast
from metarl.envs.metaworld_rows import INFO, INFO_KEYS, INVALID, OBS, OBS_DIM

Array = NDArray[Any]
Request = tuple[int, Any, int | None]

_SUBSTEPS = 5
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
"""Everything that a further step depends on, the solver's warm start included."""

_GRIP = np.array([1, -1], np.float32)
"""The two fingers move against each other."""

_VIEWED = ("xpos", "xquat", "xmat", "site_xpos", "geom_xpos", "qpos", "qvel", "mocap_pos")
"""Arrays of ``MjData`` into which an environment may keep a live view."""


class SimulationError(Exception):
    """Upstream raised; the text says in which instance and task."""


class _Simulation:
    """One of upstream's environments over a model that all instances of its task share.

    Attributes:
        env: upstream's environment; between resets its ``data`` is the fast stand-in.
        compiled: ``body_pos`` and ``site_pos`` of the model as it was compiled.
        placement: the same two as this instance's reset left them.
    """

    def __init__(self, env_name: str, reward_version: str) -> None:
        self.env_name = env_name
        self.env: Any = ALL_V3_ENVIRONMENTS[env_name](reward_function_version=reward_version)
        self.model, self.data = self.env.model, self.env.data
        self.fast = metaworld_fast.FastData(self.data)
        self.path: str = self.env.fullpath
        self.body_pos, self.site_pos = self.model.body_pos, self.model.site_pos
        self.compiled = self.placement = self.body_pos.copy(), self.site_pos.copy()
        self.mocap_pos, self.mocap_quat, self.ctrl = self.data.mocap_pos[0], self.data.mocap_quat[0], self.data.ctrl
        self.hand = self.data.body("hand").xpos
        self.fingers = self.data.body("rightclaw").xpos, self.data.body("leftclaw").xpos
        self.steps = 0

    def lay(self, placement: tuple[Array, Array]) -> None:
        """Move the shared model's bodies and sites."""
        self.body_pos[:], self.site_pos[:] = placement

    def observe(self, row: Array) -> None:
        """Upstream's ``_get_curr_obs_combined_no_goal`` into ``row[:18]``, which holds zeros."""
        env = self.env
        right, left = self.fingers
        apart = right - left
        row[:3] = self.hand
        row[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        position, quaternion = env._get_pos_objects(), env._get_quat_objects()
        if len(position) == 3:
            row[4:7] = position
            row[7:11] = quaternion
        else:
            row[4:7], row[7:11], row[11:14], row[14:18] = position[:3], quaternion[:4], position[3:], quaternion[4:]


class _Snapshot:
    """A simulation right after a reset: restoring it is the reset, a hundred times faster."""

    def __init__(self, simulation: _Simulation, observation: Array) -> None:
        data = simulation.data
        self.state = np.empty(mujoco.mj_stateSize(simulation.model, _STATE))
        mujoco.mj_getState(simulation.model, data, self.state, _STATE)
        self.placement = simulation.body_pos.copy(), simulation.site_pos.copy()
        self.observation = observation.copy()
        self.live: dict[str, tuple[str, int, tuple[int, ...], tuple[int, ...]]] = {}
        kept = {}
        for name, value in vars(simulation.env).items():
            place = _place(value, data) if isinstance(value, np.ndarray) else None
            if place is not None:
                self.live[name] = place
            elif name not in ("model", "data") and _is_plain(value):
                kept[name] = value
        self.attributes = copy.deepcopy(kept)

    def restore(self, simulation: _Simulation) -> None:
        """Put ``simulation``, of the same task, into the stored state."""
        data = simulation.data
        mujoco.mj_setState(simulation.model, data, self.state, _STATE)
        simulation.placement = self.placement
        attributes = vars(simulation.env)
        attributes.update(copy.deepcopy(self.attributes))
        for name, (field, offset, shape, strides) in self.live.items():
            attributes[name] = np.ndarray(shape, np.float64, getattr(data, field), offset, strides)


def _place(array: Array, data: mujoco.MjData) -> tuple[str, int, tuple[int, ...], tuple[int, ...]] | None:
    """Where in ``data`` a live view looks; None for an array of its own."""
    address = array.__array_interface__["data"][0]
    for field in _VIEWED:
        whole = getattr(data, field)
        offset = address - whole.__array_interface__["data"][0]
        if 0 <= offset < whole.nbytes:
            return field, offset, array.shape, array.strides
    return None


def _is_plain(value: Any) -> bool:
    """Numbers, text, arrays and collections of them: what a reset may change; spaces and handles are not."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | np.generic | np.ndarray)


class FastSimulations:
    """A worker's instances, stepped with the fast helpers.

    Each step works in phases over all instances: inputs, physics, observations, rewards. Interleaving them instance by
    instance would leave the caches cold for each.

    Args:
        reward_version: upstream's reward functions.
        first: number of the first instance, for error messages.
        buffers: rows of these instances.
    """

    def __init__(self, reward_version: str, first: int, buffers: Buffers) -> None:
        metaworld_fast.install()
        self._reward_version = reward_version
        self._first = first
        self._buffers = buffers
        self._rows = buffers.observations.view(np.float64)
        num = len(buffers.rewards)
        self._simulations: list[_Simulation | None] = [None] * num
        self._tasks: list[Any] = [None] * num
        self._idle: dict[str, list[_Simulation]] = {}
        self._placed: dict[str, _Simulation] = {}
        self._snapshots: dict[tuple[str, bytes], _Snapshot] = {}
        self._running: list[tuple[int, _Simulation]] = []
        self._mocap: Array = np.zeros((num, 3))
        self._mocap_low, self._mocap_high = np.zeros((num, 3)), np.zeros((num, 3))
        self._scale = np.zeros((num, 1), np.float32)
        self._previous = np.zeros((num, 18))
        self._low: Array = np.zeros(OBS_DIM)
        self._high: Array = np.zeros(OBS_DIM)

    def reset(self, requests: Sequence[Request]) -> None:
        """Start episodes; all rows give their simulations back first, so that another row can take them."""
        for row, task, _ in requests:
            simulation = self._simulations[row]
            if simulation is not None and simulation.env_name != task["env_name"]:
                self._idle.setdefault(simulation.env_name, []).append(simulation)
                self._simulations[row] = None
        for row, task, _ in requests:
            self._enter(row)
            self._tasks[row] = task
            try:
                self._reset_row(row, task)
            except Exception as error:
                raise SimulationError(self._describe(row, "reset")) from error
        truncated = self._buffers.truncated.tolist()
        self._running = [
            (row, simulation)
            for row, simulation in enumerate(self._simulations)
            if simulation is not None and not truncated[row]
        ]

    def step(self) -> None:
        """Advance every running instance by the action in its row."""
        buffers = self._buffers
        buffers.rewards[:] = buffers.success[:] = 0.0
        if not self._running:
            return
        # Upstream may keep views of actions and observations, so each step's are new.
        actions = buffers.actions.copy()
        observations = np.zeros((len(actions), OBS_DIM))
        # Upstream's arithmetic, on all instances: float32 up to the sum with the float64 position.
        delta = np.clip(actions[:, :3], -1, 1) * self._scale
        self._mocap = np.clip(self._mocap + delta, self._mocap_low, self._mocap_high)
        grip = actions[:, 3:] * _GRIP
        for row, simulation in self._running:
            simulation.mocap_pos[:] = self._mocap[row]
            simulation.ctrl[:] = grip[row]
        diverged = {row for row, simulation in self._running if not self._simulate(row, simulation)}
        for row, simulation in self._running:
            simulation.observe(observations[row])
        observations[:, 18:36] = self._previous
        self._previous = observations[:, :18].copy()
        np.clip(observations, self._low, self._high, out=observations)
        if not np.isfinite(observations).all():
            diverged.update(np.flatnonzero(~np.isfinite(observations).all(1)).tolist())
        valid = [pair for pair in self._running if pair[0] not in diverged]
        self._evaluate(valid, observations, actions)
        for row in diverged:
            self._end_invalid(row)
        self._note_ends()

    def close(self) -> None:
        """Nothing outlives the process."""

    def _simulate(self, row: int, simulation: _Simulation) -> bool:
        """Physics of one step; False if MuJoCo found it unstable and reset it, which turns time back."""
        self._enter(row)
        self._place(simulation)
        model, data = simulation.model, simulation.data
        before = data.time
        mujoco.mj_step(model, data, _SUBSTEPS)
        mujoco.mj_forward(model, data)
        simulation.steps += 1
        return bool(data.time > before)

    def _evaluate(self, valid: list[tuple[int, _Simulation]], observations: Array, actions: Array) -> None:
        """Upstream's rewards and infos."""
        rewards, infos = [], []
        for row, simulation in valid:
            self._place(simulation)
            simulation.env.curr_path_length = simulation.steps
            try:
                reward, info = simulation.env.evaluate_state(observations[row], actions[row])
                rewards.append(float(reward))
                infos.append([info[key] for key in INFO_KEYS])
            except Exception as error:
                raise SimulationError(self._describe(row, "step")) from error
        if valid:
            rows = [row for row, _ in valid]
            table = np.array(infos, np.float64)
            self._rows[rows, OBS] = observations[rows]
            self._rows[rows, INFO] = table
            self._buffers.rewards[rows] = rewards
            self._buffers.success[rows] = table[:, 0]

    def _note_ends(self) -> None:
        """Take what has ended out of the running."""
        for row, simulation in self._running:
            if simulation.steps >= simulation.env.max_path_length:
                self._buffers.truncated[row] = True
        truncated = self._buffers.truncated.tolist()
        self._running = [pair for pair in self._running if not truncated[pair[0]]]

    def _end_invalid(self, row: int) -> None:
        """The observation stays the last stable one."""
        self._rows[row, INFO] = 0.0
        self._rows[row, INVALID] = 1.0
        self._buffers.truncated[row] = True

    def _reset_row(self, row: int, task: Any) -> None:
        simulation = self._simulations[row] or self._acquire(task["env_name"])
        self._simulations[row] = simulation
        vector = np.asarray(task["rand_vec"], np.float64)
        key = task["env_name"], vector.tobytes()
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            snapshot = self._snapshots[key] = self._reset_fully(simulation, vector)
        snapshot.restore(simulation)
        # Upstream sets this at every step, always the same.
        simulation.mocap_quat[:] = (1, 0, 1, 0)
        self._placed.pop(simulation.path, None)
        simulation.steps = 0
        env = simulation.env
        env.data = simulation.fast
        self._mocap[row] = simulation.mocap_pos
        self._mocap_low[row], self._mocap_high[row] = env.mocap_low, env.mocap_high
        self._scale[row] = env.action_scale
        self._low, self._high = env.sawyer_observation_space.low, env.sawyer_observation_space.high
        self._rows[row] = 0.0
        self._rows[row, OBS] = snapshot.observation
        self._previous[row] = env._prev_obs
        buffers = self._buffers
        buffers.rewards[row] = buffers.success[row] = 0.0
        buffers.terminated[row] = buffers.truncated[row] = False

    def _reset_fully(self, simulation: _Simulation, vector: Array) -> _Snapshot:
        """Upstream's own reset, from the model as it was compiled."""
        env = simulation.env
        simulation.lay(simulation.compiled)
        env.data = simulation.data
        env._set_task_called = env._freeze_rand_vec = True
        env._last_rand_vec = vector
        observation, _ = env.reset()
        return _Snapshot(simulation, observation)

    def _acquire(self, env_name: str) -> _Simulation:
        idle = self._idle.get(env_name)
        if idle:
            return idle.pop()
        simulation = _Simulation(env_name, self._reward_version)
        self._placed.pop(simulation.path, None)
        return simulation

    def _place(self, simulation: _Simulation) -> None:
        """Give the shared model this instance's objects, unless it has them already."""
        if self._placed.get(simulation.path) is not simulation:
            simulation.lay(simulation.placement)
            self._placed[simulation.path] = simulation

    def _enter(self, row: int) -> None:
        """Tell the watching parent which instance is at work, and that there is progress."""
        self._buffers.progress[0] = row
        self._buffers.progress[1] += 1

    def _describe(self, row: int, verb: str) -> str:
        return f"instance {self._first + row} raised in {verb} with task {self._tasks[row]}"
