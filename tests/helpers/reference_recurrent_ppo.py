"""PPO on whole trials written plainly, one sequence and one step at a time, for the tests of RL2 and VariBAD.

It shares nothing with the implementation but the names and values of the parameters.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

from helpers.countdown import countdown
from metarl.agents.common.recurrent_ppo import RecurrentPPO
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.types import Rollout, Timestep, Trial

CPU = torch.device("cpu")
SLOTS = 3
TASKS = [{"name": float(i), "length": length, "jitter": 2.0} for i, length in enumerate([1.0, 2.0, 3.0, 8.0])]
"""Episodes of 1 to 5 steps of uneven lengths; those of the last task run out of time, the others end."""

Params = Mapping[str, Tensor]


def randomise(*networks: nn.Module) -> None:
    """Parameters far from their small initial values, so that memory and belief matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float32))


def play(agent: RecurrentPPO, seed: int) -> Trial:
    collector = Collector(countdown(agent.spec.discrete), agent.rollouts_per_task, CPU)
    return run_trial(agent, collector, TASKS, agent.num_adaptations, seed)


def doubled(value: Any) -> Any:
    """The same rollouts in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Rollout | Timestep):
        return dataclasses.replace(
            value, **{f.name: doubled(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


def off_policy(trial: Trial, seed: int) -> Trial:
    """In float64, with disturbed log-probabilities: at a ratio of 1 nothing is clipped."""
    generator = torch.Generator().manual_seed(seed)
    rollouts = []
    for rollout in trial.rollouts:
        noise = 0.3 * torch.randn(rollout.log_probs.shape, generator=generator)
        rollouts.append(dataclasses.replace(doubled(rollout), log_probs=rollout.log_probs.double() + noise))
    return dataclasses.replace(trial, rollouts=tuple(rollouts))


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    return params[f"{name}.weight"] @ x + params[f"{name}.bias"]


def gru_cell(params: Params, x: Tensor, hidden: Tensor) -> Tensor:
    """Cho et al., 2014, in PyTorch's order of gates: reset, update, new."""
    from_x = params["gru.weight_ih_l0"] @ x + params["gru.bias_ih_l0"]
    from_h = params["gru.weight_hh_l0"] @ hidden + params["gru.bias_hh_l0"]
    (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3), from_h.chunk(3)
    reset, update = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    return (1 - update) * torch.tanh(xn + reset * hn) + update * hidden


def copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}


class TrialReference(abc.ABC):
    """One PPO step on whole trials.

    Args:
        agent: its settings and spaces count.
        trained: the network that PPO moves.
        earlier: trials that the running moments have seen.
    """

    def __init__(self, agent: RecurrentPPO, trained: nn.Module, earlier: list[Trial]) -> None:
        self.config = agent.config
        self.discrete = agent.spec.discrete
        self.params = copies(trained)
        rollouts = [rollout for trial in earlier for rollout in trial.rollouts]
        self.obs_mean, self.obs_std = torch.zeros(agent.spec.obs_dim), torch.ones(agent.spec.obs_dim)
        self.reward_mean, self.reward_std = torch.zeros(1), torch.ones(1)
        if rollouts:
            obs = torch.cat([r.obs[r.valid] for r in rollouts]).double()
            rewards = torch.cat([r.rewards[r.valid] for r in rollouts]).double()
            self.obs_mean, self.obs_std = obs.mean(0).float(), obs.std(0, correction=0).float()
            self.reward_mean, self.reward_std = rewards.mean().float(), rewards.std(correction=0).float()

    @abc.abstractmethod
    def run(self, trial: Trial, row: tuple[int, int]) -> tuple[list[dict[str, Any]], float]:
        """All steps of one trial: policy, value, action, behaviour, reward; and what the trial's end is worth."""

    def normalised(self, obs: Tensor) -> Tensor:
        return ((obs - self.obs_mean) / self.obs_std).clamp(-10, 10)

    def inputs(self, timestep: Timestep) -> Tensor:
        reward = timestep.prev_reward / self.reward_std
        if self.config.centre_rewards:
            reward = ((timestep.prev_reward - self.reward_mean) / self.reward_std).clamp(-10, 10)
        obs = self.normalised(timestep.obs)
        return torch.cat([obs, timestep.prev_action, reward.reshape(1), timestep.prev_done.reshape(1)])

    def policy(self, out: Tensor) -> Any:
        return Categorical(logits=out) if self.discrete else Independent(Normal(out, self.params["log_std"].exp()), 1)

    def return_std(self, trials: list[Trial]) -> Tensor:
        """Of the discounted return to go of every step, each episode by itself."""
        found: list[float] = []
        for rewards in (row for trial in trials for r in trial.rollouts for row in self._episodes(r)):
            tail = 0.0
            for reward in reversed(rewards):
                tail = reward + self.config.discount * tail
                found.append(tail)
        return torch.tensor(found, dtype=torch.float64).std(correction=0).float()

    @staticmethod
    def _episodes(rollout: Rollout) -> list[list[float]]:
        rows = zip(rollout.rewards.flatten(0, 1), rollout.lengths.flatten().tolist(), strict=True)
        return [rewards[:length].tolist() for rewards, length in rows]

    def step(self, trial: Trial, scale: Tensor) -> dict[str, Tensor]:
        """Parameters after one Adam step on the clipped surrogate, value loss and entropy of all steps."""
        config = self.config
        flat: list[dict[str, Any]] = []
        for row in ((task, slot) for task in range(len(TASKS)) for slot in range(SLOTS)):
            steps, following = self.run(trial, row)
            advantage = 0.0
            for step in reversed(steps):
                value = step["value"].item()
                delta = (step["reward"] / scale).item() + config.discount * following - value
                advantage = delta + config.discount * config.gae_lambda * advantage
                step["advantage"], step["target"], following = advantage, value + advantage, value
            flat += steps
        advantages = torch.tensor([step["advantage"] for step in flat])
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
        loss, num_clipped = torch.zeros(()), 0
        for step, advantage in zip(flat, advantages, strict=True):
            ratio = torch.exp(step["policy"].log_prob(step["action"]) - step["behaviour"])
            low, high = 1 - config.clip_range, 1 + config.clip_range
            surrogate = min(ratio * advantage, ratio.clamp(low, high) * advantage)
            num_clipped += not low < ratio < high
            squared = (step["value"] - step["target"]) ** 2
            entropy = step["policy"].entropy()
            loss = loss + (-surrogate + config.value_coef * squared - config.entropy_coef * entropy) / len(flat)
        assert 0 < num_clipped < len(flat)
        gradients = torch.autograd.grad(loss, list(self.params.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        assert norm > config.max_grad_norm
        scaled = [g * config.max_grad_norm / (norm + 1e-6) for g in gradients]
        # Adam's first step: both moments, bias-corrected, are the gradient and its square.
        return {
            name: p.detach() - config.meta_lr * g / (g.abs() + 1e-5)
            for (name, p), g in zip(self.params.items(), scaled, strict=True)
        }
