"""A worker's share of the Meta-World pool, stepped in phases by the fast code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from metarl.envs.metaworld.worker import patches
from metarl.envs.metaworld.worker.layout import INFO, INFO_KEYS, INVALID, OBS, OBS_DIM, OUTCOME, REWARD
from metarl.envs.metaworld.worker.observations import FRAME_DIM, Frames
from metarl.envs.metaworld.worker.plain_group import SimulationError
from metarl.envs.metaworld.worker.rewards.table import REWARDS
from metarl.envs.metaworld.worker.simulation import Simulation, Snapshot
from metarl.vector.buffers import Buffers

Array = NDArray[Any]
Request = tuple[int, Any, int | None]

_SUBSTEPS = 5
_GRIP = np.array([1, -1], np.float32)
"""The two fingers move against each other."""


class FastSimulations:
    """A worker's instances, stepped with the fast helpers.

    Each step works in phases over all instances: inputs, physics, observations, rewards. Interleaving them instance by
    instance would leave the caches cold for each. A row whose ``truncated`` is set, by whomever, is not stepped.

    Args:
        reward_version: upstream's reward functions.
        first: number of the first instance, for error messages.
        buffers: rows of these instances.
    """

    def __init__(self, reward_version: str, first: int, buffers: Buffers) -> None:
        patches.install()
        self._makers = REWARDS if reward_version == "v2" else {}
        self._reward_version = reward_version
        self._first = first
        self._buffers = buffers
        self._rows = buffers.observations.view(np.float64)
        num = len(buffers.rewards)
        self._simulations: list[Simulation | None] = [None] * num
        self._tasks: list[Any] = [None] * num
        self._idle: dict[str, list[Simulation]] = {}
        self._placed: dict[str, Simulation] = {}
        self._snapshots: dict[tuple[str, bytes], Snapshot] = {}
        self._running: list[tuple[int, Simulation]] = []
        self._frames = Frames(())
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
        self._run(
            [
                (row, simulation)
                for row, simulation in enumerate(self._simulations)
                if simulation is not None and not truncated[row]
            ]
        )

    def step(self) -> None:
        """Advance every running instance by the action in its row."""
        buffers = self._buffers
        self._rows[:, OUTCOME] = 0.0
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
        diverged = self._simulate()
        self._frames.write(observations)
        observations[:, FRAME_DIM : 2 * FRAME_DIM] = self._previous
        self._previous = observations[:, :FRAME_DIM].copy()
        np.clip(observations, self._low, self._high, out=observations)
        if not np.isfinite(observations).all():
            diverged.update(np.flatnonzero(~np.isfinite(observations).all(1)).tolist())
        valid = self._running
        if diverged:
            valid = [pair for pair in self._running if pair[0] not in diverged]
        if valid:
            self._evaluate(valid, observations, actions)
        for row in diverged:
            self._end_invalid(row)
        self._note_ends()

    def close(self) -> None:
        """Nothing outlives the process."""

    def _simulate(self) -> set[int]:
        """Physics of one step; returns the rows which MuJoCo found unstable and reset, which turns their time back."""
        step, forward, unstable = mujoco.mj_step, mujoco.mj_forward, set()
        for row, simulation in self._running:
            self._enter(row)
            self._place(simulation)
            model, data = simulation.model, simulation.data
            before = data.time
            step(model, data, _SUBSTEPS)
            forward(model, data)
            simulation.steps += 1
            if not data.time > before:
                unstable.add(row)
        return unstable

    def _evaluate(self, valid: list[tuple[int, Simulation]], observations: Array, actions: Array) -> None:
        """Upstream's rewards and infos."""
        frames, grips = observations[:, :FRAME_DIM].tolist(), list(actions[:, 3])
        infos = []
        for row, simulation in valid:
            try:
                if simulation.evaluate is not None:
                    infos.append(simulation.evaluate(frames[row], grips[row]))
                else:
                    infos.append(self._evaluate_upstream(simulation, observations[row], actions[row]))
            except Exception as error:
                raise SimulationError(self._describe(row, "step")) from error
        rows = [row for row, _ in valid]
        table = np.array(infos, np.float64)
        self._rows[rows, OBS] = observations[rows]
        self._rows[rows, INFO] = table
        # Upstream has no other scale than this one.
        self._rows[rows, REWARD] = table[:, -1]

    def _evaluate_upstream(self, simulation: Simulation, observation: Array, action: Array) -> tuple[Any, ...]:
        self._place(simulation)
        simulation.env.curr_path_length = simulation.steps
        _, info = simulation.env.evaluate_state(observation, action)
        return tuple(info[key] for key in INFO_KEYS)

    def _note_ends(self) -> None:
        """Take what has ended out of the running."""
        for row, simulation in self._running:
            if simulation.steps >= simulation.env.max_path_length:
                self._buffers.truncated[row] = True
        if self._buffers.truncated.any():
            truncated = self._buffers.truncated.tolist()
            self._run([pair for pair in self._running if not truncated[pair[0]]])

    def _run(self, running: list[tuple[int, Simulation]]) -> None:
        """Step these from now on."""
        if running != self._running:
            self._running, self._frames = running, Frames(running)

    def _end_invalid(self, row: int) -> None:
        """The observation stays the last stable one."""
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
        maker = self._makers.get(simulation.env_name)
        simulation.evaluate = None if maker is None else maker(env)
        self._mocap[row] = simulation.mocap_pos
        self._mocap_low[row], self._mocap_high[row] = env.mocap_low, env.mocap_high
        self._scale[row] = env.action_scale
        self._low, self._high = env.sawyer_observation_space.low, env.sawyer_observation_space.high
        self._rows[row] = 0.0
        self._rows[row, OBS] = snapshot.observation
        self._previous[row] = env._prev_obs
        buffers = self._buffers
        buffers.terminated[row] = buffers.truncated[row] = False

    def _reset_fully(self, simulation: Simulation, vector: Array) -> Snapshot:
        """Upstream's own reset, from the model as it was compiled."""
        env = simulation.env
        simulation.lay(simulation.compiled)
        env.data = simulation.data
        env._set_task_called = env._freeze_rand_vec = True
        env._last_rand_vec = vector
        observation, _ = env.reset()
        return Snapshot(simulation, observation)

    def _acquire(self, env_name: str) -> Simulation:
        idle = self._idle.get(env_name)
        if idle:
            return idle.pop()
        simulation = Simulation(env_name, self._reward_version)
        self._placed.pop(simulation.path, None)
        return simulation

    def _place(self, simulation: Simulation) -> None:
        """Give the shared model this instance's objects, unless it has them already."""
        if self._placed.get(simulation.path) is not simulation:
            simulation.lay(simulation.placement)
            self._placed[simulation.path] = simulation

    def _enter(self, row: int) -> None:
        """Tell the watching parent which instance is at work, and that there is progress."""
        progress = self._buffers.progress
        progress[0] = row
        progress[1] += 1

    def _describe(self, row: int, verb: str) -> str:
        return f"instance {self._first + row} raised in {verb} with task {self._tasks[row]}"
