"""Stacked MLP policies: every weight carries a leading task axis, so that all tasks run in one ``baddbmm``."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn

from metarl.networks.policy import Params, Policy
from metarl.types import Spec

Activation = Literal["tanh", "relu"]


def stack(params: Params, num_tasks: int) -> Params:
    """The same parameters for every task: views ``[task, ...]``."""
    return {name: value.expand(num_tasks, *value.shape) for name, value in params.items()}


def stacked_mlp(params: Params, x: Tensor, num_layers: int, activation: Activation) -> Tensor:
    """Run one MLP per task.

    Args:
        params: ``w{i}`` ``[task, in, out]`` and ``b{i}`` ``[task, out]`` for layers ``0 .. num_layers-1``.
        x: ``[task, sample, in]``.
        num_layers: linear layers, the last without activation.
        activation: between layers.

    Returns:
        ``[task, sample, out]``.
    """
    for layer in range(num_layers):
        x = torch.baddbmm(params[f"b{layer}"].unsqueeze(1), x, params[f"w{layer}"])
        if layer < num_layers - 1:
            x = x.tanh() if activation == "tanh" else x.relu()
    return x


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
