"""Noise for the actions of many tasks at once, each task from a stream of its own."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from metarl.seeding import GAMMA, row_keys

_BLOCK = 32
"""Draws that are made in advance: they cost a dozen small operations, whatever their number."""


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


_GAMMA, _FIRST, _SECOND = (_signed(number) for number in (GAMMA, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class TaskNoise:
    """Uniform and normal numbers ``[task, ...]``; a task's depend on the seed, its index and its own draws alone.

    Number ``n`` of a draw is SplitMix64's hash of (key of the task, number of the draw, ``n``), as in
    :func:`metarl.seeding.hashed`, on the agent's device and without any state there.

    Args:
        device: where numbers are drawn.
        seed: for all streams, until :meth:`seed` gives another.
    """

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.seed(seed)

    def seed(self, seed: int, first_task: int = 0) -> None:
        """Begin all streams anew.

        Args:
            seed: for all tasks.
            first_task: index in the meta-batch of the first task that numbers are drawn for, where a meta-batch is
                shared out over processes.
        """
        self._seed, self._first_task = seed, first_task
        self._drawn = 0
        self._block: Tensor | None = None
        self._block_start = 0

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in the open interval (0, 1), ``shape`` beginning with the number of tasks."""
        # The middle of each interval: neither 0 nor 1, whose logarithms are infinite.
        bits = 52 if dtype == torch.float64 else 23
        leading: Tensor = (self._bits(shape) >> (64 - bits)) & (2**bits - 1)
        return leading.to(dtype).add_(0.5).mul_(2.0**-bits)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, ``shape`` beginning with the number of tasks, by inverting their distribution."""
        quantiles: Tensor = torch.special.ndtri(self.uniform(shape, torch.float64))
        return quantiles.to(dtype)

    def integers(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """Whole numbers in ``0 .. high - 1``, int64, ``shape`` beginning with the number of tasks."""
        return (self.uniform(shape, torch.float64) * high).long()

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        """64 random bits for each number of one draw."""
        block = self._block
        position = self._drawn - self._block_start
        if block is None or block.shape[1:] != shape or position >= len(block):
            block, self._block_start, position = self._make_block(shape), self._drawn, 0
            self._block = block
        self._drawn += 1
        return block[position]

    def _make_block(self, shape: tuple[int, ...]) -> Tensor:
        num_tasks, number = shape[0], math.prod(shape[1:])
        keys = row_keys(self._seed, np.arange(self._first_task, self._first_task + num_tasks, dtype=np.uint64))
        key = torch.from_numpy(keys.view(np.int64)).to(self.device)
        draws = torch.arange(self._drawn, self._drawn + _BLOCK, device=self.device)
        counters = (draws << 32)[:, None] + torch.arange(1, number + 1, device=self.device)
        # int64 wraps around as uint64 does; only the shift to the right has to be cleared of the sign.
        z = key[None, :, None] + counters[:, None] * _GAMMA
        z = (z ^ ((z >> 30) & (2**34 - 1))) * _FIRST
        z = (z ^ ((z >> 27) & (2**37 - 1))) * _SECOND
        z = z ^ ((z >> 31) & (2**33 - 1))
        return z.view(_BLOCK, *shape)
