"""Conjugate gradient and backtracking line search on flat vectors (Schulman et al., 2015, arXiv 1502.05477, App. C)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarl.functional.shapes import require_rank, require_shape


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Approximate ``x = A^-1 b`` for symmetric positive definite ``A``, given only ``v -> A v``.

    Runs all its iterations: stopping at a residual would make the host wait for the device every time. Once the
    residual has vanished the steps are zero.

    Args:
        product: ``[n] -> [n]``.
        b: ``[n]``.
        num_iterations: iterations, each with one product.

    Returns:
        ``x`` and ``A x``, ``[n]`` each; the latter is ``b`` less the residual and costs no product.

    Raises:
        ValueError: if ``b`` is no vector, or ``product`` returns another shape.
    """
    require_rank("conjugate_gradient", 1, "[n]", b=b)
    x = torch.zeros_like(b)
    residual = b.clone()
    direction = b.clone()
    squared = residual.dot(residual)
    tiny = torch.finfo(b.dtype).tiny
    for _ in range(num_iterations):
        image = product(direction)
        require_shape("conjugate_gradient", tuple(b.shape), "[n]", product=image)
        curvature = direction.dot(image)
        step = torch.where(curvature > 0, squared / curvature.clamp(min=tiny), torch.zeros_like(squared))
        x = x + step * direction
        residual = residual - step * image
        following = residual.dot(residual)
        direction = residual + following / squared.clamp(min=tiny) * direction
        squared = following
    return x, b - residual


def step_to_radius(direction: Tensor, image: Tensor, max_kl: float) -> Tensor:
    """Scale ``direction`` to where the quadratic model of the KL, ``d'Ad / 2``, equals ``max_kl``.

    Args:
        direction: ``[n]``.
        image: ``A direction``, ``[n]``.
        max_kl: radius of the trust region in nats.

    Returns:
        ``[n]``.

    Raises:
        ValueError: for shapes that do not go together.
    """
    require_rank("step_to_radius", 1, "[n]", direction=direction)
    require_shape("step_to_radius", tuple(direction.shape), "[n]", image=image)
    curvature = direction.dot(image).clamp(min=torch.finfo(direction.dtype).tiny)
    return (2.0 * max_kl / curvature).sqrt() * direction


def backtrack(
    evaluate: Callable[[Tensor], tuple[float, float]],
    start: Tensor,
    step: Tensor,
    loss_before: float,
    max_kl: float,
    ratio: float,
    max_backtracks: int,
) -> tuple[Tensor, float, float, int]:
    """The longest step ``start - ratio^j step`` that lowers the loss inside the trust region.

    Args:
        evaluate: parameters ``[n]`` -> (loss, KL in nats).
        start: ``[n]`` parameters before.
        step: ``[n]`` full step, to be subtracted.
        loss_before: loss at ``start``.
        max_kl: largest KL accepted, in nats.
        ratio: factor between trials, in (0, 1).
        max_backtracks: trials before giving up.

    Returns:
        Accepted parameters (``start`` if none), their loss, their KL, and the number of trials; a NaN loss is
        never accepted.

    Raises:
        ValueError: for shapes that do not go together.
    """
    require_rank("backtrack", 1, "[n]", start=start)
    require_shape("backtrack", tuple(start.shape), "[n]", step=step)
    for trial in range(max_backtracks):
        candidate = start - ratio**trial * step
        loss, kl = evaluate(candidate)
        if loss < loss_before and kl <= max_kl:
            return candidate, loss, kl, trial + 1
    return start, loss_before, 0.0, max_backtracks
