"""Reptile, on-policy: the meta-parameters move towards the adapted ones, without any derivative of adaptation.

Nichol, Achiam, Schulman, 2018 (arXiv 1803.02999), Algorithm 1 with a batch of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from metarl.adaptation import inner_loop
from metarl.agents.common.gradient_agent import Batch, GradientAgent, GradientConfig
from metarl.errors import NonFiniteError, require_in_unit_interval, require_positive
from metarl.types import Spec


@dataclass(frozen=True)
class ReptileConfig(GradientConfig):
    """Reptile on policy gradients; every rollout of a trial gives one inner step, the last one too."""

    when: ClassVar[str] = "the simplest baseline of meta-learning: no derivative of adaptation"

    inner_rule: Literal["sgd"] = "sgd"
    """Gradient descent alone: a learned rule needs the derivatives that Reptile does without."""
    num_inner_steps: int = 2
    """Gradient steps before the last rollout; Reptile needs more than one step in all to differ from joint training."""
    meta_step_size: float = 0.5
    """Share of the way from the meta-parameters to the mean adapted ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "meta_step_size")
        require_in_unit_interval(self, "meta_step_size")

    def build(self, spec: Spec, device: torch.device, seed: int) -> GradientAgent:
        """A fresh agent."""
        steps = self.num_inner_steps + 1
        return GradientAgent(self, spec, device, seed, lambda agent: ReptileUpdate(self), num_trained_steps=steps)


class ReptileUpdate:
    """``theta <- theta + meta_step_size mean_task(theta_adapted - theta)``.

    Args:
        config: settings.
    """

    def __init__(self, config: ReptileConfig) -> None:
        self.config = config

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Nothing is kept between updates."""
        return {}

    def __call__(self, agent: GradientAgent, batches: list[Batch]) -> dict[str, float]:
        """Adapt on every rollout, then interpolate."""
        start = agent.flatten(agent.meta_parameters())
        move = torch.zeros_like(start)
        for part in agent.chunks(batches):
            losses = [agent.inner_loss(batch) for batch in part]
            stacked = agent.stacked(len(part[-1].obs))
            adapted = inner_loop(stacked, losses, agent.rule, second_order=False, differentiable=False).adapted
            move += agent.flatten({name: (value - stacked[name]).sum(0) for name, value in adapted.items()})
        move /= len(batches[-1].obs)
        if not torch.isfinite(move).all():
            raise NonFiniteError("the mean step of the inner loops is not finite.")
        agent.assign(start + self.config.meta_step_size * move)
        return {"step_norm": float(move.norm())}
