"""A few gradient steps for many tasks at once, kept so that derivatives can be carried through them.

With gradient descent, ``theta_{k+1} = theta_k - inner_lr grad L_k(theta_k)``, the Jacobian of the adapted parameters
is ``J = prod_k (I - inner_lr H_k)`` with ``H_k`` the Hessian of ``L_k`` at ``theta_k``. Tasks share no stacked
parameter, so the gradient of the summed losses is the stack of the tasks' gradients, and one backward pass through
the kept graph of that gradient is a Hessian product for every task (Finn et al., 2017, arXiv 1703.03400, eq. 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Params = dict[str, Tensor]
LossFn = Callable[[Params], Tensor]
"""Stacked parameters ``[task, ...]`` -> loss of each task ``[task]``."""


@dataclass(frozen=True)
class _Step:
    """One gradient step: where it began, and the gradient there with its graph."""

    params: Params
    gradient: tuple[Tensor, ...]

    def hessian_product(self, vector: Params) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            self.gradient,
            tuple(self.params.values()),
            grad_outputs=tuple(vector.values()),
            retain_graph=True,
            materialize_grads=True,
        )


@dataclass(frozen=True)
class InnerLoop:
    """The result of :func:`inner_loop`.

    Attributes:
        adapted: stacked parameters after the last step, detached.
        inner_lr: step size.
        steps: the steps whose graphs were kept; empty for first-order derivatives.
    """

    adapted: Params
    inner_lr: float
    steps: tuple[_Step, ...]

    def push(self, tangent: Params) -> Params:
        """``J v``: how the adapted parameters move when the initial ones move along ``tangent`` (stacked)."""
        for step in self.steps:
            tangent = self._apply(step, tangent)
        return tangent

    def pull(self, cotangent: Params) -> Params:
        """``J' w``: a gradient at the adapted parameters, carried back to the initial ones (stacked)."""
        for step in reversed(self.steps):
            cotangent = self._apply(step, cotangent)
        return cotangent

    def _apply(self, step: _Step, vector: Params) -> Params:
        product = step.hessian_product(vector)
        return {
            name: value - self.inner_lr * image for (name, value), image in zip(vector.items(), product, strict=True)
        }


def inner_loop(params: Params, losses: Sequence[LossFn], inner_lr: float, *, second_order: bool) -> InnerLoop:
    """Take one gradient step per loss.

    Args:
        params: stacked parameters ``[task, ...]``; not changed.
        losses: one loss for each step.
        inner_lr: step size, 0 or more.
        second_order: keep the gradients' graphs for :meth:`InnerLoop.push` and :meth:`InnerLoop.pull`; otherwise
            both are the identity (first-order MAML) and nothing is kept.

    Raises:
        ValueError: for a loss that is not one number per task.
    """
    steps: list[_Step] = []
    current = {name: value.detach() for name, value in params.items()}
    num_tasks = next(iter(current.values())).shape[0]
    for loss_fn in losses:
        leaves = {name: value.requires_grad_() for name, value in current.items()}
        with torch.enable_grad():
            loss = loss_fn(leaves)
            if loss.shape != (num_tasks,):
                raise ValueError(f"an inner loss must have shape [task] = ({num_tasks},), got {tuple(loss.shape)}.")
            gradient = torch.autograd.grad(
                loss.sum(), tuple(leaves.values()), create_graph=second_order, materialize_grads=True
            )
        if second_order:
            steps.append(_Step(leaves, gradient))
        current = {
            name: value.detach() - inner_lr * slope.detach()
            for (name, value), slope in zip(leaves.items(), gradient, strict=True)
        }
    return InnerLoop(current, inner_lr, tuple(steps))
