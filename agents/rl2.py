"""RL²: a recurrent policy whose hidden state is the learning algorithm.

Duan et al., 2016 (arXiv 1611.02779): the policy sees observation, previous action, previous reward and done flag, and
keeps its hidden state across the episodes of a trial; the objective is the return of the whole trial. The outer
algorithm is PPO (Schulman et al., 2017, arXiv 1707.06347) on whole trials, as in Meta-World's baselines, or on pieces
of trials that start from the state remembered when they were played (truncated back-propagation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from metarl.agent import Agent, AgentConfig
from metarl.errors import ConfigError, require_in_unit_interval, require_positive, unknown_name
from metarl.functional.policy_losses import clipped_ratio_loss
from metarl.functional.returns import discounted_sums, gae, masked_mean, normalise
from metarl.networks.distributions import Categorical, DiagGaussian, Distribution
from metarl.networks.memory import GRUMemory, LSTMMemory, Memory, trial_inputs
from metarl.networks.normaliser import RunningMoments
from metarl.networks.snail import SNAILMemory
from metarl.seeding import torch_stream
from metarl.types import Action, Rollout, Spec, Timestep, Trial


@dataclass(frozen=True)
class RL2Config(AgentConfig):
    """RL² with PPO."""

    memory: Literal["gru", "lstm", "snail"] = "gru"
    """What remembers the trial: a recurrent network, or SNAIL's convolutions and attention."""
    hidden_size: int = 128
    """Units of the recurrent network; for snail the filters of each block (the paper's 32)."""
    encoder_sizes: tuple[int, ...] = ()
    """Widths of tanh layers before the recurrent network (Meta-World+: two of 256)."""
    bptt_steps: int = 0
    """Steps that a gradient flows back through; 0: the whole trial. Later steps start from the remembered state."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products in memory and encoder; bfloat16 halves their time where the processor has it."""
    init_std: float = 1.0
    """Initial standard deviation of a Gaussian policy, where 1 is half the width of the action box."""
    episodes_per_trial: int = 2
    """Episodes that the hidden state spans; the return of all of them counts."""
    rollouts_per_task: int = 1
    """Independent trials of each sampled task."""
    discount: float = 0.99
    """Discount of rewards, across the episodes of a trial."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    learning_rate: float = 5e-4
    """Adam's step size."""
    num_epochs: int = 10
    """Passes over the trials of one iteration."""
    num_minibatches: int = 4
    """Groups of sequences (trials, or the pieces that bptt_steps cuts them into) that one pass is divided into."""
    clip_range: float = 0.2
    """PPO's clipping of the likelihood ratio."""
    entropy_coef: float = 5e-3
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    normalise_obs: bool = True
    """Shift and scale observations by their running moments."""
    normalise_rewards: bool = True
    """Divide rewards by their running standard deviation in the input, and by that of returns in the loss."""

    def __post_init__(self) -> None:
        require_positive(
            self,
            *("hidden_size", "init_std", "episodes_per_trial", "rollouts_per_task", "learning_rate", "num_epochs"),
            *("num_minibatches", "clip_range", "max_grad_norm"),
        )
        require_in_unit_interval(self, "discount", "gae_lambda", "entropy_coef", "value_coef")
        if self.memory not in ("gru", "lstm", "snail"):
            raise unknown_name("memory", self.memory, ("gru", "lstm", "snail"))
        if self.precision not in ("float32", "bfloat16"):
            raise unknown_name("precision", self.precision, ("float32", "bfloat16"))
        if isinstance(self.bptt_steps, bool) or not isinstance(self.bptt_steps, int) or self.bptt_steps < 0:
            raise ConfigError(f"RL2Config.bptt_steps must be a whole number of 0 or more, got {self.bptt_steps!r}.")
        if any(width < 1 for width in self.encoder_sizes):
            raise ConfigError(f"RL2Config.encoder_sizes must be above 0, got {self.encoder_sizes!r}.")
        if self.memory == "snail" and (self.bptt_steps or self.encoder_sizes):
            raise ConfigError(
                f"bptt_steps={self.bptt_steps} and encoder_sizes={self.encoder_sizes} are for memory gru or lstm; "
                "snail reads the whole trial at once."
            )

    def build(self, spec: Spec, device: torch.device, seed: int) -> RL2:
        """A fresh agent."""
        return RL2(self, spec, device, seed)


@dataclass(frozen=True)
class _Sequences:
    """Trials or pieces of them, ``[sequence, time, ...]``; padding between episodes is moved to the end.

    ``memory`` ``[sequence, state]`` is what the agent remembered before each sequence.
    """

    memory: Tensor
    inputs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    value_targets: Tensor
    valid: Tensor

    def __getitem__(self, rows: Tensor) -> _Sequences:
        return _Sequences(*(getattr(self, field.name)[rows] for field in fields(self)))


class RL2(Agent[Tensor]):
    """Its state is the memory's state ``[task, slot, state]``; before the first step the slot axis has size 1.

    Args:
        config: settings.
        spec: sizes of observation and action.
        device: where everything lives.
        seed: of the initial parameters.
    """

    def __init__(self, config: RL2Config, spec: Spec, device: torch.device, seed: int) -> None:
        super().__init__(
            spec,
            device,
            num_adaptations=config.episodes_per_trial - 1,
            rollouts_per_task=config.rollouts_per_task,
        )
        self.config = config
        with torch_stream(seed, "init"):
            self.memory = _make_memory(config, spec).to(device)
        self.obs_moments = RunningMoments(spec.obs_dim).to(device)
        self.reward_moments = RunningMoments(1).to(device)
        self.return_moments = RunningMoments(1).to(device)
        self.optimizer = Adam(self.memory.parameters(), lr=config.learning_rate, eps=1e-5)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Network, normalisers and optimiser."""
        return {
            "memory": self.memory,
            "obs_moments": self.obs_moments,
            "reward_moments": self.reward_moments,
            "return_moments": self.return_moments,
            "optimizer": self.optimizer,
        }

    def begin(self, num_tasks: int) -> Tensor:
        """An empty memory."""
        return torch.zeros(num_tasks, 1, self.memory.state_size, device=self.device)

    @torch.no_grad()
    def act(self, state: Tensor, timestep: Timestep, deterministic: bool = False) -> tuple[Action, Tensor]:
        """One step of the memory, then a sample; where an episode has ended the memory stands still."""
        num_tasks, slots = timestep.valid.shape
        state = state.expand(num_tasks, slots, -1)
        inputs = self._inputs(timestep).view(num_tasks * slots, 1, -1)
        policy, _, hidden = self._forward(inputs, state.reshape(num_tasks * slots, -1))
        value = policy.mode() if deterministic else policy.sample(self.generator)
        log_prob = policy.log_prob(value).view(num_tasks, slots)
        hidden = torch.where(timestep.valid[..., None], hidden.view(num_tasks, slots, -1), state)
        return Action(value.view(num_tasks, slots, *value.shape[2:]), log_prob), hidden

    def adapt(self, state: Tensor, rollout: Rollout) -> Tensor:
        """Nothing to do: the memory has seen the episode already, and the collector shows it the last reward.

        Raises:
            ConfigError: if the next episode may outgrow SNAIL's attention.
        """
        if isinstance(self.memory, SNAILMemory):
            seen = int(state[..., -1].max())
            if seen + self.spec.horizon > self.memory.num_steps:
                raise ConfigError(
                    f"SNAIL's memory was built for {self.memory.num_steps} steps (episodes_per_trial x horizon) and "
                    f"has seen {seen}: another episode of up to {self.spec.horizon} does not fit. Use fewer "
                    "adaptations, or train with more episodes_per_trial."
                )
        return state

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """PPO on whole trials: several epochs of minibatches of sequences."""
        config = self.config
        self._update_return_moments(trial)
        batch = self._sequences(trial)
        num_sequences = len(batch.inputs)
        minibatch = -(-num_sequences // min(config.num_minibatches, num_sequences))
        metrics: list[Tensor] = []
        for _ in range(config.num_epochs):
            order = torch.randperm(num_sequences, generator=self.generator, device=self.device)
            for rows in torch.split(order, minibatch):
                metrics.append(self._ppo_step(batch[rows]))
        mean = torch.stack(metrics).mean(0).tolist()
        names = ("policy_loss", "value_loss", "entropy", "kl", "gradient_norm")
        # Input moments move only now: within an iteration, acting and recomputing must see the same inputs.
        for rollout in trial.rollouts:
            self.obs_moments.update(rollout.obs, rollout.valid)
            self.reward_moments.update(rollout.rewards[..., None], rollout.valid)
        return dict(zip(names, mean, strict=True))

    def _ppo_step(self, batch: _Sequences) -> Tensor:
        config = self.config
        policy, values, _ = self._forward(batch.inputs, batch.memory)
        log_prob = policy.log_prob(batch.actions)
        # One row, so that every step of the minibatch counts the same however long its trial is.
        new, old, advantages, valid = (
            x.reshape(1, -1) for x in (log_prob, batch.log_probs, batch.advantages, batch.valid)
        )
        policy_loss = clipped_ratio_loss(new, old, advantages, valid, config.clip_range).squeeze(0)
        value_loss = masked_mean((values - batch.value_targets).square(), batch.valid, (0, 1))
        entropy = masked_mean(policy.entropy(), batch.valid, (0, 1))
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.memory.parameters(), config.max_grad_norm)
        self.optimizer.step()
        kl = masked_mean(batch.log_probs - log_prob, batch.valid, (0, 1))
        return torch.stack([policy_loss, value_loss, entropy, kl, norm]).detach()

    @torch.no_grad()
    def _sequences(self, trial: Trial) -> _Sequences:
        """Lay the episodes of each trial end to end and compute advantages over the whole of it."""
        scale = self.return_moments.std if self.config.normalise_rewards else 1.0
        joined = [
            torch.cat(parts, dim=2).flatten(0, 1)
            for parts in zip(
                *(
                    (self._inputs(r.timesteps), r.actions, r.log_probs, r.rewards / scale, r.valid)
                    for r in trial.rollouts
                ),
                strict=True,
            )
        ]
        # A stable sort by "is padding" keeps the order of time and leaves no gap for the memory to run over.
        order = torch.argsort((~joined[-1]).to(torch.uint8), dim=1, stable=True)
        longest = int(joined[-1].sum(1).max())
        inputs, actions, log_probs, rewards, valid = (_take(part, order)[:, :longest] for part in joined)
        memories, parts = [self._no_memory(len(inputs))], []
        for piece in inputs.split(self.config.bptt_steps or longest, dim=1):
            _, values, following = self._forward(piece, memories[-1])
            memories.append(following)
            parts.append(values)
        values = torch.cat(parts, dim=1)
        # The trial is the horizon of the objective: behind its end there is nothing to be worth anything.
        nothing = torch.zeros_like(values[:, 0])
        never = torch.zeros_like(valid)
        advantages = gae(rewards, values, nothing, never, valid, self.config.discount, self.config.gae_lambda)
        targets, advantages = values + advantages, normalise(advantages, valid, (0, 1))
        whole = (inputs, actions, log_probs, advantages, targets, valid)
        pieces = [_cut(part, self.config.bptt_steps or longest) for part in whole]
        # Of a trial that ended early, the last pieces may hold nothing but padding.
        kept = pieces[-1].any(1)
        return _Sequences(*(part[kept] for part in (torch.stack(memories[:-1], 1).flatten(0, 1), *pieces)))

    def _forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Distribution, Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            features, hidden = self.memory.remember(inputs, hidden)
        # Heads and what is kept between calls stay in full precision.
        hidden = hidden.to(inputs.dtype)
        out, values = self.memory.heads(features.to(inputs.dtype))
        if self.spec.discrete:
            return Categorical(out), values, hidden
        return DiagGaussian(out, self.memory.log_std.expand_as(out)), values, hidden

    def _inputs(self, timestep: Timestep) -> Tensor:
        if self.config.normalise_obs:
            timestep = replace(timestep, obs=self.obs_moments.normalise(timestep.obs))
        if self.config.normalise_rewards:
            timestep = replace(timestep, prev_reward=timestep.prev_reward / self.reward_moments.std)
        return trial_inputs(timestep)

    def _no_memory(self, num_sequences: int) -> Tensor:
        return torch.zeros(num_sequences, self.memory.state_size, device=self.device)

    def _update_return_moments(self, trial: Trial) -> None:
        for rollout in trial.rollouts:
            sums = discounted_sums(rollout.rewards, self.config.discount)
            self.return_moments.update(sums[..., None], rollout.valid)


def _make_memory(config: RL2Config, spec: Spec) -> Memory:
    if config.memory == "snail":
        return SNAILMemory(spec, config.hidden_size, config.init_std, config.episodes_per_trial * spec.horizon)
    kind = GRUMemory if config.memory == "gru" else LSTMMemory
    return kind(spec, config.hidden_size, config.init_std, config.encoder_sizes)


def _cut(x: Tensor, size: int) -> Tensor:
    """``[sequence, time, ...]`` -> ``[sequence * piece, size, ...]``, the last piece filled up with zeros."""
    missing = -x.shape[1] % size
    filled = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
    return filled.unflatten(1, (-1, size)).flatten(0, 1)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """``x[row, order[row, t]]`` for ``x`` ``[row, time, ...]`` and ``order`` ``[row, time]``."""
    index = order.view(*order.shape, *(1,) * (x.dim() - 2)).expand_as(x)
    return x.gather(1, index)
