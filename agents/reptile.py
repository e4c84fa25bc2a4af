"""Reptile, on-policy: the meta-parameters move towards the adapted ones, without any derivative of adaptation.

Nichol, Achiam, Schulman, 2018 (arXiv 1803.02999), Algorithm 1 with a batch of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from torch import nn
from torch.optim import Optimizer

from metarl.adaptation import StepSizes, UpdateRule, inner_loop
from metarl.agents.common.gradient_agent import GradientConfig, OuterUpdate
from metarl.agents.common.meta_gradient import Batch, MetaGradient
from metarl.config.settings import Count, PositiveShare
from metarl.distributed import current
from metarl.errors import NonFiniteError
from metarl.networks.params import stack
from metarl.networks.policy import Policy


@dataclass(frozen=True)
class ReptileConfig(GradientConfig):
    """Reptile on policy gradients; every rollout of a trial gives one inner step, the last one too."""

    when: ClassVar[str] = "the simplest baseline of meta-learning: no derivative of adaptation"
    renamed: ClassVar[Mapping[str, str]] = {"meta_step_size": "meta_lr"}
    retired: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {**GradientConfig.retired, "first_order": None}
    trains_last_rollout: ClassVar[bool] = True

    inner_rule: Literal["sgd"] = "sgd"
    """Gradient descent alone: a learned rule needs the derivatives that Reptile does without."""
    num_inner_steps: Count = 2
    """Gradient steps before the last rollout; Reptile needs more than one step in all to differ from joint training."""
    inner_objective: Literal["ratio"] = "ratio"
    """Where the policy acted all inner losses have one gradient, and Reptile takes no other."""
    first_order: Literal[True] = True
    """Reptile takes no derivative of adaptation."""
    meta_lr: Annotated[PositiveShare, tyro.conf.arg(aliases=["--meta-step-size"])] = 0.5
    """Share of the way from the meta-parameters to the mean adapted ones."""

    def make_rule(self, policy: Policy) -> UpdateRule:
        """Gradient descent."""
        return StepSizes(policy.params(), self.inner_lr, learned=False)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """A share of the way to the adapted parameters."""
        return ReptileUpdate(self, meta)


class ReptileUpdate:
    """``theta <- theta + meta_lr mean_task(theta_adapted - theta)``.

    Args:
        config: settings.
        meta: policy, rule and derivatives; its meta-parameters move.
    """

    data_parallel = True

    def __init__(self, config: ReptileConfig, meta: MetaGradient) -> None:
        self.config = config
        self.meta = meta

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Nothing is kept between updates."""
        return {}

    def __call__(self, batches: list[Batch]) -> dict[str, float]:
        """Adapt on every rollout, then interpolate."""
        meta, group = self.meta, current()
        start = meta.current()
        move = torch.zeros_like(start)
        for part in meta.chunks(batches):
            losses = [meta.inner_loss(batch) for batch in part]
            stacked = stack(meta.policy.params(), len(part[-1].obs))
            adapted = inner_loop(stacked, losses, meta.rule, second_order=False, differentiable=False).adapted
            move += meta.flatten({name: (value - stacked[name]).sum(0) for name, value in adapted.items()})
        (move,) = group.sum(move)
        move /= group.total(len(batches[-1].obs))
        if not torch.isfinite(move).all():
            raise NonFiniteError("the mean step of the inner loops is not finite.")
        meta.assign(start + self.config.meta_lr * move)
        return {"step_norm": float(move.norm())}
