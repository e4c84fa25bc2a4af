"""A few gradient steps for many tasks at once, kept so that derivatives can be carried through them.

With gradient descent, ``theta_{k+1} = theta_k - rate * grad L_k(theta_k)``, the Jacobian of the adapted parameters is
``J = prod_k (I - rate * H_k)`` with ``H_k`` the Hessian of ``L_k`` at ``theta_k``. Tasks share no stacked parameter, so
the gradient of the summed losses is the stack of the tasks' gradients, and one backward pass through the kept graph of
that gradient is a Hessian product for every task (Finn et al., 2017, arXiv 1703.03400, eq. 1). Rates may differ by
parameter (Li et al., 2017, arXiv 1707.09835): the transpose is then ``I - H_k diag(rate)``, another operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Params = dict[str, Tensor]
LossFn = Callable[[Params], Tensor]
"""Stacked parameters ``[task, ...]`` -> loss of each task ``[task]``."""
Rates = float | Mapping[str, Tensor | float]
"""One step size for everything, or one for each parameter (a number, or a tensor of its shape without task axis)."""


@dataclass(frozen=True)
class _Step:
    """One gradient step: where it began, and the gradient there (with its graph for second-order derivatives)."""

    params: Params
    gradient: Params

    def hessian_product(self, vector: Params) -> Params:
        products = torch.autograd.grad(
            tuple(self.gradient.values()),
            tuple(self.params.values()),
            grad_outputs=tuple(vector.values()),
            retain_graph=True,
            materialize_grads=True,
        )
        return dict(zip(self.params, products, strict=True))


@dataclass(frozen=True)
class InnerLoop:
    """The result of :func:`inner_loop`.

    Attributes:
        adapted: stacked parameters after the last step, detached.
        rates: step sizes.
        steps: where each step began, and its gradient.
        second_order: whether Hessians are part of the derivatives; without, ``J`` is the identity.
    """

    adapted: Params
    rates: Rates
    steps: tuple[_Step, ...]
    second_order: bool

    def push(self, tangent: Params, rate_tangent: Mapping[str, Tensor] | None = None) -> Params:
        """``J v``: how the adapted parameters move when the initial ones move along ``tangent`` (stacked).

        Args:
            tangent: of the initial parameters, ``[task, ...]``.
            rate_tangent: of the rates, without task axis.
        """
        for step in self.steps:
            if self.second_order:
                tangent = _subtract(tangent, _scale(self.rates, step.hessian_product(tangent)))
            if rate_tangent is not None:
                tangent = _subtract(tangent, _scale(rate_tangent, step.gradient))
        return {name: value.detach() for name, value in tangent.items()}

    def pull(self, cotangent: Params, direct: Sequence[Params | None] = ()) -> Params:
        """``J' w``: a gradient at the adapted parameters, carried back to the initial ones (stacked).

        Args:
            cotangent: at the adapted parameters.
            direct: at the start of each step, gradients of a loss that depends on those parameters as well.
        """
        return self.pull_with_rates(cotangent, direct)[0]

    def pull_with_rates(self, cotangent: Params, direct: Sequence[Params | None] = ()) -> tuple[Params, Params]:
        """As :meth:`pull`, and the gradient of the rates (stacked)."""
        of_rates = {name: torch.zeros_like(value) for name, value in cotangent.items()}
        for index in reversed(range(len(self.steps))):
            step = self.steps[index]
            of_rates = {
                name: value - cotangent[name] * step.gradient[name].detach() for name, value in of_rates.items()
            }
            if self.second_order:
                cotangent = _subtract(cotangent, step.hessian_product(_scale(self.rates, cotangent)))
            here = direct[index] if direct else None
            if here is not None:
                cotangent = {name: value + here[name] for name, value in cotangent.items()}
        return cotangent, of_rates


def inner_loop(params: Params, losses: Sequence[LossFn], rates: Rates, *, second_order: bool) -> InnerLoop:
    """Take one gradient step per loss.

    Args:
        params: stacked parameters ``[task, ...]``; not changed.
        losses: one loss for each step.
        rates: step sizes, 0 or more.
        second_order: keep the gradients' graphs, so that :meth:`InnerLoop.push` and :meth:`InnerLoop.pull` know the
            Hessians; otherwise both take the Jacobian for the identity (first-order MAML).

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
            slopes = torch.autograd.grad(
                loss.sum(), tuple(leaves.values()), create_graph=second_order, materialize_grads=True
            )
        gradient = dict(zip(leaves, slopes, strict=True))
        steps.append(_Step(leaves, gradient))
        moves = _scale(rates, gradient)
        current = {name: value.detach() - moves[name].detach() for name, value in leaves.items()}
    return InnerLoop(current, rates, tuple(steps), second_order)


def _scale(rates: Rates, vector: Params) -> Params:
    if isinstance(rates, Mapping):
        return {name: rates[name] * value for name, value in vector.items()}
    return {name: rates * value for name, value in vector.items()}


def _subtract(left: Params, right: Params) -> Params:
    return {name: value - right[name] for name, value in left.items()}
