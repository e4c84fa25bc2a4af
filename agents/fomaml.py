"""First-order MAML: the Hessians of the inner loop are left out.

Finn, Abbeel, Levine, 2017 (arXiv 1703.03400), section 5.2: the gradient of the loss after adaptation is taken at the
adapted parameters, ``dL/dtheta'``, as if ``theta' = theta - alpha dL/dtheta`` moved with ``theta`` one to one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.maml import MAMLTRPOConfig
from metarl.types import Spec


@dataclass(frozen=True)
class FOMAMLConfig(MAMLTRPOConfig):
    """First-order MAML with a TRPO outer loop."""

    when: ClassVar[str] = "second-order products cost too much; first-order MAML"

    def build(self, spec: Spec, device: torch.device, seed: int) -> GradientAgent:
        """A fresh agent; ``first_order`` is always on."""
        return MAMLTRPOConfig.build(dataclasses.replace(self, first_order=True), spec, device, seed)
