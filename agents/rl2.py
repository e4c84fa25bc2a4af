"""RL²: a recurrent policy whose hidden state is the learning algorithm.

Duan et al., 2016 (arXiv 1611.02779): the policy sees observation, previous action, previous reward and done flag, and
keeps its hidden state across the episodes of a trial; the objective is the return of the whole trial. The outer
algorithm is PPO (Schulman et al., 2017, arXiv 1707.06347) on whole trials, as in Meta-World's baselines, or on pieces
of trials that start from the state remembered when they were played (truncated back-propagation).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.agents.common.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig, Sequences, Trials, end_to_end
from metarl.config.settings import Count, Counts, Natural, refuse_idle
from metarl.errors import ConfigError
from metarl.networks.actions import policy_distribution
from metarl.networks.distributions import Distribution
from metarl.networks.heads import HeadFactory, HyperHead, LinearHead, StateHead
from metarl.networks.memory import GRUMemory, LSTMMemory, Memory
from metarl.networks.recall import Recall, kept_size, shown_size
from metarl.networks.snail import SNAILMemory
from metarl.networks.transformer import TransformerMemory
from metarl.seeding import torch_stream
from metarl.types import Rollout, Spec, Trial

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class RL2Config(RecurrentPPOConfig):
    """RL² with PPO."""

    when: ClassVar[str] = "tasks must be explored within an episode, and data is plentiful"

    memory: Literal["gru", "lstm", "transformer"] = "gru"
    """What remembers the trial; SNAIL's convolutions and attention are the agent ``snail``."""
    hidden_size: Count = 128
    """Units of the recurrent network, or channels of the transformer."""
    encoder_sizes: Counts = ()
    """Widths of tanh layers before the memory (Meta-World+: two of 256)."""
    head: Literal["linear", "state", "hypernetwork"] = "linear"
    """What makes policy and value of the memory's output: one layer; an MLP that sees the observation again (RNN+S); or
    an MLP on the observation alone whose weights a hypernetwork makes of the memory (RNN+HN, Beck et al., 2023)."""
    head_sizes: Counts = ()
    """Widths of the hidden layers of such an MLP."""
    code_size: Count = 25
    """Numbers that the MLP, or the hypernetwork, sees of the memory; a hypernetwork costs as many times the MLP."""
    num_layers: Count = 2
    """Blocks of the transformer."""
    num_heads: Count = 4
    """Heads of the transformer's attention."""
    context_steps: Natural = 0
    """Steps that the transformer's attention sees, the present one included; 0: as many as a trial has in training. It
    keeps their keys and values: time and memory grow with it, and training's with its product with a trial's steps."""
    recall_best: bool = False
    """Show memory and head the way from here to what was observed behind the trial's best reward so far, in units of
    its running standard deviation, and that reward."""
    bptt_steps: Natural = 0
    """Steps that a gradient flows back through; 0: the whole trial. Later steps start from the remembered state."""
    precision: Precision = "float32"
    """Precision of the matrix products in memory and encoder; bfloat16 halves their time where the processor has it. On
    the CPU a GRU stays in float32, whose own loop takes no longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_idle(self, "memory", ["transformer"], ["num_layers", "num_heads", "context_steps"])
        refuse_idle(self, "head", ["state", "hypernetwork"], ["head_sizes", "code_size"])
        if self.head != "linear" and not self.head_sizes:
            raise ConfigError(
                f"RL2Config.head {self.head!r} needs hidden layers, of which head_sizes has none: without an MLP there "
                "is no head whose weights could be made, or that could see the observation. Give widths, such as "
                "(64, 64)."
            )
        if self.memory == "transformer" and self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                "RL2Config.hidden_size must be a multiple of 2 x num_heads, as positions turn pairs of each head's "
                f"channels, got hidden_size {self.hidden_size} with num_heads {self.num_heads}."
            )

    def make_head(self, spec: Spec) -> HeadFactory:
        """What makes the memory's heads."""
        if self.head == "linear":
            return LinearHead
        kind = StateHead if self.head == "state" else HyperHead
        return partial(kind, obs_dim=spec.obs_dim, hidden_sizes=self.head_sizes, code_size=self.code_size)

    def make_memory(self, spec: Spec) -> Memory:
        """A recurrent network, or a transformer.

        Raises:
            ConfigError: for a context that is longer than a trial.
        """
        if self.memory == "transformer":
            longest = self.episodes_per_trial * spec.horizon
            if self.context_steps > longest:
                raise ConfigError(
                    f"context_steps must be at most {longest}, the steps of a whole trial (episodes_per_trial x "
                    f"horizon), got {self.context_steps}; 0 is the whole trial."
                )
            context = self.context_steps or longest
            sizes = (self.encoder_sizes, self.num_layers, self.num_heads, context)
            return TransformerMemory(spec, self.hidden_size, self.init_std, *sizes, self.make_head(spec))
        kind = GRUMemory if self.memory == "gru" else LSTMMemory
        return kind(spec, self.hidden_size, self.init_std, self.encoder_sizes, self.make_head(spec))

    def build(self, spec: Spec, device: torch.device, seed: int) -> RL2:
        """A fresh agent."""
        return RL2(self, spec, device, seed, recall_best=self.recall_best)


@dataclass(frozen=True)
class SNAILConfig(RecurrentPPOConfig):
    """SNAIL (Mishra et al., 2018, arXiv 1707.03141): RL² whose memory is convolutions and attention, trained by PPO."""

    when: ClassVar[str] = "as rl2, where what matters was seen long ago; up to some 100 steps"
    retired: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {
        "encoder_sizes": ([],),
        "bptt_steps": (0,),
        "precision": ("float32",),
    }
    bptt_steps: ClassVar[int] = 0
    """The attention reads the whole trial at once."""
    precision: ClassVar[Precision] = "float32"
    """Keys and values of all steps stay in the memory, in full precision."""

    memory: Literal["snail"] = "snail"
    """Convolutions and attention."""
    hidden_size: Count = 32
    """Filters of each block, and sizes of keys and values (the paper's 32)."""

    def make_memory(self, spec: Spec) -> Memory:
        """Blocks for the longest trial that training plays."""
        return SNAILMemory(spec, self.hidden_size, self.init_std, self.episodes_per_trial * spec.horizon)

    def build(self, spec: Spec, device: torch.device, seed: int) -> RL2:
        """A fresh agent."""
        return RL2(self, spec, device, seed)


class RL2(RecurrentPPO):
    """A recurrent policy; its state is what is kept of the best moment, if that is asked for, and the memory's.

    Args:
        config: settings.
        spec: sizes of observation and action.
        device: where everything lives.
        seed: seed for the initial parameters.
        recall_best: show the memory the best moment of the trial.
    """

    def __init__(
        self,
        config: RL2Config | SNAILConfig,
        spec: Spec,
        device: torch.device,
        seed: int,
        *,
        recall_best: bool = False,
    ) -> None:
        # What is recalled lies behind the observation, as if it were a part of it.
        shown = shown_size(spec.obs_dim) if recall_best else 0
        with torch_stream(seed, "init"):
            memory = config.make_memory(replace(spec, obs_dim=spec.obs_dim + shown)).to(device)
        self._num_kept = kept_size(spec.obs_dim) if recall_best else 0
        super().__init__(config, spec, device, memory, self._num_kept + memory.state_size)
        self.memory = memory
        self.recall = Recall(spec.obs_dim).to(device) if recall_best else None
        self.max_trial_steps = memory.num_steps if isinstance(memory, SNAILMemory) else None
        self.bptt_steps = config.bptt_steps
        self._warned_of_goals = False
        self.precision = config.precision

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Network, normalisers and optimiser."""
        recall = {} if self.recall is None else {"recall": self.recall}
        return {"memory": self.memory, **recall, **self._shared_components()}

    def adapt(self, state: Tensor, rollout: Rollout) -> Tensor:
        """Nothing to do: the memory has seen the episode already, and the collector shows it the last reward.

        Raises:
            ConfigError: if the next episode may outgrow SNAIL's attention.
        """
        if isinstance(self.memory, SNAILMemory):
            seen = int(state[..., -1].max())
            longest = max(self.spec.horizon, rollout.rewards.shape[-1])
            if seen + longest > self.memory.num_steps:
                raise ConfigError(
                    f"SNAIL's memory was built for {self.memory.num_steps} steps (episodes_per_trial x horizon) and "
                    f"has seen {seen}: another episode of up to {longest} does not fit. Use fewer "
                    "adaptations, or train with more episodes_per_trial."
                )
        return state

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """PPO on whole trials, or on the pieces that ``bptt_steps`` cuts them into."""
        self.update_return_moments(trial)
        batch = self.sequences(trial)
        metrics = self.improve(batch)
        self.update_input_moments(trial)
        if self.recall is not None:
            self._warn_of_unseen_goals(trial)
            self.recall.update(batch.inputs, batch.memory[:, : self._num_kept], batch.valid)
        return metrics

    def _warn_of_unseen_goals(self, trial: Trial) -> None:
        if self._warned_of_goals:
            return
        lowest, highest, last = [], [], []
        for rollout in trial.rollouts:
            steps = torch.arange(rollout.valid.shape[-1], device=self.device)
            is_last = rollout.valid & (steps == rollout.lengths[..., None] - 1)
            rewards = rollout.rewards
            others = rewards.masked_fill(~rollout.valid | is_last, -torch.inf)
            last.append(rewards.masked_fill(~is_last, -torch.inf).amax(-1))
            highest.append(others.amax(-1))
            lowest.append(rewards.masked_fill(~rollout.valid, torch.inf).amin(-1))
        low, high, end = torch.stack(lowest).amin(0), torch.stack(highest).amax(0), torch.stack(last).amax(0)
        # Of no other step in the whole trial more is known than that it is not the best.
        unseen = int(((end > high) & (high <= low)).sum())
        varied = int((torch.maximum(end, high) > low).sum())
        if 2 * unseen <= varied:
            return
        self._warned_of_goals = True
        warnings.warn(
            f"recall_best: in {unseen} of the {varied} trials with different rewards only the last step of an episode "
            "earned more than the least. What it led to is not among an agent's inputs, so that there is nothing to "
            "recall: let episodes last for a step after the goal, or leave recall_best out.",
            RuntimeWarning,
            stacklevel=2,
        )

    @torch.no_grad()
    def sequences(self, trial: Trial) -> Sequences:
        """Lay the episodes of each trial end to end and compute advantages over the whole of it."""
        trials = Trials(
            *end_to_end(
                [(self._inputs(r.timesteps), r.actions, r.log_probs, r.rewards, r.valid) for r in trial.rollouts]
            )
        )
        num_steps = self.bptt_steps or trials.inputs.shape[1]
        memories, values = [self.no_memory(len(trials.inputs))], []
        for piece in trials.inputs.split(num_steps, dim=1):  # type: ignore[no-untyped-call]
            _, value, following = self.forward(piece, memories[-1])
            memories.append(following)
            values.append(value)
        # The trial is the horizon of the objective: behind its end there is nothing to be worth anything.
        nothing = torch.zeros_like(trials.rewards[:, 0])
        return self.with_advantages(trials, torch.cat(values, dim=1), nothing, torch.stack(memories[:-1], 1), num_steps)

    def forward(self, inputs: Tensor, memory: Tensor) -> tuple[Distribution, Tensor, Tensor]:
        """See :meth:`RecurrentPPO.forward`."""
        kept, memory = memory[:, : self._num_kept], memory[:, self._num_kept :]
        if self.recall is not None:
            obs_dim = self.spec.obs_dim
            shown, kept = self.recall(inputs, kept)
            inputs = torch.cat([inputs[..., :obs_dim], shown, inputs[..., obs_dim:]], dim=-1)
        reduced = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if reduced else contextlib.nullcontext():
            features, memory = self.memory.remember(inputs, memory)
        # Heads and what is kept between calls stay in full precision.
        out, values = self.memory.heads(features.to(inputs.dtype), inputs)
        log_std = self.memory.log_std if self.spec.num_coordinates else None
        memory = memory.to(inputs.dtype)
        if self.recall is not None:
            memory = torch.cat([kept, memory], dim=1)
        return policy_distribution(self.spec, out, log_std), values, memory

    def evaluate(self, batch: Sequences) -> tuple[Distribution, Tensor]:
        """See :meth:`RecurrentPPO.evaluate`."""
        policy, values, _ = self.forward(batch.inputs, batch.memory)
        return policy, values
