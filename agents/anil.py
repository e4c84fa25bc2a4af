"""ANIL, almost no inner loop: the head alone adapts, on features that all tasks share.

Raghu et al., 2020 (arXiv 1909.09157), section 4: of the layers ``theta_1 .. theta_l`` the inner loop moves the last,
``theta_l' = theta_l - alpha dL/dtheta_l``; the outer loop moves all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metarl.adaptation import UpdateRule
from metarl.agents.common.gradient_agent import OuterUpdate, named_rule
from metarl.agents.common.meta_gradient import MetaGradient
from metarl.agents.maml import TRPOUpdate, TrustRegionConfig
from metarl.networks.policy import Policy


@dataclass(frozen=True)
class ANILConfig(TrustRegionConfig):
    """Almost no inner loop: the last layer alone adapts."""

    when: ClassVar[str] = "tasks can share their features, and only the last layer must adapt"

    def make_rule(self, policy: Policy) -> UpdateRule:
        """The one that ``inner_rule`` names, on the last layer."""
        return named_rule(self, policy, adapted=policy.head_names)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """MAML's."""
        return TRPOUpdate(self, meta)
