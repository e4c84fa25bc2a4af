"""Meta-LSTM: the initial policy and the update rule that adapts it are learned together.

The rule is a coordinate-wise LSTM over policy gradients: that of Ravi, Larochelle, 2017 ("Optimization as a model for
few-shot learning", ICLR), whose cell state is the parameter vector, or that of Andrychowicz et al., 2016
(arXiv 1606.04474), whose output is the step (:mod:`metarl.adaptation.learned_rules`). Where the former's rule sees the
loss of a supervised task, it sees the negated mean return for each step of the horizon here: the inner loss itself, on
normalised advantages, is 0 at the policy that acted. As in both papers, inner
gradients are constants (``first_order``). Both are supervised and descend with Adam. Here the loss after adaptation is
MAML's, and initial and rule parameters move together by TRPO: a small change of a rule can change every adapted policy
a lot, which the trust region sees and Adam does not. For Adam, take ``maml-ppo`` with this ``inner_rule``.

The gates of Ravi and Larochelle's rule begin elsewhere than in the implementations of it, which draw weights from
U[-0.01, 0.01], the forget gate's bias from U[4, 6] and the rate's from U[-5, -4]: a forget gate of 0.982 to 0.998, and
a step size of 0.007 to 0.018. Here their weights are 0, the forget gate is 0.9997 and the step size ``inner_lr``: the
untrained rule is then gradient descent, which agents with other rules can be compared with. A forget gate of 0.99
would shrink every parameter by 1 % in a step, and with the step size of a supervised task a policy hardly moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from metarl.adaptation import UpdateRule
from metarl.agents.common.gradient_agent import OuterUpdate, named_rule
from metarl.agents.common.meta_gradient import MetaGradient
from metarl.agents.maml import TRPOUpdate, TrustRegionConfig
from metarl.networks.policy import Policy


@dataclass(frozen=True)
class MetaLSTMConfig(TrustRegionConfig):
    """A learned update rule with a TRPO outer loop."""

    when: ClassVar[str] = "gradient descent adapts too little in few steps: learn the step"

    inner_rule: Literal["ravi-lstm", "andrychowicz-lstm"] = "ravi-lstm"
    """The LSTM of Ravi and Larochelle (gates on parameters and gradient), or of Andrychowicz et al. (its output is the
    step)."""
    first_order: bool = True
    """Take inner gradients for constants in all derivatives, as both papers do."""

    def make_rule(self, policy: Policy) -> UpdateRule:
        """The one that ``inner_rule`` names."""
        return named_rule(self, policy)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """MAML's."""
        return TRPOUpdate(self, meta)
