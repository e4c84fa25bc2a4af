"""The arrays through which a batch of instances and its stepper talk, in one block that processes can share."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Buffers:
    """What goes in and out of a batch of instances, one row each.

    Attributes:
        actions: ``[instance]`` int64, or ``[instance, number]`` float32.
        observations: ``[instance, obs_dim]`` float32.
        rewards: ``[instance]`` float64.
        terminated: ``[instance]`` bool.
        truncated: ``[instance]`` bool.
        success: ``[instance]`` float64, above 0 for success; NaN where nothing was reported.
        progress: ``[2]`` int64: the row at work, and how many calls have begun.
    """

    actions: NDArray[Any]
    observations: NDArray[np.float32]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.float64]
    progress: NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Sizes of :class:`Buffers`; ``action_dim``, how many numbers an action has, is None for one integer."""

    num: int
    obs_dim: int
    action_dim: int | None

    @classmethod
    def of(cls, num: int, obs_dim: int, action_space: gym.Space[Any]) -> Layout:
        """The layout of ``num`` instances with a flat ``action_space``."""
        return cls(num, obs_dim, action_space.shape[0] if action_space.shape else None)

    def rows(self, num: int) -> Layout:
        """The same for ``num`` instances."""
        return Layout(num, self.obs_dim, self.action_dim)

    @property
    def num_bytes(self) -> int:
        """Size of the memory that :meth:`view` needs."""
        return sum(8 * math.ceil(np.dtype(dtype).itemsize * math.prod(shape) / 8) for dtype, shape in self._fields())

    def view(self, memory: bytearray | mmap.mmap) -> Buffers:
        """Arrays over ``memory``."""
        arrays, offset = [], 0
        for dtype, shape in self._fields():
            arrays.append(np.ndarray(shape, dtype, memory, offset))
            offset += 8 * math.ceil(arrays[-1].nbytes / 8)
        return Buffers(*arrays)

    def _fields(self) -> list[tuple[type, tuple[int, ...]]]:
        num = self.num
        actions: tuple[type, tuple[int, ...]] = (
            (np.int64, (num,)) if self.action_dim is None else (np.float32, (num, self.action_dim))
        )
        rest: list[tuple[type, tuple[int, ...]]] = [
            (np.float32, (num, self.obs_dim)),
            (np.float64, (num,)),
            (np.bool_, (num,)),
            (np.bool_, (num,)),
            (np.float64, (num,)),
            (np.int64, (2,)),
        ]
        return [actions, *rest]
