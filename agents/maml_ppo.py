"""MAML-PPO: several clipped steps with Adam on each batch of trials.

MAML's loss after adaptation (Finn, Abbeel, Levine, 2017, arXiv 1703.03400, Algorithm 3) under PPO's clipped surrogate
(Schulman et al., 2017, arXiv 1707.06347, eq. 7) in place of TRPO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from metarl.adaptation import UpdateRule
from metarl.agents.common.gradient_agent import GradientConfig, OuterUpdate, named_rule
from metarl.agents.common.meta_gradient import Batch, MetaGradient, Objective, PolicyAt
from metarl.config.settings import Count, Positive
from metarl.distributed import current
from metarl.errors import NonFiniteError
from metarl.functional.policy_losses import clipped_ratio_loss
from metarl.functional.returns import masked_mean
from metarl.networks.distributions import Distribution
from metarl.networks.policy import Policy


@dataclass(frozen=True)
class ClippedConfig(GradientConfig):
    """Settings of the agents whose outer loop is PPO."""

    meta_lr: Positive = 1e-3
    """Adam's step size in the outer loop."""
    num_epochs: Count = 5
    """Steps on each batch of trials."""
    clip_range: Positive = 0.3
    """Clipping of the likelihood ratio after adaptation."""


@dataclass(frozen=True)
class MAMLPPOConfig(ClippedConfig):
    """MAML with a PPO outer loop."""

    when: ClassVar[str] = "as maml-trpo, with cheaper updates and several of them on each batch"

    def make_rule(self, policy: Policy) -> UpdateRule:
        """The one that ``inner_rule`` names."""
        return named_rule(self, policy)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """Several clipped steps."""
        return ClippedUpdate(self, meta, lambda old: clipped_loss(self.clip_range))


def clipped_loss(clip_range: float) -> Objective:
    """PPO's clipped surrogate of the policies after adaptation."""

    def clipped(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
        outer = batches[-1]
        log_prob = policy_at(len(batches) - 1).log_prob(outer.actions)
        return clipped_ratio_loss(log_prob, outer.log_probs, outer.advantages, outer.valid, clip_range)

    return clipped


class ClippedUpdate:
    """Epochs of Adam on an objective after adaptation.

    Args:
        config: settings.
        meta: policy, rule and derivatives; its meta-parameters move.
        make_objective: the policies that collected the pre-update rollouts -> what to minimise.
    """

    data_parallel = True

    def __init__(
        self,
        config: ClippedConfig,
        meta: MetaGradient,
        make_objective: Callable[[Sequence[Distribution]], Objective],
    ) -> None:
        self.config = config
        self.meta = meta
        self.make_objective = make_objective
        self.optimizer = Adam(meta.meta_parameters().values(), lr=config.meta_lr)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Adam's moments."""
        return {"optimizer": self.optimizer}

    def __call__(self, batches: list[Batch]) -> dict[str, float]:
        """Several steps on one batch of trials."""
        meta, group = self.meta, current()
        num_tasks = group.total(len(batches[-1].obs))
        parts = meta.chunks(batches)
        old = [_acting_policies(meta, part) for part in parts]
        losses: list[Tensor] = []
        for _ in range(self.config.num_epochs):
            chunks = [meta.linearise(part, self.make_objective(known)) for part, known in zip(parts, old, strict=True)]
            gradient, loss = group.sum(
                torch.stack([chunk.gradient for chunk in chunks]).sum(0),
                torch.stack([chunk.loss for chunk in chunks]).sum(),
            )
            gradient = gradient / num_tasks
            losses.append(loss / num_tasks)
            del chunks  # Their graphs, before the next epoch makes its own.
            # Before the step: a NaN would stay in the parameters and in Adam's moments.
            if not torch.isfinite(gradient).all():
                raise NonFiniteError(f"the meta-gradient is not finite (losses {[float(loss) for loss in losses]}).")
            for name, slope in meta.unflatten(gradient).items():
                meta.meta_parameters()[name].grad = slope.clone()
            self.optimizer.step()
        kls = group.gather([float(_kl_moved(meta, part, known)) for part, known in zip(parts, old, strict=True)])
        return {
            "loss": float(losses[0]),
            "improvement": float(losses[0] - losses[-1]),
            "pre_update_kl": sum(kl for own in kls for kl in own) / num_tasks,
            "gradient_norm": float(gradient.norm()),
        }


def pre_update_kl(old: Sequence[Distribution], policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
    """``KL(old || new)`` of the pre-update policies, averaged over steps and stages, ``[task]``."""
    kls = [masked_mean(known.kl(policy_at(stage)), batches[stage].valid, (1,)) for stage, known in enumerate(old)]
    return torch.stack(kls).mean(0) if kls else torch.zeros_like(batches[-1].returns)


def _acting_policies(meta: MetaGradient, batches: list[Batch]) -> list[Distribution]:
    """The policies that collected the pre-update rollouts."""
    found: list[Distribution] = []

    def remember(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
        found.extend(policy_at(stage) for stage in range(len(batches) - 1))
        return torch.zeros(len(batches[-1].obs))

    meta.evaluate_at(meta.current(), batches, remember)
    return found


def _kl_moved(meta: MetaGradient, batches: list[Batch], old: Sequence[Distribution]) -> Tensor:
    """How far the pre-update policies are from those that acted, summed over tasks."""
    kls, _ = meta.evaluate_at(meta.current(), batches, lambda policy_at, parts: pre_update_kl(old, policy_at, parts))
    return kls.sum()
