"""Adapted models with their graph: any outer loss, and ``backward()`` fills the gradients of all that took part.

Sinusoid regression by MAML with an encoder that all tasks share, a learned step size and learned loss weights: whatever
requires a gradient gets one::

    model = adapt(head, lambda model: (model(encoder(x)) - y).square().mean((1, 2)), steps=5, rule=rate, num_tasks=25)
    loss = (model(encoder(x_new)) - y_new).square().mean()
    loss.backward()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metarl.adaptation.autodiff_loop import Move, take_steps
from metarl.adaptation.update_rules import LossFn, UpdateRule, step_size
from metarl.errors import ConfigError
from metarl.networks.module_call import call
from metarl.networks.params import Params, trainable


class AdaptedModel:
    """A module with parameters of its own for each task; called like the module, with a task axis in front.

    Attributes:
        module: what it was adapted from.
        params: stacked parameters, ``[task, ...]``, with the graph of all steps; without the module's frozen ones.
        num_steps: steps taken so far.
        state: what the rule remembers of them, with its graph; None before the first.
    """

    def __init__(self, module: nn.Module, params: Params, num_steps: int = 0, state: Params | None = None) -> None:
        self.module, self.params, self.num_steps, self.state = module, params, num_steps, state

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Outputs ``[task, ...]``; see :func:`metarl.adaptation.call`."""
        return call(self.module, self.params, *inputs, **kwargs)


def adapt(
    module: nn.Module | AdaptedModel,
    loss_fn: Callable[[AdaptedModel], Tensor],
    *,
    steps: int,
    rule: UpdateRule | float | Tensor,
    num_tasks: int | None = None,
    second_order: bool = True,
) -> AdaptedModel:
    """Adapt a module to many tasks at once, as one graph.

    Gradients of a loss of the result reach the module's parameters, the rule's, and everything else with a gradient in
    ``loss_fn`` and in the outer loss: an encoder, loss weights, a step size. Frozen parameters are constants. Inside
    ``torch.no_grad()`` the steps are the same, and nothing is kept.

    Args:
        module: where all tasks start; or an adapted model, from which the steps go on.
        loss_fn: the model before a step (``model.num_steps`` tells which) -> inner loss of each task, ``[task]``.
        steps: how many steps to take.
        rule: how parameters move; a number or a tensor of one number is the step size of gradient descent.
        num_tasks: how many tasks there are; that of an adapted model is known.
        second_order: whether inner gradients are differentiated too; otherwise they are constants (first-order MAML).

    Raises:
        ConfigError: for a module that cannot be trained, or arguments that cannot work.
        ValueError: for a loss that is not one number per task.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ConfigError(f"steps must be a whole number of 0 or more, got {steps!r}.")
    start = _start(module, num_tasks)

    def loss_of_step(index: int) -> LossFn:
        return lambda params: loss_fn(AdaptedModel(start.module, params, start.num_steps + index))

    path = take_steps(
        start.params,
        [loss_of_step(index) for index in range(steps)],
        _move(rule),
        second_order=second_order,
        state=start.state,
        differentiable=torch.is_grad_enabled(),
    )
    return AdaptedModel(start.module, path.nodes[-1], start.num_steps + steps, path.state)


def _start(module: nn.Module | AdaptedModel, num_tasks: int | None) -> AdaptedModel:
    if isinstance(module, AdaptedModel):
        known = len(next(iter(module.params.values())))
        if num_tasks not in (None, known):
            raise ConfigError(f"num_tasks must be {known}, as in the adapted model, got {num_tasks!r}.")
        return module
    if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
        raise ConfigError(f"num_tasks must be a whole number of 1 or more, got {num_tasks!r}.")
    return AdaptedModel(module, {name: p.expand(num_tasks, *p.shape) for name, p in trainable(module).items()})


def _move(rule: UpdateRule | float | Tensor) -> Move:
    if isinstance(rule, UpdateRule):
        return rule
    rate = step_size(rule)
    return lambda state, params, grads, losses: ({name: p - rate * grads[name] for name, p in params.items()}, {})
