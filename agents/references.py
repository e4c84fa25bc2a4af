"""References, so that every result can be read: a random policy, one policy over all tasks, and one told its task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from metarl.agent import Agent, AgentConfig
from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.maml import MAMLTRPOConfig, TRPOUpdate
from metarl.errors import require_positive
from metarl.networks.distributions import Categorical, Distribution
from metarl.types import Action, Rollout, Spec, Timestep, Trial


@dataclass(frozen=True)
class RandomConfig(AgentConfig):
    """Uniformly random actions."""

    when: ClassVar[str] = "reference: uniformly random actions"

    rollouts_per_task: int = 20
    """Episodes of each task."""

    @property
    def num_adaptations(self) -> int:
        """It does not adapt."""
        return 0

    def __post_init__(self) -> None:
        require_positive(self, "rollouts_per_task")

    def build(self, spec: Spec, device: torch.device, seed: int) -> RandomAgent:
        """A random agent; it has no parameters, so ``seed`` does nothing."""
        return RandomAgent(self, spec, device)


class RandomAgent(Agent[None]):
    """Acts uniformly in the action space and learns nothing.

    Args:
        config: settings.
        spec: sizes of observation and action.
        device: where actions are drawn.
    """

    def __init__(self, config: RandomConfig, spec: Spec, device: torch.device) -> None:
        super().__init__(spec, device, num_adaptations=0, rollouts_per_task=config.rollouts_per_task)
        self.config = config

    def components(self) -> Mapping[str, nn.Module]:
        """Nothing to save."""
        return {}

    def begin(self, num_tasks: int) -> None:
        """No state."""

    def act(self, state: None, timestep: Timestep, deterministic: bool = False) -> tuple[Action, None]:
        """A uniform action; all being equally likely, the mode is the first one, or the middle of the box."""
        shape = timestep.valid.shape
        if self.spec.discrete:
            policy: Distribution = Categorical(torch.zeros(*shape, self.spec.action_dim, device=self.device))
            value = policy.mode() if deterministic else policy.sample(self.generator)
            return Action(value, policy.log_prob(value)), None
        size = (*shape, self.spec.action_dim)
        value = torch.zeros(size, device=self.device)
        if not deterministic:
            value = 2.0 * torch.rand(size, generator=self.generator, device=self.device) - 1.0
        return Action(value, torch.full(shape, -self.spec.action_dim * math.log(2.0), device=self.device)), None

    def adapt(self, state: None, rollout: Rollout) -> None:
        """Nothing to learn with."""

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """Nothing to improve."""
        return {}


@dataclass(frozen=True)
class PretrainedConfig(MAMLTRPOConfig):
    """One TRPO policy over all tasks, without adaptation in training; fine-tuned by policy gradient at test time."""

    when: ClassVar[str] = "reference: one policy over all tasks, fine-tuned at test time"

    inner_rule: Literal["sgd"] = "sgd"
    """Gradient descent alone: without inner steps in training there is nothing to learn a rule from."""

    @property
    def num_adaptations(self) -> int:
        """None in training."""
        return 0

    def build(self, spec: Spec, device: torch.device, seed: int) -> GradientAgent:
        """MAML-TRPO without inner steps is TRPO over all tasks; ``num_inner_steps`` is not used."""
        return GradientAgent(self, spec, device, seed, lambda agent: TRPOUpdate(self), num_adaptations=0)


@dataclass(frozen=True)
class OracleConfig(PretrainedConfig):
    """One TRPO policy over all tasks that sees its task: an upper reference without any need to adapt.

    The command line appends the task's numbers to its observations (:func:`metarl.tasks.oracle.reveal_task`).
    """

    when: ClassVar[str] = "reference: one policy over all tasks that is told the task"
    told_task: ClassVar[bool] = True
