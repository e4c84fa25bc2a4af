"""Inner loops over any ``nn.Module``: a model for each task, from one module.

Sinusoid regression by MAML (Finn et al., 2017, section 5.1), outside reinforcement learning, in full::

    net = torch.nn.Sequential(torch.nn.Linear(1, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(600):
        amplitude, phase = 0.1 + 4.9 * torch.rand(25, 1, 1), torch.pi * torch.rand(25, 1, 1)
        x, x_new = 10 * torch.rand(2, 25, 10, 1) - 5
        y, y_new = amplitude * torch.sin(x - phase), amplitude * torch.sin(x_new - phase)

        def error(x, y):  # of each task, as a function of its parameters
            return lambda params: (call(net, params, x) - y).square().mean((1, 2))

        loop = inner_loop(stack_module(net, 25), [error(x, y)], 0.05, second_order=True)
        loss = meta_gradient(net, loop, error(x_new, y_new))
        optimizer.step()
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarl.adaptation.inner_loop import InnerLoop
from metarl.adaptation.update_rules import LossFn, UpdateRule, slopes
from metarl.networks.params import Params, stack


def stack_module(module: nn.Module, num_tasks: int) -> Params:
    """The module's parameters for every task, ``[task, ...]``, detached."""
    return stack(dict(module.named_parameters()), num_tasks)


def call(module: nn.Module, params: Params, *inputs: Tensor) -> Tensor:
    """Run the module once for each task, with that task's parameters and inputs.

    Args:
        module: without state that a call changes.
        params: stacked parameters, ``[task, ...]``.
        *inputs: ``[task, ...]`` each.

    Returns:
        ``[task, ...]``.
    """
    out: Tensor = torch.func.vmap(lambda own, *xs: torch.func.functional_call(module, own, xs))(params, *inputs)
    return out


def meta_gradient(
    module: nn.Module | None,
    loop: InnerLoop,
    loss_fn: LossFn,
    *,
    rule: UpdateRule | None = None,
    along_path: bool = False,
) -> Tensor:
    """Set ``.grad`` of the module's and the rule's parameters to the gradient of the mean loss after adaptation.

    Args:
        module: whose parameters the loop started from; None if they are not learned.
        loop: from :func:`metarl.adaptation.inner_loop` on :func:`stack_module`'s parameters.
        loss_fn: adapted parameters -> loss of each task, ``[task]``.
        rule: the learned rule that the loop followed; None if it is not to be learned.
        along_path: add the same loss at the start of every step, so that a rule learns from the whole of its path
            (Andrychowicz et al., 2016, arXiv 1606.04474, eq. 3 with all weights 1).

    Returns:
        The mean loss after the last step, detached.

    Raises:
        ValueError: for a loss that is not one number per task.
    """
    num_tasks = next(iter(loop.adapted.values())).shape[0]

    def mean_slopes(params: Params) -> tuple[Params, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        return slopes(lambda own: loss_fn(own) / num_tasks, leaves, create_graph=False)

    cotangent, losses = mean_slopes(loop.adapted)
    direct = [mean_slopes(start)[0] for start in loop.starts] if along_path else []
    of_start, of_rule = loop.vjp(cotangent, direct)
    if module is not None:
        for name, parameter in module.named_parameters():
            parameter.grad = of_start[name].sum(0)
    if rule is not None:
        for name, parameter in rule.named_parameters():
            parameter.grad = of_rule[name].clone()
    return losses.sum().detach()
