"""Value-identical, faster versions of the helpers inside metaworld, installed in the pool's worker processes only.

Each one returns the bits and the type of what it replaces (the type matters: NumPy 2 rounds a ``float32`` action times
a Python float to ``float32``, and times a ``float64`` scalar not). Where an argument is not of the usual kind, it hands
over to upstream's function. ``tests/test_metaworld_vector_env.py`` holds the proof.
"""

from __future__ import annotations

import ctypes
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import metaworld.sawyer_xyz_env as base
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from numpy.typing import NDArray

from metarl.envs.metaworld.worker.rotations import quaternions

Array = NDArray[Any]

_norm, _clip, _hstack, _tolerance = np.linalg.norm, np.clip, np.hstack, reward_utils.tolerance
_concatenate, _float64, _FLOAT64 = np.concatenate, np.float64, np.dtype(np.float64)
_LONG_TAIL = math.sqrt(1 / 0.1 - 1)
"""The scale of upstream's ``long_tail`` sigmoid at its default value at the margin."""

_XZ = [0, 2]
_APART = 1 << 30
"""A collision bit that no geom of upstream's has."""
_POINT = "metarl_point_"

_models: dict[str, tuple[mujoco.MjModel, Array, Array]] = {}
"""Compiled models by path, with ``body_pos`` and ``site_pos`` as compiled: all that upstream's resets change."""


def install() -> None:
    """Replace upstream's helpers in this process."""
    numpy = _fast_numpy()
    for module in {cls.__module__ for cls in ALL_V3_ENVIRONMENTS.values()}:
        names = vars(sys.modules[module])
        names["np"] = numpy
        if "Rotation" in names:
            names["Rotation"] = _Rotation
    replacements: tuple[tuple[Any, dict[str, Any]], ...] = (
        (base, {"np": numpy}),
        (reward_utils, {"tolerance": tolerance}),
        (
            MujocoEnv,
            {
                "_initialize_simulation": _initialize_simulation,
                "_step_mujoco_simulation": _step_mujoco_simulation,
                "get_body_com": _get_body_com,
            },
        ),
        (
            SawyerXYZEnv,
            {
                "get_endeff_pos": _get_endeff_pos,
                "tcp_center": property(_tcp_center),
                "touching_object": _touching_object,
                "_get_site_pos": _get_site_pos,
                "_gripper_caging_reward": _gripper_caging_reward,
            },
        ),
    )
    for owner, changes in replacements:
        for name, replacement in changes.items():
            setattr(owner, name, replacement)


class FastData:
    """Named access to an ``MjData``, each name looked up once; every other attribute is the ``MjData``'s own."""

    def __init__(self, data: mujoco.MjData) -> None:
        self._data = data
        for kind in ("body", "geom", "site", "joint"):
            setattr(self, kind, self._finder(kind))
        # These arrays stay where they are for the life of the data.
        for name in ("qpos", "qvel", "xpos", "xquat", "site_xpos", "geom_xpos", "mocap_pos", "mocap_quat", "ctrl"):
            setattr(self, name, getattr(data, name))
        self._right_tip = data.site("rightEndEffector").xpos
        self._left_tip = data.site("leftEndEffector").xpos

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    @property
    def tcp_center(self) -> Array:
        """Between the fingers' tips."""
        center: Array = (self._right_tip + self._left_tip) / 2.0
        return center

    def _finder(self, kind: str) -> Callable[[str], Any]:
        find = getattr(self._data, kind)
        known: dict[str, _Named] = {}

        def named(name: str) -> Any:
            try:
                return known[name]
            except KeyError:
                return known.setdefault(name, _Named(find(name)))

        return named


class _Named:
    """One body, geom, site or joint; its arrays are live views into the data."""

    def __init__(self, accessor: Any) -> None:
        self._accessor = accessor

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._accessor, name)
        self.__dict__[name] = value
        return value


def _initialize_simulation(self: Any) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Compile a model once: all its instances share it, and what a reset changes in it is exchanged before each use."""
    if self.fullpath not in _models:
        model = lean_model(self.fullpath)
        _return_free_memory()
        _models[self.fullpath] = model, model.body_pos.copy(), model.site_pos.copy()
    model, body_pos, site_pos = _models[self.fullpath]
    model.body_pos[:], model.site_pos[:] = body_pos, site_pos
    return model, mujoco.MjData(model)


def lean_model(path: str) -> mujoco.MjModel:
    """Compile a model without textures and without what can only be seen: 3 MB instead of 20, and faster kinematics.

    MuJoCo itself puts the inertia of what it discards into the bodies. Rewards read some of the visible geoms by name,
    so these stay. And where a body would be left with one of its geoms, a point joins it: between two bodies of one
    geom each MuJoCo does not test whether their boxes overlap, and its convex collider may then find a contact, deep
    and wrong, where there is none.
    """
    spec = mujoco.MjSpec.from_file(path)
    spec.compiler.discardvisual = True
    kept = [geom for geom in spec.geoms if geom.name and not _collides(geom)]
    for body in spec.bodies:
        left = [geom for geom in body.geoms if geom.name or _collides(geom)]
        if len(left) == 1 < len(body.geoms) and _collides(left[0]):
            # Its place keeps the body's box as it is.
            point = {"type": mujoco.mjtGeom.mjGEOM_SPHERE, "size": [1e-9, 0, 0], "mass": 0.0, "margin": 0.0, "gap": 0.0}
            name = f"{_POINT}{len(kept)}"
            kept.append(body.add_geom(name=name, pos=left[0].pos, contype=0, conaffinity=0, **point))
    for geom in kept:
        # Never used by any other geom: for the compiler this one can collide, though with nothing.
        geom.contype = _APART
    model = spec.compile()
    for geom in kept:
        compiled = model.geom(geom.name)
        compiled.contype = 0
        model.body_contype[compiled.bodyid] &= ~_APART
    return model


def _collides(geom: mujoco.MjsGeom) -> bool:
    return bool(geom.contype or geom.conaffinity)


def _return_free_memory() -> None:
    """Compiling leaves twice a model's size (20 MB) behind as free pieces; only glibc has a way to give them back."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _step_mujoco_simulation(self: Any, ctrl: Any, n_frames: int) -> None:
    """Without upstream's ``mj_rnePostConstraint``, whose results nothing reads."""
    data = self.data
    data.ctrl[:] = ctrl
    mujoco.mj_step(self.model, getattr(data, "_data", data), nstep=n_frames)


def _get_body_com(self: Any, body_name: str) -> Array:
    position: Array = self.data.body(body_name).xpos
    return position


def _get_endeff_pos(self: Any) -> Array:
    position: Array = self.data.body("hand").xpos
    return position


def _tcp_center(self: Any) -> Array:
    data = self.data
    if type(data) is FastData:
        return data.tcp_center
    right, left = data.site("rightEndEffector"), data.site("leftEndEffector")
    center: Array = (right.xpos + left.xpos) / 2.0
    return center


def _get_site_pos(self: Any, site_name: str) -> Array:
    position: Array = self.data.site(site_name).xpos.copy()
    return position


def _touching_object(self: Any, object_geom_id: int) -> bool:
    """Both pads press on the object; forces are added in the contacts' order, as upstream's ``sum`` does."""
    data = self.data
    contact = data.contact
    pairs = contact.geom.tolist()
    left_pad, right_pad = data.geom("leftpad_geom").id, data.geom("rightpad_geom").id
    left: Any = 0
    right: Any = 0
    for index, pair in enumerate(pairs):
        if object_geom_id not in pair:
            continue
        if left_pad in pair:
            left += data.efc_force[contact.efc_address[index]]
        if right_pad in pair:
            right += data.efc_force[contact.efc_address[index]]
    return bool(left > 0 and right > 0)


class _Rotation:
    """SciPy's ``Rotation``, as far as upstream uses it: ``Rotation.from_matrix(m).as_quat()``."""

    __slots__ = ("_quat",)

    def __init__(self, quat: Array) -> None:
        self._quat = quat

    @classmethod
    def from_matrix(cls, matrix: Array) -> _Rotation:
        return cls(quaternions(matrix[None])[0])

    def as_quat(self) -> Array:
        return self._quat


def tolerance(
    x: Any,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: Any = 0.0,
    sigmoid: Any = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """Upstream's ``tolerance`` for one double and the sigmoid that nearly every reward uses."""
    lower, upper = bounds
    if (
        sigmoid != "long_tail"
        or value_at_margin != 0.1
        or type(x) not in _DOUBLES
        or type(margin) not in _DOUBLES
        or not margin > 0
        or lower > upper
    ):
        return _tolerance(x, bounds, margin, sigmoid, value_at_margin)
    x = float(x)
    if lower <= x <= upper:
        return 1.0
    distance = (lower - x if x < lower else x - upper) / float(margin)
    return 1 / ((distance * _LONG_TAIL) ** 2 + 1)


_DOUBLES = frozenset((float, np.float64))


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """``np.linalg.norm`` of one short vector: NumPy's own dot product, and a root that IEEE rounds in one way only."""
    if axis is None and (ord is None or ord == 2) and type(x) is np.ndarray and x.ndim == 1 and x.dtype == _FLOAT64:
        return _float64(math.sqrt(x.dot(x)))
    return _norm(x, ord, axis, keepdims)


def clip(a: Any, a_min: Any = None, a_max: Any = None, *rest: Any, **named: Any) -> Any:
    """``np.clip`` of one NumPy scalar between Python numbers, which keeps the scalar's type."""
    kind = type(a)
    if not rest and not named and kind in _SCALARS and type(a_min) in _NUMBERS and type(a_max) in _NUMBERS:
        return kind(a_min) if a < a_min else kind(a_max) if a > a_max else a
    return _clip(a, a_min, a_max, *rest, **named)


_SCALARS = frozenset((np.float32, np.float64))
_NUMBERS = frozenset((int, float))


def hstack(tup: Any, **named: Any) -> Array:
    """``np.hstack`` of vectors is their concatenation."""
    if not named and all(type(part) is np.ndarray and part.ndim == 1 for part in tup):
        return _concatenate(tup)
    stacked: Array = _hstack(tup, **named)
    return stacked


def _fast_numpy() -> types.ModuleType:
    """A stand-in for the name ``np`` in upstream's modules: NumPy with the functions above in it."""
    module = types.ModuleType("numpy")
    vars(module).update(vars(np))
    linalg = types.ModuleType("numpy.linalg")
    vars(linalg).update(vars(np.linalg))
    vars(linalg)["norm"] = norm
    vars(module).update(linalg=linalg, clip=clip, hstack=hstack)
    return module


def _gripper_caging_reward(
    self: Any,
    action: Array,
    obj_pos: Array,
    obj_radius: float,
    pad_success_thresh: float,
    object_reach_radius: float,
    xz_thresh: float,
    desired_gripper_effort: float = 1.0,
    high_density: bool = False,
    medium_density: bool = False,
) -> float:
    """Upstream's reward for grasping, step by step on scalars instead of arrays of two."""
    if high_density and medium_density:
        raise ValueError("Can only be either high_density or medium_density")
    hamacher = reward_utils.hamacher_product
    body = self.data.body
    init = self.obj_init_pos
    obj_y, init_y = float(obj_pos[1]), float(init[1])
    caging_lr = [
        tolerance(
            abs(pad - obj_y),
            bounds=(obj_radius, pad_success_thresh),
            margin=abs(abs(pad - init_y) - pad_success_thresh),
            sigmoid="long_tail",
        )
        for pad in (float(body("leftpad").xpos[1]), float(body("rightpad").xpos[1]))
    ]
    caging_y = hamacher(*caging_lr)
    tcp = self.tcp_center
    margin = norm(init[_XZ] - self.init_tcp[_XZ])
    margin -= xz_thresh
    caging_xz = tolerance(norm(tcp[_XZ] - obj_pos[_XZ]), bounds=(0, xz_thresh), margin=margin, sigmoid="long_tail")
    gripper_closed = min(max(0, action[-1]), desired_gripper_effort) / desired_gripper_effort
    caging = hamacher(caging_y, float(caging_xz))
    gripping = gripper_closed if caging > 0.97 else 0.0
    caging_and_gripping = hamacher(caging, gripping)
    if high_density:
        caging_and_gripping = (caging_and_gripping + caging) / 2
    if medium_density:
        tcp_to_obj = norm(obj_pos - tcp)
        tcp_to_obj_init = norm(init - self.init_tcp)
        reach = tolerance(
            tcp_to_obj,
            bounds=(0, object_reach_radius),
            margin=abs(tcp_to_obj_init - object_reach_radius),
            sigmoid="long_tail",
        )
        caging_and_gripping = (caging_and_gripping + float(reach)) / 2
    return caging_and_gripping
