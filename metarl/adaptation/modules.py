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

from metarl.adaptation.inner_loop import InnerLoop, LossFn, Params


def stack_module(module: nn.Module, num_tasks: int) -> Params:
    """The module's parameters for every task, ``[task, ...]``, detached."""
    return {name: value.detach().expand(num_tasks, *value.shape) for name, value in module.named_parameters()}


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


def meta_gradient(module: nn.Module, loop: InnerLoop, loss_fn: LossFn) -> Tensor:
    """Set ``.grad`` of the module's parameters to the gradient of the mean loss after adaptation.

    Args:
        module: whose parameters the loop started from.
        loop: from :func:`metarl.adaptation.inner_loop` on :func:`stack_module`'s parameters.
        loss_fn: adapted parameters -> loss of each task, ``[task]``.

    Returns:
        The mean loss, detached.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in loop.adapted.items()}
    loss = loss_fn(leaves).mean()
    slopes = torch.autograd.grad(loss, tuple(leaves.values()), materialize_grads=True)
    pulled = loop.pull(dict(zip(leaves, slopes, strict=True)))
    for name, parameter in module.named_parameters():
        parameter.grad = pulled[name].sum(0)
    return loss.detach()
