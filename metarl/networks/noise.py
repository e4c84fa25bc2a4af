"""Noise for the actions of many tasks at once, each task from a stream of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metarl.seeding import GAMMA, row_keys

_BLOCK = 32
"""Draws that are made in advance: they cost a dozen small operations, whatever their number."""


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


_GAMMA, _FIRST, _SECOND = (_signed(number) for number in (GAMMA, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass
class Stream:
    """How far the draws for some tasks have come.

    Attributes:
        seed: for all tasks.
        first_task: index in the meta-batch of the first one.
        first_slot: index of the first of each task's slots.
        drawn: draws so far.
        block: bits that are drawn in advance, ``[draw, ...]``.
        block_start: number of the first of these draws.
        made: what was made of the whole block, by what and of which type.
    """

    seed: int
    first_task: int
    first_slot: int = 0
    drawn: int = 0
    block: Tensor | None = None
    block_start: int = 0
    made: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)


class TaskNoise:
    """Uniform and normal numbers ``[task, ...]``; a task's depend on the seed, its index and its own draws alone.

    Number ``n`` of a draw is SplitMix64's hash of (key of the task, number of the draw, ``n``), as in
    :func:`metarl.seeding.hashed`, on the agent's device and without any state there.

    Args:
        device: where numbers are drawn.
        seed: for all streams, until :meth:`seed` gives another.

    Attributes:
        stream: where the next draw comes from. Whoever lets an agent act for some tasks and for others in turn gives
            each the stream that :meth:`seed` began for them.
    """

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.seed(seed)

    def seed(self, seed: int, first_task: int = 0, first_slot: int = 0) -> None:
        """Begin all streams anew.

        Args:
            seed: for all tasks.
            first_task: index in the meta-batch of the first task that numbers are drawn for, where a meta-batch is
                shared out over processes.
            first_slot: index of the first slot ``[task, slot, ...]`` that numbers are drawn for, where the slots of a
                task are played one after another.
        """
        self.stream = Stream(seed, first_task, first_slot)

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in the open interval (0, 1), ``shape`` beginning with the number of tasks."""
        return self._draw("uniform", shape, dtype)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, ``shape`` beginning with the number of tasks, by inverting their distribution."""
        return self._draw("normal", shape, dtype)

    def integers(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """Whole numbers in ``0 .. high - 1``, int64, ``shape`` beginning with the number of tasks."""
        return (self.uniform(shape, torch.float64) * high).long()

    def _draw(self, kind: Literal["uniform", "normal"], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The next draw, of a block that was made at once: its small operations would cost more than an action."""
        stream = self.stream
        position = stream.drawn - stream.block_start
        if stream.block is None or stream.block.shape[1:] != shape or position >= len(stream.block):
            stream.block, stream.block_start, position = self._make_block(stream, shape), stream.drawn, 0
            stream.made.clear()
        stream.drawn += 1
        made = stream.made.get((kind, dtype))
        if made is None:
            made = _uniform(stream.block, torch.float64 if kind == "normal" else dtype)
            if kind == "normal":
                made = torch.special.ndtri(made).to(dtype)
            stream.made[kind, dtype] = made
        # A copy: who draws may change what was drawn.
        return made[position].clone()

    def _make_block(self, stream: Stream, shape: tuple[int, ...]) -> Tensor:
        num_tasks, number = shape[0], math.prod(shape[1:])
        tasks = np.arange(stream.first_task, stream.first_task + num_tasks, dtype=np.uint64)
        keys = row_keys(stream.seed, tasks)
        key = torch.from_numpy(keys.view(np.int64)).to(self.device)
        draws = torch.arange(stream.drawn, stream.drawn + _BLOCK, device=self.device)
        passed = stream.first_slot * math.prod(shape[2:])
        counters = (draws << 32)[:, None] + torch.arange(passed + 1, passed + number + 1, device=self.device)
        # int64 wraps around as uint64 does; only the shift to the right has to be cleared of the sign.
        z = key[None, :, None] + counters[:, None] * _GAMMA
        z = (z ^ ((z >> 30) & (2**34 - 1))) * _FIRST
        z = (z ^ ((z >> 27) & (2**37 - 1))) * _SECOND
        z = z ^ ((z >> 31) & (2**33 - 1))
        return z.view(_BLOCK, *shape)


def _uniform(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in the open interval (0, 1)."""
    # The middle of each interval: neither 0 nor 1, whose logarithms are infinite.
    digits = 52 if dtype == torch.float64 else 23
    leading: Tensor = (bits >> (64 - digits)) & (2**digits - 1)
    return leading.to(dtype).add_(0.5).mul_(2.0**-digits)
