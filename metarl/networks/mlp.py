"""Stacked MLP policies: every weight carries a leading task axis, so that all tasks run in one ``baddbmm``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metarl.networks.params import Params
from metarl.networks.policy import Policy
from metarl.types import Spec

Activation = Literal["tanh", "relu"]


def stacked_mlp(
    params: Params, x: Tensor, num_layers: int, activation: Activation, hidden: list[Tensor] | None = None
) -> Tensor:
    """Run one MLP per task.

    Args:
        params: ``w{i}`` ``[task, in, out]`` and ``b{i}`` ``[task, out]`` for layers ``0 .. num_layers-1``.
        x: ``[task, sample, in]``.
        num_layers: linear layers, the last without activation.
        activation: between layers.
        hidden: takes in the values of the hidden layers, for :func:`stacked_mlp_tangent`.

    Returns:
        ``[task, sample, out]``.
    """
    for layer in range(num_layers - 1):
        w, b = params[f"w{layer}"], params[f"b{layer}"]
        if torch.is_grad_enabled():
            x, _ = _Hidden.apply(x, w, b, activation)  # type: ignore[no-untyped-call]
        else:
            x = _activate(torch.baddbmm(b.unsqueeze(1), x, w), activation)
        if hidden is not None:
            hidden.append(x.detach())
    last = num_layers - 1
    return torch.baddbmm(params[f"b{last}"].unsqueeze(1), x, params[f"w{last}"])


@torch.no_grad()
def stacked_mlp_tangent(
    params: Params, tangent: Params, x: Tensor, hidden: list[Tensor], activation: Activation
) -> Tensor:
    """How the outputs of :func:`stacked_mlp` move when its parameters move along ``tangent``, ``[task, sample, out]``.

    Args:
        params: as in :func:`stacked_mlp`.
        tangent: direction in the parameters, of the same shapes.
        x: as in :func:`stacked_mlp`.
        hidden: what it took in.
        activation: as in :func:`stacked_mlp`.
    """
    moved = torch.baddbmm(tangent["b0"].unsqueeze(1), x, tangent["w0"])
    for layer, value in enumerate(hidden, start=1):
        moved = _before(moved, value, activation)
        own = torch.baddbmm(tangent[f"b{layer}"].unsqueeze(1), value, tangent[f"w{layer}"])
        moved = torch.baddbmm(own, moved, params[f"w{layer}"])
    return moved


# Derivatives of one hidden layer, for each task: z = x w + b, y = f(z), with f = tanh or relu. g is the gradient of y.
#
# First, by the chain rule:
#     s = g f'(z)                     the gradient of z; f' is a function of y: 1 - y^2, or 1 where y > 0
#     of_x = s w', of_w = x' s, of_b = sum_samples s
#
# Second: these gradients are differentiated again (a Hessian product does it along one direction). Given the adjoints
# by_x, by_w, by_b of the three, and by_s of s itself, which a derivative of yet higher order may bring:
#     m = by_s + by_b + x by_w + by_x w      the adjoint of s: all three are linear in it
#     of g:  m f'(z)                         as s = g f'(z)
#     of x:  s by_w'                         as of_w = x' s; of_x and of_b contain x within s alone
#     of w:  by_x' s                         as of_x = s w'; of_w and of_b contain w within s alone
#     of z:  m g f''(z)                      as f' depends on z; x, w and b get their parts of it by the first rule
# With f = tanh, f'' = -2 y (1 - y^2), so that the last line is -2 m y (g f'(z)). With relu it vanishes, since f' is
# constant on both sides of 0. There is no further term: z is linear in x and in w, so that its second derivatives in
# either alone vanish, and the mixed one is what the lines "of x" and "of w" hold.
#
# Where the adjoint of z goes: z itself is not kept. `link`, a second output of the layer without memory of its own,
# stands for z in the graph. Its gradient is h = m y (g f'(z)), and where the first rule then runs it takes
# s = g f'(z) - 2 h: so the adjoint of z shares the three matrix products with the gradient of y. Hence one more line,
#     of h:  -2 m                            for third derivatives
# and no gradient of y from f'(z), which would count the adjoint of z twice.


class _Hidden(torch.autograd.Function):
    """``y = f(x w + b)`` and ``link``, with the first rule above as derivative: fewer kernels and passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        y = _activate(torch.baddbmm(b.unsqueeze(1), x, w), activation)
        link = y.new_zeros(()).expand_as(y)
        ctx.save_for_backward(x, w, y, link)
        ctx.activation = activation
        return y, link

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, y, link = ctx.saved_tensors
        of_y = torch.zeros_like(y) if grads[0] is None else grads[0]
        of_x, of_w, of_b, _ = _HiddenSlope.apply(  # type: ignore[no-untyped-call]
            of_y, grads[1], x, w, y, link, ctx.activation, ctx.needs_input_grad[0]
        )
        return of_x, of_w, of_b, None


class _HiddenSlope(torch.autograd.Function):
    """The first rule above, with the second one as derivative: gradients of ``x``, ``w``, ``b``, and ``s``.

    ``s`` is an output so that it can be saved and differentiated again, to any order.
    """

    @staticmethod
    def forward(
        ctx: Any,
        of_y: Tensor,
        of_link: Tensor | None,
        x: Tensor,
        w: Tensor,
        y: Tensor,
        link: Tensor,
        activation: Activation,
        needs_x: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        slope = _before(of_y, y, activation)
        if of_link is not None:
            slope = slope.sub_(of_link, alpha=2.0)
        ctx.save_for_backward(x, w, y, slope, of_link)
        ctx.activation = activation
        return slope @ w.mT if needs_x else None, x.mT @ slope, slope.sum(1), slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, y, slope, of_link = ctx.saved_tensors
        # `slope` is s above, `of_link` is h, and `moved` is m.
        by_x, by_w, by_b, moved = grads
        if moved is None:
            moved = (x.new_zeros(()) if by_b is None else by_b.unsqueeze(1)).expand_as(y)
        elif by_b is not None:
            moved = moved + by_b.unsqueeze(1)
        if by_w is not None:
            moved = torch.baddbmm(moved, x, by_w)
        if by_x is not None:
            moved = torch.baddbmm(moved, by_x, w)
        to_link = None
        if ctx.activation == "tanh":
            # m y (g f'(z)), as s = g f'(z) - 2 h. The factor of -2 is applied where `link` is taken in.
            to_link = moved * y * (slope if of_link is None else slope + 2.0 * of_link)
        return (
            _before(moved, y, ctx.activation),
            -2.0 * moved if ctx.needs_input_grad[1] else None,
            slope @ by_w.mT if by_w is not None and ctx.needs_input_grad[2] else None,
            by_x.mT @ slope if by_x is not None else None,
            None,
            to_link,
            None,
            None,
        )


def _activate(z: Tensor, activation: Activation) -> Tensor:
    return z.tanh_() if activation == "tanh" else z.relu_()


def _before(gradient: Tensor, y: Tensor, activation: Activation) -> Tensor:
    """A gradient after the activation, of value ``y``, carried to before it; a tangent the other way."""
    ops = torch.ops.aten
    before: Tensor = ops.tanh_backward(gradient, y) if activation == "tanh" else ops.threshold_backward(gradient, y, 0)
    return before


class MLPPolicy(Policy):
    """A categorical or diagonal Gaussian MLP policy.

    Args:
        spec: sizes of observation and action.
        hidden_sizes: widths of the hidden layers.
        activation: between layers.
        init_std: initial standard deviation of a Gaussian policy, in units of the normalised action box.
    """

    def __init__(
        self, spec: Spec, hidden_sizes: tuple[int, ...], activation: Activation, init_std: float = 1.0
    ) -> None:
        super().__init__(spec)
        self.activation = activation
        sizes = (spec.obs_dim, *hidden_sizes, spec.action_dim)
        self.num_layers = len(sizes) - 1
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            # Glorot; the last layer starts small so that the first policy is nearly uniform.
            bound = math.sqrt(6.0 / (fan_in + fan_out)) * (0.01 if layer == self.num_layers - 1 else 1.0)
            self.register_parameter(f"w{layer}", nn.Parameter(torch.empty(fan_in, fan_out).uniform_(-bound, bound)))
            self.register_parameter(f"b{layer}", nn.Parameter(torch.zeros(fan_out)))
        self.add_std(init_std)

    @property
    def head_names(self) -> frozenset[str]:
        """Names of the last layer's parameters."""
        last = self.num_layers - 1
        return frozenset({f"w{last}", f"b{last}"})

    def outputs(self, params: Params, obs: Tensor) -> Tensor:
        """See :meth:`Policy.outputs`."""
        return stacked_mlp(params, obs, self.num_layers, self.activation)

    def linear_outputs(self, params: Params, obs: Tensor) -> tuple[Tensor, Callable[[Params], Tensor]]:
        """See :meth:`Policy.linear_outputs`; the hidden layers are not computed again."""
        hidden: list[Tensor] = []
        out = stacked_mlp(params, obs, self.num_layers, self.activation, hidden)
        return out, lambda tangent: stacked_mlp_tangent(params, tangent, obs, hidden, self.activation)
