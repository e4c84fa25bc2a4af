"""MAML-PPO and ProMP: several clipped steps with Adam on each batch of trials.

ProMP (Rothfuss et al., 2019, arXiv 1810.06784, eq. 12 and 13): the inner objective is the likelihood ratio, whose
Hessian keeps the credit that pre-update actions deserve (low variance curvature); the outer one is PPO's clipped
surrogate after adaptation, with a penalty on the KL of the policies that collected the pre-update data. MAML-PPO is
the same without that penalty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from metarl.agents.gradient import Batch, GradientAgent, GradientConfig, Objective, PolicyAt
from metarl.errors import ConfigError, NonFiniteError, require_positive
from metarl.functional.policy_losses import clipped_ratio_loss
from metarl.functional.returns import masked_mean
from metarl.networks.distributions import Distribution
from metarl.types import Spec


@dataclass(frozen=True)
class MAMLPPOConfig(GradientConfig):
    """MAML with a PPO outer loop."""

    meta_lr: float = 1e-3
    """Adam's step size in the outer loop."""
    num_epochs: int = 5
    """Steps on each batch of trials."""
    clip_range: float = 0.3
    """Clipping of the likelihood ratio after adaptation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "meta_lr", "num_epochs", "clip_range")

    def build(self, spec: Spec, device: torch.device, seed: int) -> GradientAgent:
        """A fresh agent."""
        return GradientAgent(self, spec, device, seed, lambda agent: ClippedUpdate(self, agent))


@dataclass(frozen=True)
class ProMPConfig(MAMLPPOConfig):
    """Proximal meta-policy search."""

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
        adapt_to = self.target_kl if self.adaptive_kl else None
        return GradientAgent(self, spec, device, seed, lambda agent: ClippedUpdate(self, agent, self.kl_coef, adapt_to))


class KLCoefficient(nn.Module):
    """The weight of the KL penalty, a buffer so that checkpoints hold it."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))


class ClippedUpdate:
    """Epochs of Adam on ``clipped loss after adaptation + kl_coef * KL of the pre-update policies``.

    Args:
        config: settings.
        agent: whose meta-parameters move.
        kl_coef: weight of the penalty; 0 leaves it out.
        target_kl: adapt ``kl_coef`` towards this KL; None keeps it.
    """

    def __init__(
        self, config: MAMLPPOConfig, agent: GradientAgent, kl_coef: float = 0.0, target_kl: float | None = None
    ) -> None:
        self.config = config
        self.target_kl = target_kl
        self.penalised = kl_coef > 0
        self.kl_coef = KLCoefficient(kl_coef).to(agent.device)
        self.optimizer = Adam(agent.meta_parameters().values(), lr=config.meta_lr)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Adam's moments and the weight of the penalty."""
        return {"optimizer": self.optimizer, "kl_coef": self.kl_coef}

    def __call__(self, agent: GradientAgent, batches: list[Batch]) -> dict[str, float]:
        """Several steps on one batch of trials."""
        num_tasks = len(batches[-1].obs)
        parts = agent.chunks(batches)
        old = [self._acting_policies(agent, part) for part in parts]
        losses: list[Tensor] = []
        for _ in range(self.config.num_epochs):
            chunks = [agent.linearise(part, self._objective(known)) for part, known in zip(parts, old, strict=True)]
            losses.append(torch.stack([chunk.loss for chunk in chunks]).sum() / num_tasks)
            gradient = torch.stack([chunk.gradient for chunk in chunks]).sum(0) / num_tasks
            del chunks  # Their graphs, before the next epoch makes its own.
            # Before the step: a NaN would stay in the parameters and in Adam's moments.
            if not torch.isfinite(gradient).all():
                raise NonFiniteError(f"the meta-gradient is not finite (losses {[float(loss) for loss in losses]}).")
            for name, slope in agent.unflatten(gradient).items():
                agent.meta_parameters()[name].grad = slope.clone()
            self.optimizer.step()
        end = agent.flatten(agent.meta_parameters())
        kl = sum(float(self._pre_update_kl(agent, end, *pair)) for pair in zip(parts, old, strict=True)) / num_tasks
        if self.target_kl is not None:
            factor = 2.0 if kl > 1.5 * self.target_kl else 0.5 if kl < self.target_kl / 1.5 else 1.0
            self.kl_coef.value *= factor
        return {
            "loss": float(losses[0]),
            "improvement": float(losses[0] - losses[-1]),
            "pre_update_kl": kl,
            "kl_coef": float(self.kl_coef.value),
            "gradient_norm": float(gradient.norm()),
        }

    def _objective(self, old: Sequence[Distribution]) -> Objective:
        def objective(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
            outer = batches[-1]
            log_prob = policy_at(len(old)).log_prob(outer.actions)
            loss = clipped_ratio_loss(log_prob, outer.log_probs, outer.advantages, outer.valid, self.config.clip_range)
            return loss + self.kl_coef.value * _kl(old, policy_at, batches) if self.penalised else loss

        return objective

    @staticmethod
    def _acting_policies(agent: GradientAgent, batches: list[Batch]) -> list[Distribution]:
        """The policies that collected the pre-update rollouts."""
        found: list[Distribution] = []

        def remember(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
            found.extend(policy_at(stage) for stage in range(len(batches) - 1))
            return torch.zeros(len(batches[-1].obs))

        agent.evaluate_at(agent.flatten(agent.meta_parameters()), batches, remember)
        return found

    @staticmethod
    def _pre_update_kl(agent: GradientAgent, flat: Tensor, batches: list[Batch], old: Sequence[Distribution]) -> Tensor:
        """Summed over tasks."""
        return agent.evaluate_at(flat, batches, lambda policy_at, parts: _kl(old, policy_at, parts))[0].sum()


def _kl(old: Sequence[Distribution], policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
    """``KL(old || new)`` of the pre-update policies, averaged over steps and stages, ``[task]``."""
    kls = [masked_mean(known.kl(policy_at(stage)), batches[stage].valid, (1,)) for stage, known in enumerate(old)]
    return torch.stack(kls).mean(0) if kls else torch.zeros_like(batches[-1].returns)
