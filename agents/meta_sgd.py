"""Meta-SGD: a step size for every parameter is learned along with the policy.

Li et al., 2017 (arXiv 1707.09835), eq. 2 and Algorithm 2: ``theta' = theta - alpha * dL/dtheta`` elementwise, with
``alpha`` a meta-parameter as ``theta`` is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from metarl.adaptation import StepSizes, UpdateRule
from metarl.agents.common.gradient_agent import OuterUpdate
from metarl.agents.common.meta_gradient import MetaGradient
from metarl.agents.maml import TRPOUpdate, TrustRegionConfig
from metarl.networks.policy import Policy


@dataclass(frozen=True)
class MetaSGDConfig(TrustRegionConfig):
    """A step size for every parameter is learned along with the policy; ``inner_lr`` is where they begin."""

    when: ClassVar[str] = "a good step size is not known, or differs between parameters"

    inner_rule: Literal["sgd"] = "sgd"
    """Gradient descent alone: the step sizes are what is learned of it."""

    def make_rule(self, policy: Policy) -> UpdateRule:
        """Gradient descent with a step size to learn for every parameter."""
        return StepSizes(policy.params(), self.inner_lr, learned=True)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """MAML's."""
        return TRPOUpdate(self, meta)
