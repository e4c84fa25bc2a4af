"""Running moments of what an agent sees, part of its checkpoint."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn

from metarl.distributed import current


class RunningMoments(nn.Module):
    """Mean and variance over all valid entries seen so far, in float64 (Chan, Golub, LeVeque, 1979).

    Args:
        size: features.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))
        self._kept: tuple[tuple[Tensor, ...], list[int], tuple[Tensor, Tensor]] | None = None

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor) -> None:
        """Take in ``x`` ``[..., size]`` where ``valid`` ``[...]``, from all ranks of the current group."""
        group = current()
        weight = valid.double()[..., None]
        dims = tuple(range(valid.dim()))
        x = x.double().masked_fill(~valid[..., None], 0.0)
        count, total = group.sum(weight.sum(), x.sum(dims))
        mean = total / count
        (squares,) = group.sum(((x - mean).square() * weight).sum(dims))
        together = self.count + count
        shift = mean - self.mean
        self.squares += squares + shift.square() * self.count * count / together
        self.mean += shift * count / together
        self.count.copy_(together)

    @property
    def std(self) -> Tensor:
        """Standard deviation ``[size]``, float32; 1 before the first update and for constant features."""
        return self._single()[1]

    def normalise(self, x: Tensor) -> Tensor:
        """``(x - mean) / std``, clipped to ±10."""
        mean, std = self._single()
        return ((x - mean) / std).clamp(-10.0, 10.0)

    def _single(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in float32, kept until what they come from changes: agents ask at every step."""
        buffers = (self.count, self.mean, self.squares)
        versions = [buffer._version for buffer in buffers]
        if self._kept is None or self._kept[1] != versions or any(map(operator.is_not, self._kept[0], buffers)):
            std = (self.squares / self.count.clamp(min=1.0)).sqrt()
            found = self.mean.float(), torch.where(std > 1e-6, std, torch.ones_like(std)).float()
            self._kept = buffers, versions, found
        return self._kept[2]
