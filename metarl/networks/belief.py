"""VariBAD's networks: a belief over the task, what it predicts, and a policy that acts on it."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
from torch import Tensor, nn

from metarl.networks.distributions import DiagGaussian
from metarl.networks.gru import run_gru
from metarl.networks.heads import HyperHead, tanh_network
from metarl.networks.memory import input_size
from metarl.types import Spec


class BeliefEncoder(nn.Module):
    """``q(m | tau_:t)``: a GRU over the trial so far gives mean and log-variance of a latent task at every step.

    Zintgraf et al., 2020 (arXiv 1910.08348), section 3.1 and Figure 2.

    Args:
        spec: sizes of observation and action.
        embedding_size: ReLU units between input and GRU.
        hidden_size: units of the GRU, the size of its state.
        latent_size: coordinates of the latent task.
    """

    def __init__(self, spec: Spec, embedding_size: int, hidden_size: int, latent_size: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(input_size(spec), embedding_size)
        self.gru = nn.GRU(embedding_size, hidden_size, batch_first=True)
        self.mean = nn.Linear(hidden_size, latent_size)
        self.log_variance = nn.Linear(hidden_size, latent_size)
        for name, parameter in self.gru.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[DiagGaussian, Tensor]:
        """Run over whole trials, or over one step.

        Args:
            inputs: ``[sequence, time, input]`` of :func:`metarl.networks.memory.trial_inputs`.
            state: ``[sequence, hidden]`` before the first step; zeros at a trial's start.

        Returns:
            The belief after each of these inputs, ``[sequence, time, latent]``, and the state after the last one.
        """
        hidden, last = run_gru(self.gru, self.embedding(inputs).relu(), state)
        return DiagGaussian(self.mean(hidden), 0.5 * self.log_variance(hidden)), last


class Decoder(nn.Module):
    """``p(y | x, m)``: what a latent task says about the steps of a trial, for every pair of belief and step.

    The first layer is a sum of a part for the latent and one for the step: neither is computed once per pair.

    Args:
        latent_size: coordinates of the latent task.
        step_size: size of what is known of a step.
        hidden_sizes: widths of the ReLU layers, one or more.
        output_size: size of what is predicted of a step.
    """

    def __init__(self, latent_size: int, step_size: int, hidden_sizes: tuple[int, ...], output_size: int) -> None:
        super().__init__()
        self.from_latent = nn.Linear(latent_size, hidden_sizes[0], bias=False)
        self.from_step = nn.Sequential(
            nn.Linear(step_size, hidden_sizes[0]), nn.ReLU(), nn.Linear(hidden_sizes[0], hidden_sizes[0])
        )
        layers: list[nn.Module] = [nn.ReLU()]
        for fan_in, fan_out in itertools.pairwise(hidden_sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden_sizes[-1], output_size))

    def forward(self, latents: Tensor, steps: Tensor) -> Tensor:
        """Predictions ``[sequence, belief, step, output]``.

        ``latents`` is ``[sequence, belief, latent]`` and ``steps`` ``[sequence, step, step_size]``.
        """
        first = self.from_latent(latents).unsqueeze(2) + self.from_step(steps).unsqueeze(1)
        out: Tensor = self.rest(first)
        return out


class BeliefPolicy(nn.Module):
    """A policy and a value of observation and belief: two tanh networks that share nothing.

    Args:
        spec: sizes of observation and action.
        latent_size: coordinates of the latent task; the belief is their means and log-variances.
        hidden_sizes: widths of the hidden layers.
        init_std: initial standard deviation of a Gaussian policy.
    """

    def __init__(self, spec: Spec, latent_size: int, hidden_sizes: tuple[int, ...], init_std: float) -> None:
        super().__init__()
        sizes = (spec.obs_dim + 2 * latent_size, *hidden_sizes)
        self.actor = tanh_network(sizes, spec.action_dim)
        self.critic = tanh_network(sizes, 1)
        if spec.num_coordinates:
            self.log_std = nn.Parameter(torch.full((spec.num_coordinates,), math.log(init_std)))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Policy outputs ``[..., action_dim]`` and values ``[...]`` for inputs ``[..., obs_dim + 2 latent]``."""
        return self.actor(inputs), self.critic(inputs).squeeze(-1)


class BeliefHyperPolicy(nn.Module):
    """A policy and a value of the observation, whose weights hypernetworks make of the belief.

    Args:
        spec: sizes of observation and action.
        latent_size: coordinates of the latent task; the belief is their means and log-variances.
        hidden_sizes: widths of the hidden layers.
        init_std: initial standard deviation of a Gaussian policy.
        code_size: numbers that the hypernetworks leave of the belief.
    """

    def __init__(
        self, spec: Spec, latent_size: int, hidden_sizes: tuple[int, ...], init_std: float, code_size: int
    ) -> None:
        super().__init__()
        self.obs_dim = spec.obs_dim
        kind = partial(HyperHead, 2 * latent_size, obs_dim=spec.obs_dim, hidden_sizes=hidden_sizes, code_size=code_size)
        self.actor, self.critic = kind(spec.action_dim), kind(1)
        for head in (self.actor, self.critic):
            head.start_small()
        if spec.num_coordinates:
            self.log_std = nn.Parameter(torch.full((spec.num_coordinates,), math.log(init_std)))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`BeliefPolicy.forward`."""
        obs, belief = inputs[..., : self.obs_dim], inputs[..., self.obs_dim :]
        return self.actor(belief, obs), self.critic(belief, obs).squeeze(-1)
