"""ANIL, almost no inner loop: the head alone adapts, on features that all tasks share.

Raghu et al., 2020 (arXiv 1909.09157), section 4: of the layers ``theta_1 .. theta_l`` the inner loop moves the last,
``theta_l' = theta_l - alpha dL/dtheta_l``; the outer loop moves all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.maml import MAMLTRPOConfig, TRPOUpdate
from metarl.types import Spec


@dataclass(frozen=True)
class ANILConfig(MAMLTRPOConfig):
    """Almost no inner loop: the last layer alone adapts."""

    when: ClassVar[str] = "features can be shared by all tasks and only the last layer must adapt"

    def build(self, spec: Spec, device: torch.device, seed: int) -> GradientAgent:
        """A fresh agent."""
        return GradientAgent(self, spec, device, seed, lambda agent: TRPOUpdate(self), head_only=True)
