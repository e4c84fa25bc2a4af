"""Meta-SGD: a step size for every parameter is learned along with the policy.

Li et al., 2017 (arXiv 1707.09835), eq. 2 and Algorithm 2: ``theta' = theta - alpha * dL/dtheta`` elementwise, with
``alpha`` a meta-parameter as ``theta`` is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.maml import MAMLTRPOConfig, TRPOUpdate
from metarl.types import Spec


@dataclass(frozen=True)
class MetaSGDConfig(MAMLTRPOConfig):
    """A step size for every parameter is learned along with the policy; ``inner_lr`` is where they begin."""

    when: ClassVar[str] = "a good step size is not known, or differs between parameters"

    inner_rule: Literal["sgd"] = "sgd"
    """Gradient descent alone: the step sizes are what is learned of it."""

    def build(self, spec: Spec, device: torch.device, seed: int) -> GradientAgent:
        """A fresh agent."""
        return GradientAgent(self, spec, device, seed, lambda agent: TRPOUpdate(self), learned_rates=True)
