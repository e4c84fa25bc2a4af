"""Shared code for agents with a recurrent state: acting step by step, and PPO on the whole trials that they acted in.

The objective is the return of the whole trial (Duan et al., 2016, arXiv 1611.02779), its optimiser PPO (Schulman et
al., 2017, arXiv 1707.06347). An algorithm says how a state and a policy follow from what was seen.
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from metarl.agent import Agent, AgentConfig
from metarl.config.settings import Count, Positive, UnitInterval, refuse_idle
from metarl.distributed import current
from metarl.functional.policy_losses import clipped_ratio_loss
from metarl.functional.returns import discounted_sums, gae, masked_mean, normalise
from metarl.networks.distributions import Distribution
from metarl.networks.memory import trial_inputs
from metarl.networks.normaliser import RunningMoments
from metarl.types import Action, Spec, Timestep, Trial

_MOSTLY_CONSTANT = 5.0
"""Standard deviations from 0 at which rewards lie that are told of; at 7 nothing was learned (docs/algorithms)."""


@dataclass(frozen=True)
class RecurrentPPOConfig(AgentConfig):
    """PPO on whole trials."""

    adapts_by: ClassVar[Literal["gradient step", "episode"]] = "episode"
    renamed: ClassVar[Mapping[str, str]] = {"learning_rate": "meta_lr"}

    init_std: Positive = 1.0
    """Initial standard deviation of a Gaussian policy, where 1 is half the width of the action box."""
    episodes_per_trial: Count = 2
    """Episodes that the hidden state spans; the return of all of them counts."""
    rollouts_per_task: Count = 1
    """Independent trials of each sampled task."""
    discount: UnitInterval = 0.99
    """Discount of rewards, across the episodes of a trial."""
    gae_lambda: UnitInterval = 0.95
    """Lambda of generalised advantage estimation."""
    meta_lr: Annotated[Positive, tyro.conf.arg(aliases=["--learning-rate"])] = 5e-4
    """Adam's step size."""
    num_epochs: Count = 10
    """Passes over the trials of one iteration."""
    num_minibatches: Count = 4
    """Groups of sequences (trials, or pieces of them) that one pass is divided into."""
    clip_range: Positive = 0.2
    """PPO's clipping of the likelihood ratio."""
    entropy_coef: UnitInterval = 5e-3
    """Weight of the entropy bonus."""
    value_coef: UnitInterval = 0.5
    """Weight of the value loss."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    normalise_obs: bool = True
    """Shift and scale observations by their running moments."""
    normalise_rewards: bool = True
    """Divide rewards by their running standard deviation in the input, and by that of returns in the loss."""
    centre_rewards: bool = False
    """Subtract their running mean in the input too, and clip to ±10: where most of a reward is always the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_idle(self, "normalise_rewards", [True], ["centre_rewards"])

    @property
    def num_adaptations(self) -> int:
        """Between the episodes of a trial."""
        return self.episodes_per_trial - 1


@dataclass(frozen=True)
class Trials:
    """Whole trials, ``[sequence, time, ...]``: their episodes end to end, padding behind; ``rewards`` as paid."""

    inputs: Tensor
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Sequences:
    """Trials or pieces of them, ``[sequence, time, ...]``, as PPO sees them.

    ``memory`` ``[sequence, state]`` is what the agent remembered before each sequence.
    """

    memory: Tensor
    inputs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    value_targets: Tensor
    valid: Tensor

    def __getitem__(self, rows: Tensor) -> Sequences:
        return Sequences(*(getattr(self, field.name)[rows] for field in fields(self)))


class RecurrentPPO(Agent[Tensor]):
    """Its state is the memory ``[task, slot, state]``; before the first step the slot axis has size 1.

    Args:
        config: settings.
        spec: sizes of observation and action.
        device: where everything lives.
        trained: the network that PPO trains.
        state_size: numbers in the memory of one trial; all zero before the first step.
    """

    config: RecurrentPPOConfig
    data_parallel = True

    def __init__(
        self, config: RecurrentPPOConfig, spec: Spec, device: torch.device, trained: nn.Module, state_size: int
    ) -> None:
        super().__init__(
            spec, device, num_adaptations=config.episodes_per_trial - 1, rollouts_per_task=config.rollouts_per_task
        )
        self.config = config
        self.state_size = state_size
        self.obs_moments = RunningMoments(spec.obs_dim).to(device)
        self.reward_moments = RunningMoments(1).to(device)
        self.return_moments = RunningMoments(1).to(device)
        self.optimizer = Adam(trained.parameters(), lr=config.meta_lr, eps=1e-5)
        self._trained = trained
        self._warned = False

    @abc.abstractmethod
    def forward(self, inputs: Tensor, memory: Tensor) -> tuple[Distribution, Tensor, Tensor]:
        """Policy and values over ``[sequence, time]``, and the memory after the last step.

        ``inputs`` is ``[sequence, time, input]`` and ``memory`` ``[sequence, state]`` before the first of these steps.
        """

    @abc.abstractmethod
    def evaluate(self, batch: Sequences) -> tuple[Distribution, Tensor]:
        """Policy and values of the steps of ``batch``, differentiable in what PPO trains."""

    def begin(self, num_tasks: int) -> Tensor:
        """An empty memory."""
        return self.no_memory(num_tasks).unsqueeze(1)

    @torch.no_grad()
    def act(self, state: Tensor, timestep: Timestep, deterministic: bool = False) -> tuple[Action, Tensor]:
        """One step of the memory, then a sample; where an episode has ended the memory stands still."""
        num_tasks, slots = timestep.valid.shape
        if slots != state.shape[1]:
            # Slot k goes on from slot k modulo the number of slots before, as the collector shows it.
            state = state[:, torch.arange(slots, device=self.device) % state.shape[1]]
        inputs = self._inputs(timestep).view(num_tasks * slots, 1, -1)
        policy, _, memory = self.forward(inputs, state.reshape(num_tasks * slots, -1))
        value = policy.mode() if deterministic else policy.sample(self.noise)
        log_prob = policy.log_prob(value).view(num_tasks, slots)
        memory = torch.where(timestep.valid[..., None], memory.view(num_tasks, slots, -1), state)
        return Action(value.view(num_tasks, slots, *value.shape[2:]), log_prob), memory

    # For meta-updates -----------------------------------------------------------------------------------------------

    def _shared_components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Normalisers and PPO's optimiser."""
        return {
            "obs_moments": self.obs_moments,
            "reward_moments": self.reward_moments,
            "return_moments": self.return_moments,
            "optimizer": self.optimizer,
        }

    def improve(self, batch: Sequences) -> dict[str, float]:
        """Several epochs of minibatches of sequences, those of all ranks."""
        own = OwnRows.of(len(batch.inputs))
        minibatch = -(-own.total // min(self.config.num_minibatches, own.total))
        metrics: list[Tensor] = []
        for _ in range(self.config.num_epochs):
            order = torch.randperm(own.total, generator=self.generator, device=self.device)
            for rows in torch.split(order, minibatch):
                metrics.append(self.ppo_step(batch[own.among(rows)]))
        mean = torch.stack(metrics).mean(0).tolist()
        names = ("policy_loss", "value_loss", "entropy", "kl", "gradient_norm")
        return dict(zip(names, mean, strict=True))

    def ppo_step(self, batch: Sequences) -> Tensor:
        """One step of Adam on the clipped surrogate, the value loss and the entropy bonus of all valid steps.

        Every rank of the current group gives its sequences, which may be none.

        Returns:
            Policy loss, value loss, entropy, KL and gradient norm, ``[5]``.
        """
        group, num_steps = current(), batch.valid.sum()
        self.optimizer.zero_grad()
        parts = self._descend(batch) if len(batch.inputs) else torch.zeros(4, device=self.device)
        group.average_gradients(self._trained.parameters(), num_steps)
        norm = nn.utils.clip_grad_norm_(self._trained.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return torch.cat([group.average(parts, num_steps), norm[None].detach()])

    def _descend(self, batch: Sequences) -> Tensor:
        """Leave the gradient of the loss; returns policy loss, value loss, entropy and KL, ``[4]``."""
        config = self.config
        policy, values = self.evaluate(batch)
        log_prob = policy.log_prob(batch.actions)
        # One row, so that every step of the minibatch counts the same however long its trial is.
        new, old, advantages, valid = (
            x.reshape(1, -1) for x in (log_prob, batch.log_probs, batch.advantages, batch.valid)
        )
        policy_loss = clipped_ratio_loss(new, old, advantages, valid, config.clip_range).squeeze(0)
        value_loss = masked_mean((values - batch.value_targets).square(), batch.valid, (0, 1))
        entropy = masked_mean(policy.entropy(), batch.valid, (0, 1))
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
        loss.backward()  # type: ignore[no-untyped-call]
        kl = masked_mean(batch.log_probs - log_prob, batch.valid, (0, 1))
        return torch.stack([policy_loss, value_loss, entropy, kl]).detach()

    def with_advantages(
        self, trials: Trials, values: Tensor, last_value: Tensor, memories: Tensor, num_steps: int
    ) -> Sequences:
        """Advantages over whole trials, which are then cut into pieces of ``num_steps``.

        ``values`` are ``[sequence, time]``, ``last_value`` ``[sequence]`` is what a trial's end is worth, and
        ``memories`` ``[sequence, piece, state]`` what was remembered before each piece.
        """
        scale = self.return_moments.std if self.config.normalise_rewards else 1.0
        valid, never = trials.valid, torch.zeros_like(trials.valid)
        discount, gae_lambda = self.config.discount, self.config.gae_lambda
        advantages = gae(trials.rewards / scale, values, last_value, never, valid, discount, gae_lambda)
        targets, advantages = values + advantages, normalise(advantages, valid, (0, 1), group=current())
        whole = (trials.inputs, trials.actions, trials.log_probs, advantages, targets, valid)
        pieces = [_cut(part, num_steps) for part in whole]
        # Of a trial that ended early, the last pieces may hold nothing but padding.
        kept = pieces[-1].any(1)
        return Sequences(*(part[kept] for part in (memories.flatten(0, 1), *pieces)))

    def _inputs(self, timestep: Timestep) -> Tensor:
        timestep = replace(timestep, obs=self._normalised_obs(timestep.obs))
        return trial_inputs(replace(timestep, prev_reward=self.normalised_rewards(timestep.prev_reward)))

    def normalised_rewards(self, rewards: Tensor) -> Tensor:
        """Rewards as the network sees them."""
        if self.config.centre_rewards:
            return self.reward_moments.normalise(rewards)
        return rewards / self.reward_moments.std if self.config.normalise_rewards else rewards

    def _normalised_obs(self, obs: Tensor) -> Tensor:
        return self.obs_moments.normalise(obs) if self.config.normalise_obs else obs

    def no_memory(self, num_sequences: int) -> Tensor:
        """What a trial begins with, ``[sequence, state]``."""
        return torch.zeros(num_sequences, self.state_size, device=self.device)

    def update_return_moments(self, trial: Trial) -> None:
        """Take in the discounted return to go of every step, each episode by itself."""
        for rollout in trial.rollouts:
            sums = discounted_sums(rollout.rewards, self.config.discount)
            self.return_moments.update(sums[..., None], rollout.valid)

    def update_input_moments(self, trial: Trial) -> None:
        """Take in observations and rewards: at an update's end, as acting and recomputing must see the same inputs."""
        for rollout in trial.rollouts:
            self.obs_moments.update(rollout.obs, rollout.valid)
            self.reward_moments.update(rollout.rewards[..., None], rollout.valid)
        self._warn_of_constant_part()

    def _warn_of_constant_part(self) -> None:
        config, mean, std = self.config, float(self.reward_moments.mean), float(self.reward_moments.std)
        if self._warned or config.centre_rewards or not config.normalise_rewards or abs(mean) <= _MOSTLY_CONSTANT * std:
            return
        self._warned = True
        warnings.warn(
            f"rewards have a mean of {mean:.6g} and a standard deviation of {std:.3g}: divided by it, as the network "
            f"sees them, they lie around {mean / std:.0f}, and what tells tasks apart is small beside that. Take the "
            "constant part off (gymnasium.wrappers.TransformReward), or set centre_rewards, which does so in what the "
            "network sees and not in its values.",
            RuntimeWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class OwnRows:
    """Which rows of a batch that lies on all ranks of the current group, one after the other, this rank has.

    Attributes:
        first: number of its first row in the whole batch.
        count: rows that it has.
        total: rows of the whole batch.
    """

    first: int
    count: int
    total: int

    @classmethod
    def of(cls, count: int) -> OwnRows:
        """Those of a rank that has ``count`` of them."""
        first, total = current().place(count)
        return cls(first, count, total)

    def among(self, rows: Tensor) -> Tensor:
        """Those of ``rows``, numbers in the whole batch, that this rank has, as numbers of its own, in their order."""
        return rows if self.count == self.total else rows[self.mask(rows)] - self.first

    def mask(self, rows: Tensor) -> Tensor:
        """Where ``rows`` are this rank's, bool."""
        return (rows >= self.first) & (rows < self.first + self.count)


def end_to_end(episodes: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Lay the episodes of each trial end to end.

    Args:
        episodes: for each rollout the same tensors ``[task, slot, time, ...]``, the last of them the mask of its steps.

    Returns:
        The tensors as ``[task * slot, time, ...]``, padding moved to the end; as long as the longest trial of a rank.
    """
    joined = [torch.cat(parts, dim=2).flatten(0, 1) for parts in zip(*episodes, strict=True)]
    # A stable sort by "is padding" keeps the order of time and leaves no gap for the memory to run over.
    order = torch.argsort((~joined[-1]).to(torch.uint8), dim=1, stable=True)
    longest = max(current().gather(int(joined[-1].sum(1).max())))
    return tuple(_to_length(take(part, order), longest) for part in joined)


def take(x: Tensor, order: Tensor) -> Tensor:
    """``x[row, order[row, k]]`` for ``x`` ``[row, time, ...]`` and ``order`` ``[row, k]``."""
    index = order.view(*order.shape, *(1,) * (x.dim() - 2)).expand(*order.shape, *x.shape[2:])
    return x.gather(1, index)


def _to_length(x: Tensor, length: int) -> Tensor:
    """``[sequence, time, ...]``, cut off or filled up with zeros to ``length`` steps."""
    return torch.cat([x[:, :length], x.new_zeros(x.shape[0], max(0, length - x.shape[1]), *x.shape[2:])], dim=1)


def _cut(x: Tensor, size: int) -> Tensor:
    """``[sequence, time, ...]`` -> ``[sequence * piece, size, ...]``, the last piece filled up with zeros."""
    filled = _to_length(x, x.shape[1] + -x.shape[1] % size)
    return filled.reshape(-1, size, *x.shape[2:])
