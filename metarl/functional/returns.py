"""Returns and advantages of masked sequences. Terminated is not truncated."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.distributed import Group
from metarl.functional.shapes import require_shape

_ALONE = Group()

_BLOCK = 256
"""Steps that one triangular product covers; longer sequences carry a value from block to block."""


def discounted_sums(x_t: Tensor, discount: float) -> Tensor:
    """Discounted sums of the future: ``y_t = sum_{l >= 0} discount^l x_{t+l}``.

    A product with a triangular matrix, since a loop over time costs one kernel launch a step.

    Args:
        x_t: ``[..., time]`` with one step at least, zero on padding.
        discount: in [0, 1].

    Returns:
        ``[..., time]``.

    Raises:
        ValueError: for a tensor without steps.
    """
    if x_t.dim() == 0 or x_t.shape[-1] == 0:
        raise ValueError(f"discounted_sums: x_t must have the shape [..., time], got {tuple(x_t.shape)}.")
    num_steps = x_t.shape[-1]
    size = min(num_steps, _BLOCK)
    steps = torch.arange(size, device=x_t.device)
    lag = steps[:, None] - steps[None, :]
    # weights[j, t] = discount^(j - t) for j >= t: how much x_j counts for y_t.
    weights = torch.where(lag >= 0, float(discount) ** lag.clamp(min=0).to(x_t.dtype), 0.0)
    to_end = float(discount) ** torch.arange(size, 0, -1, device=x_t.device).to(x_t.dtype)
    blocks: list[Tensor] = []
    carry = torch.zeros_like(x_t[..., :1])
    for end in range(num_steps, 0, -size):
        block = x_t[..., max(0, end - size) : end]
        width = block.shape[-1]
        y = block @ weights[:width, :width] + carry * to_end[size - width :]
        carry = y[..., :1]
        blocks.append(y)
    return torch.cat(blocks[::-1], dim=-1)


def gae(
    rewards: Tensor,
    values: Tensor,
    last_value: Tensor,
    terminated: Tensor,
    valid: Tensor,
    discount: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimates of one sequence per row.

    ``A_t = sum_l (discount gae_lambda)^l delta_{t+l}``, ``delta_t = r_t + discount v_{t+1} - v_t``
    (Schulman et al., 2016, arXiv 1506.02438, eq. 16). The state after a truncated step keeps its value
    ``last_value``; the state after a terminated one is worth nothing.

    Args:
        rewards: ``[..., time]``.
        values: ``[..., time]``, value of the state in which step t began.
        last_value: ``[...]``, value of the state after the last valid step.
        terminated: ``[..., time]`` bool, set at the terminating step.
        valid: ``[..., time]`` bool, a prefix of the time axis.
        discount: in [0, 1].
        gae_lambda: in [0, 1].

    Returns:
        ``[..., time]``, zero on padding.

    Raises:
        ValueError: for shapes that do not go together.
    """
    require_shape("gae", tuple(rewards.shape), "[..., time]", values=values, terminated=terminated, valid=valid)
    require_shape("gae", tuple(rewards.shape[:-1]), "[...]", last_value=last_value)
    following = torch.cat([values[..., 1:], last_value[..., None]], dim=-1)
    is_last = valid & ~torch.cat([valid[..., 1:], torch.zeros_like(valid[..., :1])], dim=-1)
    following = torch.where(is_last, last_value[..., None], following)
    following = torch.where(terminated, torch.zeros_like(following), following)
    deltas = torch.where(valid, rewards + discount * following - values, torch.zeros_like(rewards))
    return discounted_sums(deltas, discount * gae_lambda) * valid


def masked_mean(x: Tensor, valid: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean over the valid entries: their sum divided by their number.

    Args:
        x: any shape; what stands on padding does not count, whatever it is.
        valid: bool, the shape of ``x``; some entry must be set wherever a mean is taken.
        dims: axes that the mean is taken over, and that the result lacks.

    Raises:
        ValueError: for a mask of another shape.
    """
    require_shape("masked_mean", tuple(x.shape), "that of x", valid=valid)
    return _without_padding(x, valid).sum(dims) / valid.sum(dims)


def normalise(x: Tensor, valid: Tensor, dims: tuple[int, ...], eps: float = 1e-8, group: Group = _ALONE) -> Tensor:
    """Shift and scale the valid entries to mean 0 and standard deviation 1; padding becomes 0.

    Args:
        x: any shape, which the result has too; what stands on padding does not count, whatever it is.
        valid: bool, the shape of ``x``; some entry must be set wherever a mean is taken.
        dims: axes that mean and standard deviation are taken over.
        eps: added to the standard deviation.
        group: ranks whose entries are shifted and scaled together; default: this process alone.

    Raises:
        ValueError: for a mask of another shape.
    """
    require_shape("normalise", tuple(x.shape), "that of x", valid=valid)
    count, total = group.sum(valid.sum(dims, keepdim=True), _without_padding(x, valid).sum(dims, keepdim=True))
    mean = total / count
    centred = _without_padding(x - mean, valid)
    std = (group.sum(centred.square().sum(dims, keepdim=True))[0] / count).sqrt()
    return centred / (std + eps)


def _without_padding(x: Tensor, valid: Tensor) -> Tensor:
    """``x``, zero on padding; a product with the mask would turn an infinity there into NaN."""
    return torch.where(valid, x, torch.zeros_like(x))
