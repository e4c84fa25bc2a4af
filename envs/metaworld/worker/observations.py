"""What the hand and the objects of many simulations look like after a step, gathered at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarl.envs.metaworld.worker.rotations import quaternions
from metarl.envs.metaworld.worker.simulation import Simulation

Array = NDArray[Any]

FRAME_DIM = 18
"""Hand, opening of the gripper, and position and quaternion of up to two objects."""


class _Object(NamedTuple):
    """Where upstream's observation takes an object's position and orientation from.

    Attributes:
        position: kind and name of a body, site or geom, e.g. ``"body obj"``.
        offset: upstream adds this to the position.
        orientation: a body's quaternion (``"body obj"``), a rotation matrix to turn into one (``"geom mug matrix"``),
            or four constants.
    """

    position: str
    offset: tuple[float, float, float] = (-0.0, -0.0, -0.0)
    orientation: str | tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


_GEOM = "geom objGeom matrix"
_PUCK = _Object("geom puck", orientation="geom puck matrix")
_BUTTON_FRONT = _Object("body button", (0.0, -0.193, 0.0), "body button")
_BUTTON_TOP = _Object("body button", (0.0, 0.0, 0.193), "body button")
_DOOR = _Object("geom handle", orientation="geom handle matrix")
_MUG = _Object("body obj", orientation="geom mug matrix")
_FREE = _Object("body obj", orientation="body obj")
_TURNED = _Object("body obj", orientation=_GEOM)
_TURNED_GEOM = _Object("geom objGeom", orientation=_GEOM)
_STICK = _Object("body stick", orientation="body stick matrix")

_OBJECTS: dict[str, tuple[_Object, ...]] = {
    "assembly-v3": (_Object("site RoundNut-8", orientation="body RoundNut"),),
    "basketball-v3": (_Object("body bsktball", orientation="body bsktball"),),
    "bin-picking-v3": (_FREE,),
    "box-close-v3": (_Object("body top_link", orientation="body top_link"),),
    "button-press-topdown-v3": (_BUTTON_TOP,),
    "button-press-topdown-wall-v3": (_BUTTON_TOP,),
    "button-press-v3": (_BUTTON_FRONT,),
    "button-press-wall-v3": (_BUTTON_FRONT,),
    "coffee-button-v3": (_Object("site buttonStart", orientation=(1.0, 0.0, 0.0, 0.0)),),
    "coffee-pull-v3": (_MUG,),
    "coffee-push-v3": (_MUG,),
    "disassemble-v3": (_Object("site RoundNut-8", orientation="body RoundNut"),),
    "door-close-v3": (_DOOR,),
    "door-lock-v3": (_Object("site lockStartLock", orientation="body door_link"),),
    "door-open-v3": (_DOOR,),
    "door-unlock-v3": (_Object("site lockStartUnlock", orientation="body door_link"),),
    "drawer-close-v3": (_Object("body drawer_link", (0.0, -0.16, 0.05)),),
    "drawer-open-v3": (_Object("body drawer_link", (0.0, -0.16, 0.0), "body drawer_link"),),
    "faucet-close-v3": (_Object("site handleStartClose", (0.0, 0.0, -0.01), "body faucetBase"),),
    "faucet-open-v3": (_Object("site handleStartOpen", (0.0, 0.0, -0.01), "body faucetBase"),),
    "hammer-v3": (
        _Object("body hammer", orientation="body hammer"),
        _Object("body nail_link", orientation="body nail_link"),
    ),
    "hand-insert-v3": (_FREE,),
    "handle-press-side-v3": (_Object("site handleStart"),),
    "handle-press-v3": (_Object("site handleStart"),),
    "handle-pull-side-v3": (_Object("site handleCenter"),),
    "handle-pull-v3": (_Object("site handleRight"),),
    "lever-pull-v3": (_Object("site leverStart", orientation=_GEOM),),
    "peg-insert-side-v3": (_Object("site pegGrasp", orientation="site pegGrasp matrix"),),
    "peg-unplug-side-v3": (_Object("site pegEnd", orientation="body plug1"),),
    "pick-out-of-hole-v3": (_FREE,),
    "pick-place-v3": (_TURNED,),
    "pick-place-wall-v3": (_TURNED_GEOM,),
    "plate-slide-back-side-v3": (_PUCK,),
    "plate-slide-back-v3": (_PUCK,),
    "plate-slide-side-v3": (_PUCK,),
    "plate-slide-v3": (_PUCK,),
    "push-back-v3": (_TURNED_GEOM,),
    "push-v3": (_TURNED,),
    "push-wall-v3": (_TURNED_GEOM,),
    "reach-v3": (_TURNED,),
    "reach-wall-v3": (_TURNED,),
    "shelf-place-v3": (_TURNED,),
    "soccer-v3": (_Object("body soccer_ball", orientation="body soccer_ball matrix"),),
    "stick-pull-v3": (_STICK, _Object("site insertion")),
    "stick-push-v3": (_STICK, _Object("site insertion", (0.0, 0.09, 0.0))),
    "sweep-into-v3": (_TURNED,),
    "sweep-v3": (_FREE,),
    "window-close-v3": (_Object("site handleCloseStart"),),
    "window-open-v3": (_Object("site handleOpenStart"),),
}
"""All tasks but dial-turn, which computes where its object is."""


class Frames:
    """Live views into simulations and where their numbers go.

    Args:
        running: row and simulation of each instance to observe.
    """

    def __init__(self, running: Sequence[tuple[int, Simulation]]) -> None:
        self._rows = np.array([row for row, _ in running], np.intp)
        self._views: list[Array] = []
        self._offsets = np.full((len(running), FRAME_DIM - 4), -0.0)
        self._matrices: list[Array] = []
        self._turned: list[int] = []
        self._others: list[tuple[int, Any]] = []
        for index, (row, simulation) in enumerate(running):
            data = simulation.fast
            self._views += [data.body(name).xpos for name in ("hand", "rightclaw", "leftclaw")]
            objects = _OBJECTS.get(simulation.env_name)
            if objects is None:
                self._others.append((row, simulation.env))
            for start, thing in zip((0, 7), objects or (), strict=False):
                self._add(data, index, start, thing)
            self._views.append(np.zeros(FRAME_DIM - 4 - 7 * len(objects or ())))

    def _add(self, data: Any, index: int, start: int, thing: _Object) -> None:
        kind, name = thing.position.split()
        self._views.append(getattr(data, kind)(name).xpos)
        self._offsets[index, start : start + 3] = thing.offset
        orientation = thing.orientation
        if not isinstance(orientation, str):
            self._views.append(np.array(orientation))
            return
        kind, name, *matrix = orientation.split()
        if matrix:
            # Only first objects: its quaternion is written over these.
            self._matrices.append(getattr(data, kind)(name).xmat)
            self._turned.append(index)
            self._views.append(np.zeros(4))
        else:
            self._views.append(getattr(data, kind)(name).xquat)

    def write(self, table: Array) -> None:
        """Upstream's ``_get_curr_obs_combined_no_goal`` of these instances into ``table[:, :18]``, until now zeros."""
        if not len(self._rows):
            return
        # Hand, right claw, left claw, objects.
        seen = np.concatenate(self._views).reshape(len(self._rows), 9 + FRAME_DIM - 4)
        objects = seen[:, 9:]
        # Adding the negative zero changes nothing.
        objects += self._offsets
        if self._matrices:
            matrices = np.concatenate(self._matrices).reshape(-1, 3, 3)
            objects[self._turned, 3:7] = quaternions(matrices)
        apart = seen[:, 3:6] - seen[:, 6:9]
        # NumPy's dot product of each row with itself, as in upstream's norm.
        opened = np.sqrt(np.vecdot(apart, apart)) / 0.1
        table[self._rows, :3] = seen[:, :3]
        table[self._rows, 3] = np.clip(opened, 0.0, 1.0)
        table[self._rows, 4:FRAME_DIM] = objects
        for row, env in self._others:
            table[row, 4:7], table[row, 7:11] = env._get_pos_objects(), env._get_quat_objects()
