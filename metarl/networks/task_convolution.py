"""Convolutions whose weights differ from task to task, as products of matrices.

Under vmap torch makes one grouped convolution of them, which on CPUs is no faster than a loop over tasks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def task_convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """The 3 x 3 convolution of each task, with a margin of zeros: torch's ``conv2d`` with ``padding=1``.

    Args:
        x: ``[task, example, height, width, channel]``.
        weight: ``[task, filter, channel, 3, 3]``.
        bias: ``[task, filter]``.
        stride: in both directions.

    Returns:
        ``[task, example, height, width, filter]``, in the precision of ``x``.
    """
    num_tasks, num_examples = x.shape[:2]
    patches: Tensor = _Patches.apply(x.flatten(0, 1), stride)  # type: ignore[no-untyped-call]
    height, width, size = patches.shape[1:]
    matrix = weight.permute(0, 3, 4, 2, 1).reshape(num_tasks, size, -1).to(x.dtype)
    out = torch.baddbmm(bias[:, None].to(x.dtype), patches.reshape(num_tasks, -1, size), matrix)
    return out.view(num_tasks, num_examples, height, width, -1)


class _Patches(torch.autograd.Function):
    """The 3 x 3 surroundings ``[image, row, column, 9 * channel]`` of every place where a filter is put."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.stride, ctx.sides = stride, x.shape[1:3]
        num_images, height, width, channels = x.shape
        padded = x.new_zeros(num_images, height + 2, width + 2, channels)
        padded[:, 1:-1, 1:-1] = x
        image, row, column, _ = padded.stride()
        # Three columns beside each other lie in one piece, so that whole rows of a patch are copied at once.
        shape = (num_images, (height - 1) // stride + 1, (width - 1) // stride + 1, 3, 3 * channels)
        patches = padded.as_strided(shape, (image, stride * row, stride * column, row, 1))
        return patches.reshape(*shape[:3], 9 * channels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Sums.apply(gradients[0], ctx.stride, *ctx.sides), None  # type: ignore[no-untyped-call]


class _Sums(torch.autograd.Function):
    """Patches added up where they lie, the transpose of :class:`_Patches`."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, stride: int, height: int, width: int) -> Tensor:
        ctx.stride = stride
        num_images, rows, columns, size = patches.shape
        parts = patches.reshape(num_images, rows, columns, 3, 3, size // 9)
        padded = patches.new_zeros(num_images, height + 2, width + 2, size // 9)
        for i in range(3):
            for j in range(3):
                padded[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride] += (
                    parts[:, :, :, i, j]
                )
        return padded[:, 1:-1, 1:-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _Patches.apply(gradients[0], ctx.stride), None, None, None  # type: ignore[no-untyped-call]
