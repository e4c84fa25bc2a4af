"""ProMP: MAML-PPO, held near the policies that collected the pre-update data.

Rothfuss et al., 2019 (arXiv 1810.06784, eq. 12 and 13): the inner objective is the likelihood ratio, whose Hessian
keeps the credit that pre-update actions deserve (low variance curvature); the outer one is PPO's clipped surrogate
after adaptation, with a penalty on the KL of the policies that collected the pre-update data.

With ``inner_objective = log_likelihood`` the pre-update credit is left out, which is what the paper compares with. What
differs from the authors' code in every gradient-based agent stands in :mod:`metarl.agents.common.gradient_agent`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.adaptation import UpdateRule
from metarl.agents.common.gradient_agent import OuterUpdate, named_rule
from metarl.agents.common.meta_gradient import Batch, MetaGradient, Objective, PolicyAt
from metarl.agents.maml_ppo import ClippedConfig, ClippedUpdate, clipped_loss, pre_update_kl
from metarl.config.settings import NonNegative, Positive, refuse_idle
from metarl.errors import ConfigError
from metarl.networks.distributions import Distribution
from metarl.networks.policy import Policy

_WEIGHTS = (1e-8, 1e8)
"""Between these an adaptive weight stays: from one that was halved to 0 no doubling leads back."""


@dataclass(frozen=True)
class ProMPConfig(ClippedConfig):
    """Proximal meta-policy search."""

    when: ClassVar[str] = "as maml-ppo, held near the policies that acted before adaptation"

    kl_coef: NonNegative = 5e-4
    """Weight of the KL between the policies that collected the pre-update data and the new ones."""
    adaptive_kl: bool = False
    """Double or halve kl_coef after an update whose KL is 1.5 times off target_kl."""
    target_kl: Positive = 0.01
    """KL that adaptive_kl aims at, in nats."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adaptive_kl and not self.kl_coef:
            raise ConfigError(
                "ProMPConfig.adaptive_kl doubles or halves kl_coef, and 0 stays 0: give a kl_coef above 0, or leave "
                "adaptive_kl out."
            )
        refuse_idle(self, "adaptive_kl", [True], ["target_kl"])

    def make_rule(self, policy: Policy) -> UpdateRule:
        """The one that ``inner_rule`` names."""
        return named_rule(self, policy)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """Clipped and penalised steps."""
        return PenalisedUpdate(self, meta)


class KLCoefficient(nn.Module):
    """The weight of the KL penalty, a buffer so that checkpoints hold it."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))


class PenalisedUpdate:
    """Epochs of Adam on ``clipped surrogate after adaptation + kl_coef * KL of the pre-update policies``.

    Args:
        config: settings.
        meta: policy, rule and derivatives; its meta-parameters move.
    """

    data_parallel = True

    def __init__(self, config: ProMPConfig, meta: MetaGradient) -> None:
        self.target_kl = config.target_kl if config.adaptive_kl else None
        self.penalised = config.kl_coef > 0
        self.kl_coef = KLCoefficient(config.kl_coef).to(meta.current().device)
        self._clipped_loss = clipped_loss(config.clip_range)
        self._clipped = ClippedUpdate(config, meta, self._objective)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Adam's moments and the weight of the penalty."""
        return {**self._clipped.components(), "kl_coef": self.kl_coef}

    def __call__(self, batches: list[Batch]) -> dict[str, float]:
        """Several steps on one batch of trials, then the weight for the next one."""
        metrics = self._clipped(batches)
        if self.target_kl is not None:
            kl = metrics["pre_update_kl"]
            self.kl_coef.value *= 2.0 if kl > 1.5 * self.target_kl else 0.5 if kl < self.target_kl / 1.5 else 1.0
            self.kl_coef.value.clamp_(*_WEIGHTS)
        return {**metrics, "kl_coef": float(self.kl_coef.value)}

    def _objective(self, old: Sequence[Distribution]) -> Objective:
        """The clipped surrogate and the penalty; ``old`` are the policies that collected the pre-update rollouts."""

        def penalised(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
            clipped = self._clipped_loss(policy_at, batches)
            return clipped + self.kl_coef.value * pre_update_kl(old, policy_at, batches)

        return penalised if self.penalised else self._clipped_loss
