"""The inner loop of gradient descent, whose derivatives are products with Hessians: the structured fast path.

With ``theta_{k+1} = theta_k - rate * grad L_k(theta_k)``, the Jacobian of the adapted parameters is
``J = prod_k (I - rate * H_k)`` with ``H_k`` the Hessian of ``L_k`` at ``theta_k``. Tasks share no stacked parameter, so
the gradient of the summed losses is the stack of the tasks' gradients, and one backward pass through the kept graph of
that gradient is a Hessian product for every task (Finn et al., 2017, arXiv 1703.03400, eq. 1). Rates may differ by
parameter (Li et al., 2017, arXiv 1707.09835): the transpose is then ``I - H_k diag(rate)``, another operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.adaptation.leaves import other_leaves
from metarl.adaptation.update_rules import LossFn, slopes
from metarl.networks.params import Params

Rates = float | Mapping[str, Tensor | float]
"""One step size for everything, or one for each parameter (a number, or a tensor of its shape without task axis)."""


@dataclass(frozen=True)
class _Step:
    """One gradient step: where it began, and the gradient there (with its graph for second-order derivatives)."""

    params: Params
    gradient: Params

    def hessian_product(self, vector: Params) -> Params:
        # Where the loss is linear in a parameter, its gradient depends on nothing: a row of zeros.
        rows = [(slope, vector[name]) for name, slope in self.gradient.items() if slope.requires_grad]
        if not rows:
            return {name: torch.zeros_like(value) for name, value in self.params.items()}
        products = torch.autograd.grad(
            [slope for slope, _ in rows],
            tuple(self.params.values()),
            grad_outputs=[weight for _, weight in rows],
            retain_graph=True,
            materialize_grads=True,
        )
        return dict(zip(self.params, products, strict=True))


@dataclass(frozen=True)
class StructuredLoop:
    """The result of :func:`structured_loop`; its methods are those of :class:`metarl.adaptation.InnerLoop`.

    Attributes:
        adapted: stacked parameters after the last step, detached.
        rates: step sizes.
        steps: where each step began, and its gradient.
        second_order: whether Hessians are part of the derivatives; without, ``J`` is the identity.
        rate_names: names of the rates that are parameters of a rule, by those of the parameters that they scale.
    """

    adapted: Params
    rates: Rates
    steps: tuple[_Step, ...]
    second_order: bool
    rate_names: Mapping[str, str]

    @property
    def state(self) -> None:
        """Gradient descent remembers nothing."""

    @property
    def others(self) -> list[Tensor]:
        """See :attr:`metarl.adaptation.InnerLoop.others`."""
        if not self.second_order:
            return []
        slopes_found = [slope for step in self.steps for slope in step.gradient.values()]
        return other_leaves(slopes_found, [value for step in self.steps for value in step.params.values()])

    @property
    def starts(self) -> tuple[Params, ...]:
        """Where each step began, as leaves."""
        return tuple(step.params for step in self.steps)

    def jvp(self, tangent: Params, rule_tangent: Mapping[str, Tensor] | None = None) -> Params:
        """See :meth:`metarl.adaptation.InnerLoop.jvp`; the rule's parameters are the rates."""
        for step in self.steps:
            if self.second_order:
                tangent = _subtract(tangent, _scale(self.rates, step.hessian_product(tangent)))
            if rule_tangent:
                rate_tangent = {name: rule_tangent.get(rate, 0.0) for name, rate in self.rate_names.items()}
                tangent = _subtract(tangent, _scale(rate_tangent, step.gradient))
        return {name: value.detach() for name, value in tangent.items()}

    def vjp(self, cotangent: Params, direct: Sequence[Params | None] = ()) -> tuple[Params, Params]:
        """See :meth:`metarl.adaptation.InnerLoop.vjp`; the rule's parameters are the rates."""
        of_rates = {name: torch.zeros_like(value) for name, value in cotangent.items() if name in self.rate_names}
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
        return cotangent, {self.rate_names[name]: value.sum(0) for name, value in of_rates.items()}


def structured_loop(
    params: Params, losses: Sequence[LossFn], rates: Rates, rate_names: Mapping[str, str], *, second_order: bool
) -> StructuredLoop:
    """Take one gradient step per loss; see :func:`metarl.adaptation.inner_loop` and :class:`StructuredLoop`."""
    steps: list[_Step] = []
    current = {name: value.detach() for name, value in params.items()}
    for loss_fn in losses:
        leaves = {name: value.requires_grad_() for name, value in current.items()}
        gradient = slopes(loss_fn, leaves, create_graph=second_order).gradient
        steps.append(_Step(leaves, gradient))
        moves = _scale(rates, gradient)
        current = {name: value.detach() - moves[name].detach() for name, value in leaves.items()}
    return StructuredLoop(current, rates, tuple(steps), second_order, rate_names)


def _scale(rates: Rates, vector: Params) -> Params:
    if isinstance(rates, Mapping):
        return {name: rates[name] * value for name, value in vector.items()}
    return {name: rates * value for name, value in vector.items()}


def _subtract(left: Params, right: Params) -> Params:
    return {name: value - right[name] for name, value in left.items()}
