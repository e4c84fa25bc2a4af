"""MAML-PPO: several clipped steps with Adam on each batch of trials.

MAML's loss after adaptation (Finn, Abbeel, Levine, 2017, arXiv 1703.03400, Algorithm 3) under PPO's clipped surrogate
(Schulman et al., 2017, arXiv 1707.06347, eq. 7) in place of TRPO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from metarl.agents.common.gradient_agent import Batch, GradientAgent, GradientConfig, Objective, PolicyAt
from metarl.errors import NonFiniteError, require_positive
from metarl.functional.policy_losses import clipped_ratio_loss
from metarl.functional.returns import masked_mean
from metarl.networks.distributions import Distribution
from metarl.types import Spec


@dataclass(frozen=True)
class MAMLPPOConfig(GradientConfig):
    """MAML with a PPO outer loop."""

    when: ClassVar[str] = "as maml-trpo, with cheaper updates and several of them on each batch"

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


class ClippedUpdate:
    """Epochs of Adam on the clipped surrogate after adaptation.

    Args:
        config: settings.
        agent: whose meta-parameters move.
    """

    def __init__(self, config: MAMLPPOConfig, agent: GradientAgent) -> None:
        self.config = config
        self.optimizer = Adam(agent.meta_parameters().values(), lr=config.meta_lr)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Adam's moments."""
        return {"optimizer": self.optimizer}

    def __call__(self, agent: GradientAgent, batches: list[Batch]) -> dict[str, float]:
        """Several steps on one batch of trials."""
        num_tasks = len(batches[-1].obs)
        parts = agent.chunks(batches)
        old = [_acting_policies(agent, part) for part in parts]
        losses: list[Tensor] = []
        for _ in range(self.config.num_epochs):
            chunks = [agent.linearise(part, self.objective(known)) for part, known in zip(parts, old, strict=True)]
            losses.append(torch.stack([chunk.loss for chunk in chunks]).sum() / num_tasks)
            gradient = torch.stack([chunk.gradient for chunk in chunks]).sum(0) / num_tasks
            del chunks  # Their graphs, before the next epoch makes its own.
            # Before the step: a NaN would stay in the parameters and in Adam's moments.
            if not torch.isfinite(gradient).all():
                raise NonFiniteError(f"the meta-gradient is not finite (losses {[float(loss) for loss in losses]}).")
            for name, slope in agent.unflatten(gradient).items():
                agent.meta_parameters()[name].grad = slope.clone()
            self.optimizer.step()
        kls = [_kl_moved(agent, part, known) for part, known in zip(parts, old, strict=True)]
        return {
            "loss": float(losses[0]),
            "improvement": float(losses[0] - losses[-1]),
            "pre_update_kl": sum(float(kl) for kl in kls) / num_tasks,
            "gradient_norm": float(gradient.norm()),
        }

    def objective(self, old: Sequence[Distribution]) -> Objective:
        """What Adam minimises; ``old`` are the policies that collected the pre-update rollouts."""

        def clipped(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
            outer = batches[-1]
            log_prob = policy_at(len(old)).log_prob(outer.actions)
            return clipped_ratio_loss(log_prob, outer.log_probs, outer.advantages, outer.valid, self.config.clip_range)

        return clipped


def pre_update_kl(old: Sequence[Distribution], policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
    """``KL(old || new)`` of the pre-update policies, averaged over steps and stages, ``[task]``."""
    kls = [masked_mean(known.kl(policy_at(stage)), batches[stage].valid, (1,)) for stage, known in enumerate(old)]
    return torch.stack(kls).mean(0) if kls else torch.zeros_like(batches[-1].returns)


def _acting_policies(agent: GradientAgent, batches: list[Batch]) -> list[Distribution]:
    """The policies that collected the pre-update rollouts."""
    found: list[Distribution] = []

    def remember(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
        found.extend(policy_at(stage) for stage in range(len(batches) - 1))
        return torch.zeros(len(batches[-1].obs))

    agent.evaluate_at(agent.flatten(agent.meta_parameters()), batches, remember)
    return found


def _kl_moved(agent: GradientAgent, batches: list[Batch], old: Sequence[Distribution]) -> Tensor:
    """How far the pre-update policies are from those that acted, summed over tasks."""
    now = agent.flatten(agent.meta_parameters())
    return agent.evaluate_at(now, batches, lambda policy_at, parts: pre_update_kl(old, policy_at, parts))[0].sum()
