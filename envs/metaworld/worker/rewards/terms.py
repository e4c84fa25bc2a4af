"""Terms of upstream's rewards on Python floats: the same operations in the same order, and so the same bits.

Upstream computes with NumPy on scalars and vectors of three, at a microsecond an operation. On floats an operation
costs a twentieth of that: push's reward takes 2.7 us an instance. NumPy's form over all instances of a task takes 31 us
for each of two, 3.7 for 20, 1.9 for 50 and 1.2 for 100, beside 60 and more of physics; and it has other bits, as NumPy
squares an array by multiplying and a scalar by ``pow``. So it is not used.

Types carry over: an action is ``float32``, and NumPy 2 rounds a ``float32`` times a Python float to ``float32``, but
times a ``float64`` scalar not. Where upstream mixes them, these functions get the same types and return the same.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from metaworld.utils import reward_utils
from numpy.typing import NDArray

Array = NDArray[Any]

Number = Any
"""A Python float, or the ``float32`` or ``float64`` scalar that upstream has in its place."""

Evaluation = tuple[Number, ...]
"""Upstream's ``info`` in the order of ``INFO_KEYS``; its last number is the reward."""

Evaluate = Callable[[list[float], np.float32], Evaluation]
"""Maps the frame (``FRAME_DIM`` numbers, clipped as upstream's observation) and the action's grip to an evaluation."""

Point = Sequence[float]
"""Three coordinates, metres."""

Grasp = Callable[[Point, Point, Number], Number]
"""Maps the object, the place between the fingers' tips and the action's grip to a reward for grasping."""

_LONG_TAIL = math.sqrt(1 / 0.1 - 1)
_GAUSSIAN = float(np.sqrt(-2 * np.log(0.1)))
"""Scales of upstream's sigmoids at its default value at the margin."""

_sqrt = math.sqrt


def sums_plainly(num_vectors: int = 2000) -> bool:
    """Whether NumPy's dot products of two to four numbers are x·x + y·y + z·z + w·w on this machine, each step rounded.

    They come from the BLAS library's kernel for the machine's processor, which may fuse multiplying and adding.
    """
    vectors = np.random.default_rng(0).normal(size=(num_vectors, 4))
    return all(
        [float(vector[:n].dot(vector[:n])) for n in (2, 3, 4)]
        == [x * x + y * y, x * x + y * y + z * z, x * x + y * y + z * z + w * w]
        for vector, (x, y, z, w) in zip(vectors, vectors.tolist(), strict=True)
    )


def norm(vector: Array) -> float:
    """``np.linalg.norm``, for what is computed once in an episode."""
    return float(np.linalg.norm(vector))


def length_by_floats(x: float, y: float, z: float = 0.0, w: float = 0.0) -> float:
    """``np.linalg.norm`` of a vector where BLAS sums plainly."""
    return _sqrt(x * x + y * y + z * z + w * w)


def length_by_blas(*components: float) -> float:
    """``np.linalg.norm`` of a vector of two to four numbers where BLAS sums otherwise: by its own dot product."""
    pack, memory, vector = _VECTORS[len(components)]
    pack(memory, 0, *components)
    return _sqrt(vector.dot(vector))


def _vector(num: int) -> tuple[Callable[..., None], bytearray, Array]:
    """A vector, its memory, and what writes numbers there: an array is filled faster so than through NumPy."""
    memory = bytearray(8 * num)
    return struct.Struct(f"{num}d").pack_into, memory, np.frombuffer(memory)


_VECTORS = {num: _vector(num) for num in (2, 3, 4)}

length: Callable[..., float] = length_by_floats if sums_plainly() else length_by_blas
"""``np.linalg.norm`` of a vector of two to four numbers, on every processor: chosen once, by trial."""


def distance(a: Point, b: Point) -> float:
    """``np.linalg.norm(a - b)``."""
    return length(a[0] - b[0], a[1] - b[1], a[2] - b[2])


def long_tail(x: float, lower: float, upper: float, margin: float) -> float:
    """Upstream's ``tolerance`` with its most frequent sigmoid.

    Raises:
        ValueError: for a negative margin.
    """
    if not margin > 0:
        return float(reward_utils.tolerance(x, (lower, upper), margin, "long_tail"))
    if lower <= x <= upper:
        return 1.0
    away = (lower - x if x < lower else x - upper) / margin
    # A power, as upstream writes it: it may differ from the product in the last bit.
    return 1 / ((away * _LONG_TAIL) ** 2 + 1)


def gaussian(x: float, upper: float, margin: float) -> float:
    """Upstream's ``tolerance`` from 0 to ``upper`` with its default sigmoid.

    Raises:
        ValueError: for a negative margin.
    """
    if not margin > 0:
        return float(reward_utils.tolerance(x, (0, upper), margin, "gaussian"))
    if 0 <= x <= upper:
        return 1.0
    away = (0 - x if x < 0 else x - upper) / margin
    # NumPy's exponential and the C library's do not always agree.
    return float(np.exp(-0.5 * (away * _GAUSSIAN) ** 2))


def hamacher(a: Number, b: Number) -> Number:
    """Upstream's ``hamacher_product``, a·b / (a + b - a·b).

    Raises:
        ValueError: outside the range from 0 to 1.
    """
    if not (0.0 <= a <= 1.0 and 0.0 <= b <= 1.0):
        raise ValueError(f"hamacher_product takes numbers from 0 to 1, got {a} and {b}.")
    product = a * b
    denominator = a + b - product
    return product / denominator if denominator > 0 else 0


def effort(grip: np.float32) -> float:
    """The action's grip, from 0 (open) to 1 (closed)."""
    return float((np.float32(min(max(float(grip), -1.0), 1.0)) + 1.0) / 2.0)


def funnel(radius: float, threshold: float, slope: float, top: float) -> float:
    """How high the hand must be at this distance from an object's axis, metres."""
    return 0.0 if radius <= threshold else float(slope * np.log(radius - threshold) + top)


def above(height: float, floor: float, margin: float) -> float:
    """1 at and above the floor, less below it."""
    return 1.0 if height >= floor else long_tail(floor - height, 0.0, 0.01, margin)


def upright(frame: list[float], margin: float, ideal: Sequence[float] = (0.707, 0.0, 0.0, 0.707)) -> float:
    """1 where the first object has the ideal orientation, 0 from an error of ``margin`` on."""
    w, x, y, z = frame[7:11]
    error = length(w - ideal[0], x - ideal[1], y - ideal[2], z - ideal[3])
    return max(1.0 - error / margin, 0.0)


def prism(point: Point, zero: Point, one: Point) -> Number:
    """Upstream's ``rect_prism_tolerance``: inside the prism a ``float64`` that grows from 0 to 1, outside 1.0."""
    scale = 1.0
    for at, low, high in zip(point, zero, one, strict=True):
        if not (low <= at <= high if high >= low else high <= at <= low):
            return 1.0
        scale *= (at - low) / (high - low)
    return np.float64(scale)


def fingertips(env: Any) -> Callable[[], Point]:
    """The place between the tips of the fingers, now."""
    right, left = env.data.site("rightEndEffector").xpos, env.data.site("leftEndEffector").xpos

    def center() -> Point:
        x, y, z = right.tolist()
        a, b, c = left.tolist()
        return (x + a) / 2.0, (y + b) / 2.0, (z + c) / 2.0

    return center


def caging(
    env: Any,
    obj_radius: float,
    pad_thresh: float,
    xz_thresh: float,
    *,
    density: Literal["low", "medium", "high"] = "high",
    reach_radius: float = 0.01,
    full_effort: float = 1.0,
    init: Array | None = None,
) -> Grasp:
    """Upstream's general ``_gripper_caging_reward``; ``init`` is where the object began, if not ``obj_init_pos``."""
    left_pad, right_pad = env.data.body("leftpad").xpos, env.data.body("rightpad").xpos
    init = env.obj_init_pos if init is None else init
    init_y = init.item(1)
    xz_margin = norm(init[[0, 2]] - env.init_tcp[[0, 2]]) - xz_thresh
    reach_margin = abs(norm(init - env.init_tcp) - reach_radius)

    def pad_caging(pad_y: float, obj_y: float) -> float:
        return long_tail(abs(pad_y - obj_y), obj_radius, pad_thresh, abs(abs(pad_y - init_y) - pad_thresh))

    def grasp(obj: Point, tcp: Point, grip: Number) -> Number:
        y = hamacher(pad_caging(left_pad.item(1), obj[1]), pad_caging(right_pad.item(1), obj[1]))
        caged = hamacher(y, long_tail(length(tcp[0] - obj[0], tcp[2] - obj[2]), 0, xz_thresh, xz_margin))
        gripping = min(max(0, grip), full_effort) / full_effort if caged > 0.97 else 0.0
        both = hamacher(caged, gripping)
        if density == "high":
            return (both + caged) / 2
        if density == "medium":
            return (both + long_tail(distance(obj, tcp), 0, reach_radius, reach_margin)) / 2
        return both

    return grasp


def caging_by_pads(env: Any, obj_radius: float, xz_thresh: float, grip_width: float | None = None) -> Grasp:
    """The ``_gripper_caging_reward`` that pick-place, sweep, sweep-into, push-back and soccer have of their own.

    With ``grip_width`` the pads grip when they are that near the object, without it when the action closes them.
    """
    left_pad, right_pad = env.data.body("leftpad").xpos, env.data.body("rightpad").xpos
    # Live views in upstream: these are where the pads are now.
    left_init, right_init = env.init_left_pad, env.init_right_pad
    init, init_tcp = env.obj_init_pos, env.init_tcp
    xz_margin = norm(init[[0, 2]] - init_tcp[[0, 2]]) - xz_thresh

    def grasp(obj: Point, tcp: Point, grip: Number) -> Number:
        obj_x, obj_y, obj_z = obj
        right, left = obj_y - right_pad.item(1), left_pad.item(1) - obj_y
        right_margin = abs(abs(obj_y - right_init.item(1)) - 0.05)
        left_margin = abs(abs(obj_y - left_init.item(1)) - 0.05)
        y = hamacher(long_tail(right, obj_radius, 0.05, right_margin), long_tail(left, obj_radius, 0.05, left_margin))
        caged = hamacher(y, long_tail(length(tcp[0] - obj_x, tcp[2] - obj_z), 0, xz_thresh, xz_margin))
        if grip_width is None:
            return (hamacher(caged, min(max(0, grip), 1) if caged > 0.97 else 0.0) + caged) / 2
        gripping = 0.0
        if caged > 0.95:
            upper = obj_radius + grip_width
            gripping = hamacher(
                long_tail(right, obj_radius, upper, right_margin), long_tail(left, obj_radius, upper, left_margin)
            )
        return (caged + gripping) / 2

    return grasp
