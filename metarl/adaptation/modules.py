"""Inner loops over any ``nn.Module``: a model for each task, from one module, and the gradient of what they achieve.

:func:`metarl.adaptation.adapt` is the same as one graph, for any outer loss. Here only the gradient is carried back,
by products with Hessians where the rule is a step size.

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
        optimizer.zero_grad()
        loss = meta_gradient(net, loop, error(x_new, y_new))
        optimizer.step()
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from metarl.adaptation.inner_loop import InnerLoop
from metarl.adaptation.leaves import other_leaves
from metarl.adaptation.update_rules import LossFn, UpdateRule, slopes
from metarl.errors import ConfigError
from metarl.networks.params import Params, stack, trainable


def stack_module(module: nn.Module, num_tasks: int) -> Params:
    """The module's parameters for every task, ``[task, ...]``, detached.

    Frozen ones (``requires_grad=False``) are left out: they are constants of both loops, and
    :func:`metarl.adaptation.call` takes them from the module.

    Raises:
        ConfigError: for a module without parameters that can be trained.
    """
    return stack(trainable(module), num_tasks)


def meta_gradient(
    module: nn.Module | None,
    loop: InnerLoop,
    loss_fn: LossFn,
    *,
    rule: UpdateRule | None = None,
    along_path: bool = False,
    num_tasks: int | None = None,
) -> Tensor:
    """Add the gradient of the mean loss after adaptation to ``.grad`` of the module's and the rule's parameters.

    As ``backward`` does: begin with ``optimizer.zero_grad()``.

    Args:
        module: whose parameters the loop started from; None if they are not learned.
        loop: from :func:`metarl.adaptation.inner_loop` on :func:`stack_module`'s parameters.
        loss_fn: adapted parameters -> loss of each task, ``[task]``.
        rule: the learned rule that the loop followed; None if it is not to be learned.
        along_path: add the same loss at the start of every step, so that a rule learns from the whole of its path
            (Andrychowicz et al., 2016, arXiv 1606.04474, eq. 3 with all weights 1).
        num_tasks: tasks that the mean is taken over, where those of ``loop`` are a chunk of them and the gradients of
            all chunks add up; default: the tasks of ``loop``.

    Returns:
        The mean loss after the last step, detached; of a chunk, its part of the mean.

    Raises:
        ValueError: for a loss that is not one number per task.
        ConfigError: for losses that depend on other tensors with gradients, which would be lost.
    """
    size = num_tasks or next(iter(loop.adapted.values())).shape[0]
    lost = loop.others

    def mean_slopes(params: Params) -> tuple[Params, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}

        def mean_loss(own: Params) -> Tensor:
            losses = loss_fn(own)
            lost.extend(other_leaves([losses], leaves.values()))
            return losses / size

        found = slopes(mean_loss, leaves, create_graph=False, what="the loss after adaptation")
        return found.gradient, found.losses

    cotangent, losses = mean_slopes(loop.adapted)
    direct = [mean_slopes(start)[0] for start in loop.starts] if along_path else []
    if lost:
        own = {id(value): name for name, value in (module.named_parameters() if module is not None else ())}
        named = ", ".join({own.get(id(leaf), f"one of shape {tuple(leaf.shape)}"): None for leaf in lost})
        raise ConfigError(
            "the losses depend on tensors with gradients besides the adapted parameters and the rule's own, and "
            f"meta_gradient would lose theirs: {named}. Take adapt() and backward(), or detach them."
        )
    of_start, of_rule = loop.vjp(cotangent, direct)
    if module is not None:
        _accumulate(module, {name: value.sum(0) for name, value in of_start.items()})
    if rule is not None:
        _accumulate(rule, of_rule)
    return losses.sum().detach()


def _accumulate(module: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Add gradients to those of the module's parameters that can be trained and have one."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and name in gradients:
            before = parameter.grad
            parameter.grad = gradients[name].clone() if before is None else before + gradients[name]
