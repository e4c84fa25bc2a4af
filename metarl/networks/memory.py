"""Memory of a trial: a sequence network over everything that the agent saw, with a policy and a value head."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor, nn

from metarl.networks.gru import run_gru
from metarl.networks.heads import HeadFactory, LinearHead
from metarl.types import Spec, Timestep


def trial_inputs(timestep: Timestep) -> Tensor:
    """RL²'s input: observation, previous action, previous reward and done flag (arXiv 1611.02779, section 2.2).

    Args:
        timestep: any leading axes.

    Returns:
        ``[..., obs_dim + action_dim + 2]``.
    """
    scalars = (timestep.prev_reward[..., None], timestep.prev_done[..., None])
    return torch.cat([timestep.obs, timestep.prev_action, *scalars], dim=-1)


def input_size(spec: Spec) -> int:
    """Size of :func:`trial_inputs`."""
    return spec.obs_dim + spec.action_dim + 2


class Memory(nn.Module, abc.ABC):
    """A causal sequence network whose past is one vector per sequence, so that one step costs one step.

    Args:
        spec: sizes of observation and action.
        feature_size: what :meth:`remember` returns for each step.
        state_size: numbers that hold the past; all zero before the first step.
        init_std: initial standard deviation of a Gaussian policy.
        head: makes the policy's head and the value's.
    """

    def __init__(
        self, spec: Spec, feature_size: int, state_size: int, init_std: float, head: HeadFactory = LinearHead
    ) -> None:
        super().__init__()
        self.obs_dim = spec.obs_dim
        self.state_size = state_size
        self.policy_head = head(feature_size, spec.action_dim)
        self.value_head = head(feature_size, 1)
        if spec.num_coordinates:
            self.log_std = nn.Parameter(torch.full((spec.num_coordinates,), math.log(init_std)))
        for made in (self.policy_head, self.value_head):
            made.start_small()

    @abc.abstractmethod
    def remember(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[sequence, time, feature]`` of ``inputs`` ``[sequence, time, input]``, and the state after them.

        ``state`` is ``[sequence, state_size]`` before the first of these steps.
        """

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run over whole sequences, or over one step.

        Args:
            inputs: ``[sequence, time, input]``.
            state: ``[sequence, state_size]`` before the first step.

        Returns:
            Policy outputs ``[sequence, time, action_dim]``, values ``[sequence, time]`` and the state after the last
            step ``[sequence, state_size]``.
        """
        features, state = self.remember(inputs, state)
        return *self.heads(features, inputs), state

    def heads(self, features: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Policy outputs ``[sequence, time, action_dim]`` and values ``[sequence, time]``.

        ``features`` are those of ``inputs``, which begin with the observation.
        """
        obs = inputs[..., : self.obs_dim]
        return self.policy_head(features, obs), self.value_head(features, obs).squeeze(-1)


class GRUMemory(Memory):
    """A GRU (Cho et al., 2014, arXiv 1406.1078), RL²'s choice.

    Args:
        spec: sizes of observation and action.
        hidden_size: units.
        init_std: initial standard deviation of a Gaussian policy.
        encoder_sizes: widths of tanh layers between the input and the GRU.
        head: makes the heads.
    """

    def __init__(
        self,
        spec: Spec,
        hidden_size: int,
        init_std: float,
        encoder_sizes: tuple[int, ...] = (),
        head: HeadFactory = LinearHead,
    ) -> None:
        super().__init__(spec, hidden_size, hidden_size, init_std, head)
        self.encoder, size = tanh_layers(spec, encoder_sizes)
        self.gru = nn.GRU(size, hidden_size, batch_first=True)
        _initialise(self.gru)

    def remember(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state is the hidden state."""
        return run_gru(self.gru, self.encoder(inputs), state)


class LSTMMemory(Memory):
    """An LSTM (Hochreiter & Schmidhuber, 1997).

    Args:
        spec: sizes of observation and action.
        hidden_size: units.
        init_std: initial standard deviation of a Gaussian policy.
        encoder_sizes: widths of tanh layers between the input and the LSTM.
        head: makes the heads.
    """

    def __init__(
        self,
        spec: Spec,
        hidden_size: int,
        init_std: float,
        encoder_sizes: tuple[int, ...] = (),
        head: HeadFactory = LinearHead,
    ) -> None:
        super().__init__(spec, hidden_size, 2 * hidden_size, init_std, head)
        self.encoder, size = tanh_layers(spec, encoder_sizes)
        self.lstm = nn.LSTM(size, hidden_size, batch_first=True)
        _initialise(self.lstm)

    def remember(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state is hidden state and cell, side by side."""
        hidden, cell = (part.contiguous() for part in state.unsqueeze(0).chunk(2, dim=-1))
        features, last = self.lstm(self.encoder(inputs), (hidden, cell))
        return features, torch.cat(last, dim=-1).squeeze(0)


def tanh_layers(spec: Spec, sizes: tuple[int, ...]) -> tuple[nn.Sequential, int]:
    """Glorot-initialised tanh layers, and the size of what they return; without layers the input passes through."""
    layers: list[nn.Module] = []
    width = input_size(spec)
    for size in sizes:
        linear = nn.Linear(width, size)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
        width = size
    return nn.Sequential(*layers), width


def _initialise(network: nn.GRU | nn.LSTM) -> None:
    for name, parameter in network.named_parameters():
        if "weight" in name:
            nn.init.orthogonal_(parameter)
        else:
            nn.init.zeros_(parameter)
