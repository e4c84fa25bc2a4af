"""Checks of shapes. They look at no value, so that no device waits for them.

A mask or a value of another shape often broadcasts, and the result is wrong in silence.
"""

from __future__ import annotations

from torch import Tensor


def require_shape(where: str, shape: tuple[int, ...], axes: str, **tensors: Tensor) -> None:
    """Refuse tensors of another shape than ``shape``.

    Args:
        where: the function that was called.
        shape: what is expected.
        axes: names of its axes, e.g. ``"[task, sample]"``.
        **tensors: arguments of the function, by name.

    Raises:
        ValueError: with the function, the first such argument, its shape and the expected one.
    """
    for name, x in tensors.items():
        if x.shape != shape:
            raise ValueError(f"{where}: {name} must have the shape {axes} = {shape}, got {tuple(x.shape)}.")


def require_rank(where: str, rank: int, axes: str, **tensors: Tensor) -> None:
    """Refuse tensors whose number of axes is not ``rank``; arguments and errors as in :func:`require_shape`."""
    for name, x in tensors.items():
        if x.dim() != rank:
            raise ValueError(f"{where}: {name} must have {rank} axes {axes}, got the shape {tuple(x.shape)}.")
