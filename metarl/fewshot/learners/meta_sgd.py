"""Meta-SGD: Li, Zhou, Chen, Li, 2017 (arXiv 1707.09835)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from metarl.adaptation import StepSizes, UpdateRule
from metarl.fewshot.learners.maml import MAMLConfig
from metarl.networks.params import Params


@dataclass(frozen=True)
class MetaSGDConfig(MAMLConfig):
    """Meta-SGD: a learned step size for every parameter (Li et al., 2017, arXiv 1707.09835, Algorithm 1)."""

    when: ClassVar[str] = "MAML whose step sizes, and their signs, are learned as well"

    learned_rates: Literal["none"] = "none"
    """Every number has a step size of its own."""

    def make_rule(self, params: Params) -> UpdateRule | float:
        """Learned step sizes."""
        return StepSizes(params, self.inner_lr, learned=True)
