"""What makes a policy, or a value, of the features of a memory: three heads.

The last two see the observation again. In :class:`HyperHead` the memory does not stand beside it but makes the weights
that it goes through (Beck et al., 2022, arXiv 2210.11348; 2023, arXiv 2309.14970: RNN+HN, whose control RNN+S is
:class:`StateHead`). Of their code (``jacooba/hyper``) this leaves out the layer that encodes the observation.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

HeadFactory = Callable[[int, int], "Head"]
"""Sizes of features and output -> a head."""


class Head(nn.Module, abc.ABC):
    """A function of features and observation."""

    @abc.abstractmethod
    def forward(self, features: Tensor, obs: Tensor) -> Tensor:
        """``[..., output]`` for ``features`` ``[..., feature]`` and ``obs`` ``[..., obs_dim]``."""

    @abc.abstractmethod
    def start_small(self) -> None:
        """Begin with outputs near zero: a policy that is nearly uniform, and no values."""


class LinearHead(Head):
    """One layer on the features alone.

    Args:
        feature_size: size of the features.
        output_size: size of the output.
    """

    def __init__(self, feature_size: int, output_size: int) -> None:
        super().__init__()
        linear = nn.Linear(feature_size, output_size)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: Tensor, obs: Tensor) -> Tensor:
        """See :class:`Head`; the observation is not looked at."""
        return nn.functional.linear(features, self.weight, self.bias)

    def start_small(self) -> None:
        """See :class:`Head`."""
        nn.init.orthogonal_(self.weight, 0.01)
        nn.init.zeros_(self.bias)


class StateHead(Head):
    """An MLP on a code of the features, with the observation beside it.

    Args:
        feature_size: size of the features.
        output_size: size of the output.
        obs_dim: size of the observation.
        hidden_sizes: widths of the MLP's hidden layers.
        code_size: numbers that are left of the features.
    """

    def __init__(
        self, feature_size: int, output_size: int, *, obs_dim: int, hidden_sizes: tuple[int, ...], code_size: int
    ) -> None:
        super().__init__()
        self.code = _orthogonal(nn.Linear(feature_size, code_size))
        self.network = tanh_network((code_size + obs_dim, *hidden_sizes), output_size)

    def forward(self, features: Tensor, obs: Tensor) -> Tensor:
        """See :class:`Head`."""
        out: Tensor = self.network(torch.cat([self.code(features).tanh(), obs], dim=-1))
        return out

    def start_small(self) -> None:
        """It is so from the beginning."""


class HyperLinear(nn.Module):
    """A linear layer whose weights and biases are affine functions of a code: the last layer of a hypernetwork.

    The weights that come without a code are those of ``base``, and the code's part begins at zero ("Bias-HyperInit",
    Beck et al., 2022): whatever the memory holds, training begins with the network that ``base`` alone is.

    Args:
        size: inputs.
        output_size: outputs.
        code_size: numbers in a code.
    """

    def __init__(self, size: int, output_size: int, code_size: int) -> None:
        super().__init__()
        self.base = _orthogonal(nn.Linear(size, output_size))
        self.weight = nn.Parameter(torch.zeros(output_size, code_size, size))
        self.bias = nn.Parameter(torch.zeros(output_size, code_size))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """``(W + sum_k c_k W_k) x + b + sum_k c_k b_k``, ``[..., output]``, for a code of each input.

        No weights are ever made, which would be as many for every step of every trial: ``W_k x`` are fewer by the
        number of inputs.
        """
        parts = nn.functional.linear(x, self.weight.flatten(0, 1)).view(*x.shape[:-1], *self.bias.shape) + self.bias
        out: Tensor = self.base(x) + (parts @ code.unsqueeze(-1)).squeeze(-1)
        return out


class HyperHead(Head):
    """An MLP on the observation, whose weights a hypernetwork makes of the features.

    Args:
        feature_size: size of the features.
        output_size: size of the output.
        obs_dim: size of the observation.
        hidden_sizes: widths of the MLP's hidden layers.
        code_size: numbers that the hypernetwork's hidden layer leaves of the features. Time, memory and parameters grow
            with it.
    """

    def __init__(
        self, feature_size: int, output_size: int, *, obs_dim: int, hidden_sizes: tuple[int, ...], code_size: int
    ) -> None:
        super().__init__()
        self.code = _orthogonal(nn.Linear(feature_size, code_size))
        sizes = (obs_dim, *hidden_sizes)
        self.hidden = nn.ModuleList(HyperLinear(*pair, code_size) for pair in itertools.pairwise(sizes))
        self.last = HyperLinear(sizes[-1], output_size, code_size)

    def forward(self, features: Tensor, obs: Tensor) -> Tensor:
        """See :class:`Head`."""
        code, x = self.code(features).tanh(), obs
        for layer in self.hidden:
            x = layer(x, code).tanh()
        out: Tensor = self.last(x, code)
        return out

    def start_small(self) -> None:
        """See :class:`Head`."""
        nn.init.orthogonal_(self.last.base.weight, 0.01)


def tanh_network(sizes: tuple[int, ...], output_size: int) -> nn.Sequential:
    """An MLP with tanh between its layers, whose first outputs are near zero.

    Args:
        sizes: of the input, and of the hidden layers.
        output_size: size of the output.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [_orthogonal(nn.Linear(fan_in, fan_out)), nn.Tanh()]
    # A first policy that is nearly uniform, and first values near zero.
    return nn.Sequential(*layers, _orthogonal(nn.Linear(sizes[-1], output_size), 0.01))


def _orthogonal(linear: nn.Linear, gain: float = math.sqrt(2.0)) -> nn.Linear:
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear
