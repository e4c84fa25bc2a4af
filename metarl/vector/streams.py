"""Random numbers for many instances at once, each from a stream of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.seeding import GAMMA, UInt64, hashed, row_keys

Array = NDArray[Any]
Size = int | tuple[int, ...]


class RowStreams:
    """The methods of ``numpy.random.Generator`` that dynamics need, with one stream for each row.

    What a row draws depends on its seed and on what it has drawn before, and on nothing else: not on the number of
    rows, nor on the others' seeds. Every array is drawn in one operation; its first axis counts the rows.

    Args:
        seeds: ``[row]`` non-negative integers.
    """

    def __init__(self, seeds: Array) -> None:
        self._keys: UInt64 = row_keys(0, np.asarray(seeds, np.uint64))
        self._drawn: UInt64 = np.zeros(len(self._keys), np.uint64)

    def __len__(self) -> int:
        return len(self._keys)

    def reseed(self, rows: Array, seeds: Array) -> None:
        """Begin the streams of some rows anew.

        Args:
            rows: ``[row]`` bool.
            seeds: one for each row that is True.
        """
        self._keys[rows] = row_keys(0, np.asarray(seeds, np.uint64))
        self._drawn[rows] = 0

    def of(self, rows: Array) -> RowStreams:
        """The streams of some rows ``[row]`` bool; hand them to :meth:`update` when they have been drawn from."""
        part = RowStreams(np.zeros(0, np.uint64))
        part._keys, part._drawn = self._keys[rows], self._drawn[rows]
        return part

    def update(self, rows: Array, part: RowStreams) -> None:
        """Note what :meth:`of` these rows was drawn."""
        self._drawn[rows] = part._drawn

    def random(self, size: Size) -> Array:
        """Uniform float64 in [0, 1), of shape ``size``, whose first entry must be the number of rows.

        Raises:
            ValueError: for another number of rows.
        """
        shape = (size,) if isinstance(size, int) else tuple(size)
        if not shape or shape[0] != len(self):
            raise ValueError(
                f"each of the {len(self)} rows has its own stream: size must begin with {len(self)}, got {size}."
            )
        number = math.prod(shape[1:])
        with np.errstate(over="ignore"):
            counters = (self._drawn[:, None] + np.arange(1, number + 1, dtype=np.uint64)).astype(np.uint64)
            places: UInt64 = self._keys[:, None] + counters * np.uint64(GAMMA)
            bits = hashed(places)
        self._drawn += np.uint64(number)
        numbers: Array = (bits >> np.uint64(11)) * 2.0**-53
        return numbers.reshape(shape)

    def uniform(self, low: float | Array, high: float | Array, size: Size) -> Array:
        """Uniform in [low, high)."""
        return low + (high - low) * self.random(size)

    def standard_normal(self, size: Size) -> Array:
        """Standard normal, by Box and Muller's transform: two uniform numbers for each."""
        shape = (size,) if isinstance(size, int) else tuple(size)
        pairs = self.random((*shape, 2))
        # 1 - u lies in (0, 1], whose logarithm is finite.
        return np.asarray(np.sqrt(-2.0 * np.log1p(-pairs[..., 0])) * np.cos(2.0 * np.pi * pairs[..., 1]))

    def normal(self, loc: float | Array = 0.0, scale: float | Array = 1.0, size: Size = ()) -> Array:
        """Normal."""
        return loc + scale * self.standard_normal(size)

    def integers(self, low: int, high: int, size: Size) -> Array:
        """Integers in ``low .. high - 1``; their chances are equal to 2**-53 times their number."""
        return np.asarray(low + np.floor((high - low) * self.random(size)).astype(np.int64))
