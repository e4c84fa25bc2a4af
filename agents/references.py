"""References, so that every result can be read: a random policy, one policy over all tasks, and one told its task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from metarl.adaptation import StepSizes, UpdateRule
from metarl.agent import Agent, AgentConfig
from metarl.agents.common.gradient_agent import GradientConfig, OuterUpdate
from metarl.agents.common.meta_gradient import MetaGradient
from metarl.agents.maml import TRPOUpdate, TrustRegionConfig
from metarl.config.settings import Count
from metarl.networks.distributions import Categorical, Distribution
from metarl.networks.policy import Policy
from metarl.types import Action, Rollout, Spec, Timestep, Trial


@dataclass(frozen=True)
class RandomConfig(AgentConfig):
    """Uniformly random actions."""

    when: ClassVar[str] = "reference: uniformly random actions"

    rollouts_per_task: Count = 20
    """Episodes of each task."""

    @property
    def num_adaptations(self) -> int:
        """It does not adapt."""
        return 0

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

    data_parallel = True

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
            value = policy.mode() if deterministic else policy.sample(self.noise)
            return Action(value, policy.log_prob(value)), None
        size = (*shape, *self.spec.action_shape)
        value = torch.zeros(size, device=self.device)
        if not deterministic:
            value = 2.0 * self.noise.uniform(size) - 1.0
            if self.spec.choices:
                first, sizes = len(self.spec.choices), torch.tensor(self.spec.choices, device=self.device)
                # Inside (0, 1) in exact numbers; rounded, the product may be the number of choices itself.
                index = (0.5 * (value[..., :first] + 1.0) * sizes).floor().minimum(sizes - 1.0)
                value = torch.cat([index, value[..., first:]], dim=-1)
        log_volume = self.spec.num_coordinates * math.log(2.0) + sum(map(math.log, self.spec.choices))
        return Action(value, torch.full(shape, -log_volume, device=self.device)), None

    def adapt(self, state: None, rollout: Rollout) -> None:
        """Nothing to learn with."""

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """Nothing to improve."""
        return {}


@dataclass(frozen=True)
class _WithoutInnerSteps:
    """What training without inner steps fixes of MAML-TRPO's settings; TRPO over all tasks is what is left of it."""

    retired: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {
        **GradientConfig.retired,
        # Never used without an inner loop, whatever older config files say.
        **dict.fromkeys(("num_inner_steps", "first_order", "fisher_metric", "inner_objective")),
    }

    num_inner_steps: Literal[0] = 0
    """It does not adapt in training."""
    inner_rule: Literal["sgd"] = "sgd"
    """Gradient descent alone: without inner steps in training there is nothing to learn a rule from."""
    inner_objective: Literal["ratio"] = "ratio"
    """Where the policy acted all inner losses have one gradient, and no other is taken at test time."""
    first_order: Literal[False] = False
    """Without inner steps there are no Hessians to leave out."""
    fisher_metric: Literal["full"] = "full"
    """Nor are there for the metric."""


@dataclass(frozen=True)
class PretrainedConfig(_WithoutInnerSteps, TrustRegionConfig):
    """One TRPO policy over all tasks, without adaptation in training; fine-tuned by policy gradient at test time."""

    when: ClassVar[str] = "reference: one policy over all tasks, fine-tuned at test time"

    def make_rule(self, policy: Policy) -> UpdateRule:
        """Gradient descent, at test time."""
        return StepSizes(policy.params(), self.inner_lr, learned=False)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """TRPO."""
        return TRPOUpdate(self, meta)


@dataclass(frozen=True)
class OracleConfig(_WithoutInnerSteps, TrustRegionConfig):
    """One TRPO policy over all tasks that sees its task: an upper reference without any need to adapt.

    The command line appends the task's numbers to its observations (:func:`metarl.tasks.oracle.reveal_task`).
    """

    when: ClassVar[str] = "reference: one policy over all tasks that is told the task"
    told_task: ClassVar[bool] = True

    def make_rule(self, policy: Policy) -> UpdateRule:
        """Gradient descent, at test time."""
        return StepSizes(policy.params(), self.inner_lr, learned=False)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """TRPO."""
        return TRPOUpdate(self, meta)
