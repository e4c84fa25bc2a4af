"""ProMP: MAML-PPO, held near the policies that collected the pre-update data.

Rothfuss et al., 2019 (arXiv 1810.06784, eq. 12 and 13): the inner objective is the likelihood ratio, whose Hessian
keeps the credit that pre-update actions deserve (low variance curvature); the outer one is PPO's clipped surrogate
after adaptation, with a penalty on the KL of the policies that collected the pre-update data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.agents.common.gradient_agent import Batch, GradientAgent, Objective, PolicyAt
from metarl.agents.maml_ppo import ClippedUpdate, MAMLPPOConfig, pre_update_kl
from metarl.errors import ConfigError, require_positive
from metarl.networks.distributions import Distribution
from metarl.types import Spec


@dataclass(frozen=True)
class ProMPConfig(MAMLPPOConfig):
    """Proximal meta-policy search."""

    when: ClassVar[str] = "as maml-ppo, held near the policies that collected the pre-update data"

    kl_coef: float = 5e-4
    """Weight of the KL between the policies that collected the pre-update data and the new ones."""
    adaptive_kl: bool = False
    """Double or halve kl_coef after an update whose KL is 1.5 times off target_kl."""
    target_kl: float = 0.01
    """KL that adaptive_kl aims at, in nats."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "target_kl")
        if not 0 <= self.kl_coef < math.inf:
            raise ConfigError(f"ProMPConfig.kl_coef must be finite and 0 or more, got {self.kl_coef!r}.")

    def build(self, spec: Spec, device: torch.device, seed: int) -> GradientAgent:
        """A fresh agent."""
        return GradientAgent(self, spec, device, seed, lambda agent: PenalisedUpdate(self, agent))


class KLCoefficient(nn.Module):
    """The weight of the KL penalty, a buffer so that checkpoints hold it."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))


class PenalisedUpdate(ClippedUpdate):
    """Epochs of Adam on ``clipped surrogate after adaptation + kl_coef * KL of the pre-update policies``.

    Args:
        config: settings.
        agent: whose meta-parameters move.
    """

    def __init__(self, config: ProMPConfig, agent: GradientAgent) -> None:
        super().__init__(config, agent)
        self.target_kl = config.target_kl if config.adaptive_kl else None
        self.penalised = config.kl_coef > 0
        self.kl_coef = KLCoefficient(config.kl_coef).to(agent.device)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Adam's moments and the weight of the penalty."""
        return {**super().components(), "kl_coef": self.kl_coef}

    def __call__(self, agent: GradientAgent, batches: list[Batch]) -> dict[str, float]:
        """Several steps on one batch of trials, then the weight for the next one."""
        metrics = super().__call__(agent, batches)
        if self.target_kl is not None:
            kl = metrics["pre_update_kl"]
            self.kl_coef.value *= 2.0 if kl > 1.5 * self.target_kl else 0.5 if kl < self.target_kl / 1.5 else 1.0
        return {**metrics, "kl_coef": float(self.kl_coef.value)}

    def objective(self, old: Sequence[Distribution]) -> Objective:
        """The clipped surrogate and the penalty."""
        clipped = super().objective(old)

        def penalised(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
            return clipped(policy_at, batches) + self.kl_coef.value * pre_update_kl(old, policy_at, batches)

        return penalised if self.penalised else clipped
