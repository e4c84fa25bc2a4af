"""Rotation matrices as quaternions: ``Rotation.from_matrix(m).as_quat()`` without what surrounds SciPy's function.

MuJoCo's matrices come from unit quaternions: SciPy's test of orthogonality always passes, and is skipped where the
compiled function can be called by itself. That function is private, is at this place since SciPy 1.17 and may move;
elsewhere SciPy's public way has the same bits and takes a few microseconds more for each batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[Any]


def _public(matrices: Array) -> Array:
    quaternions: Array = Rotation.from_matrix(matrices).as_quat()
    return quaternions


def _choose() -> Callable[[Array], Array]:
    try:
        from_matrix = importlib.import_module("scipy.spatial.transform._rotation_cy").from_matrix
        from_matrix(np.eye(3)[None], assume_valid=True)
    except (ImportError, AttributeError, TypeError):
        return _public

    def compiled(matrices: Array) -> Array:
        quaternions: Array = from_matrix(matrices, assume_valid=True)
        return quaternions

    return compiled


quaternions: Callable[[Array], Array] = _choose()
"""Quaternions ``[n, 4]``, scalar last, of rotation matrices ``[n, 3, 3]``."""
