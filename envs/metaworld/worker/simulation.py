"""One simulation of the Meta-World pool, and its state right after a reset."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

from metarl.envs.metaworld.worker import patches

Array = NDArray[Any]

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
"""Everything that a further step depends on, the solver's warm start included."""

_VIEWED = ("xpos", "xquat", "xmat", "site_xpos", "geom_xpos", "qpos", "qvel", "mocap_pos")
"""Arrays of ``MjData`` into which an environment may keep a live view."""


class Simulation:
    """One of upstream's environments over a model that all instances of its task share.

    Attributes:
        env: upstream's environment; between resets its ``data`` is the fast stand-in.
        compiled: ``body_pos`` and ``site_pos`` of the model as it was compiled.
        placement: the same two as this instance's reset left them.
        evaluate: this episode's reward, if there is one besides upstream's.
        steps: taken in this episode.
    """

    def __init__(self, env_name: str, reward_version: str) -> None:
        self.env_name = env_name
        self.env: Any = ALL_V3_ENVIRONMENTS[env_name](reward_function_version=reward_version)
        self.model, self.data = self.env.model, self.env.data
        self.fast = patches.FastData(self.data)
        self.path: str = self.env.fullpath
        self.body_pos, self.site_pos = self.model.body_pos, self.model.site_pos
        self.compiled = self.placement = self.body_pos.copy(), self.site_pos.copy()
        self.mocap_pos, self.mocap_quat, self.ctrl = self.data.mocap_pos[0], self.data.mocap_quat[0], self.data.ctrl
        self.evaluate: Callable[[list[float], np.float32], tuple[Any, ...]] | None = None
        self.steps = 0

    def lay(self, placement: tuple[Array, Array]) -> None:
        """Move the shared model's bodies and sites."""
        self.body_pos[:], self.site_pos[:] = placement


class Snapshot:
    """A simulation right after a reset: restoring it is the reset, a hundred times faster."""

    def __init__(self, simulation: Simulation, observation: Array) -> None:
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

    def restore(self, simulation: Simulation) -> None:
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
