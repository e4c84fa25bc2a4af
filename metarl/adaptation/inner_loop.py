"""A few steps of an update rule for many tasks at once, kept so that derivatives can be carried through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from metarl.adaptation.autodiff_loop import autodiff_loop
from metarl.adaptation.structured_loop import structured_loop
from metarl.adaptation.update_rules import LossFn, StepSizes, UpdateRule, step_size
from metarl.errors import ConfigError
from metarl.networks.params import Params


class InnerLoop(Protocol):
    """The result of :func:`inner_loop`: the adapted parameters, and the Jacobian ``J`` that leads to them.

    ``J`` is that of the adapted parameters with respect to the initial ones and to the rule's own. Its graphs are kept
    for as long as the object lives, so that any number of products costs their arithmetic alone.
    """

    @property
    def adapted(self) -> Params:
        """Stacked parameters after the last step, detached."""

    @property
    def state(self) -> Params | None:
        """The rule's state after the last step, detached; None before the first."""

    @property
    def starts(self) -> tuple[Params, ...]:
        """Stacked parameters before each step, as leaves to differentiate other losses by."""

    @property
    def others(self) -> list[Tensor]:
        """Leaves with gradients, besides initial and rule's parameters, that the steps depend on: ``J`` lacks them."""

    def jvp(self, tangent: Params, rule_tangent: Mapping[str, Tensor] | None = None) -> Params:
        """Jacobian-vector product ``J v``: how the adapted parameters move.

        Args:
            tangent: direction in the initial parameters, ``[task, ...]``.
            rule_tangent: direction in the rule's parameters, without task axis.
        """

    def vjp(self, cotangent: Params, direct: Sequence[Params | None] = ()) -> tuple[Params, Params]:
        """Vector-Jacobian product ``J' w``: a gradient at the adapted parameters, carried back.

        Args:
            cotangent: gradient at the adapted parameters, ``[task, ...]``.
            direct: at the start of each step, gradients of a loss that depends on those parameters as well.

        Returns:
            The gradient of the initial parameters, ``[task, ...]``, and that of the rule's, summed over tasks, which
            share them.
        """


def inner_loop(
    params: Params,
    losses: Sequence[LossFn],
    rule: UpdateRule | float,
    *,
    second_order: bool,
    weights: Mapping[str, Tensor] | None = None,
    state: Params | None = None,
    signals: Sequence[Tensor] | None = None,
    factor: float = 1.0,
    differentiable: bool = True,
) -> InnerLoop:
    """Take one step per loss.

    Step sizes take a structured path, every other rule a general one (:mod:`metarl.adaptation.structured_loop`
    and :mod:`metarl.adaptation.autodiff_loop`).

    Args:
        params: stacked parameters ``[task, ...]``; not changed.
        losses: one loss for each step.
        rule: how parameters move; a number of 0 or more is the step size of gradient descent. A parameter that a loss
            does not use keeps its value in that step.
        second_order: differentiate the inner gradients and losses as well; otherwise both are constants (first-order
            MAML; the dropped edges of Andrychowicz et al., 2016, Figure 2).
        weights: the rule's parameters by name, in place of its own.
        state: the rule's state where the loop goes on from; default: that of ``rule.init``.
        signals: what the rule is shown in place of each loss, ``[task]`` each, where the numerical value of a loss says
            nothing (as in policy gradients); they are constants.
        factor: factor on every move, e.g. for steps beyond those of training.
        differentiable: without, derivatives are not kept (which saves the memory of a general rule's graph).

    Raises:
        ConfigError: for a step size that is negative, not finite, or a tensor with a gradient, which would be lost.
        ValueError: for a loss or a signal that is not one number per task.
    """
    # A subclass may step in another way, which the structured loop would not follow.
    if type(rule) is StepSizes:
        return structured_loop(params, losses, rule.values(factor, weights), rule.rate_names, second_order=second_order)
    if not isinstance(rule, UpdateRule):
        rate = step_size(rule)
        if isinstance(rate, Tensor) and rate.requires_grad:
            raise ConfigError("an inner loop loses the gradient of a step size: take LearnedRates, or adapt().")
        return structured_loop(params, losses, factor * float(rate), {}, second_order=second_order)
    return autodiff_loop(
        params,
        losses,
        rule,
        second_order=second_order,
        weights=weights,
        state=state,
        signals=signals,
        factor=factor,
        differentiable=differentiable,
    )
