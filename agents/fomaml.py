"""First-order MAML: the Hessians of the inner loop are left out.

Finn, Abbeel, Levine, 2017 (arXiv 1703.03400), section 5.2: the gradient of the loss after adaptation is taken at the
adapted parameters, ``dL/dtheta'``, as if ``theta' = theta - alpha dL/dtheta`` moved with ``theta`` one to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from metarl.adaptation import UpdateRule
from metarl.agents.common.gradient_agent import GradientConfig, OuterUpdate, named_rule
from metarl.agents.common.meta_gradient import MetaGradient
from metarl.agents.maml import TRPOUpdate, TrustRegionConfig
from metarl.networks.policy import Policy


@dataclass(frozen=True)
class FOMAMLConfig(TrustRegionConfig):
    """First-order MAML with a TRPO outer loop."""

    when: ClassVar[str] = "second-order products cost too much; first-order MAML"
    retired: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {
        **GradientConfig.retired,
        "first_order": (False,),
        "fisher_metric": ("full",),
    }

    first_order: Literal[True] = True
    """No derivative knows the Hessians of the inner loop."""
    fisher_metric: Literal["first_order"] = "first_order"
    """Nor does the trust region's metric."""

    def make_rule(self, policy: Policy) -> UpdateRule:
        """The one that ``inner_rule`` names."""
        return named_rule(self, policy)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """MAML's."""
        return TRPOUpdate(self, meta)
