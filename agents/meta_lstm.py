"""Meta-LSTM: the initial policy and the update rule that adapts it are learned together.

The rule is a coordinate-wise LSTM over policy gradients: that of Ravi, Larochelle, 2017 ("Optimization as a model for
few-shot learning", ICLR), whose cell state is the parameter vector, or that of Andrychowicz et al., 2016
(arXiv 1606.04474), whose output is the step (:mod:`metarl.adaptation.learned_rules`). Both papers are supervised; here
the loss after adaptation is PPO's clipped surrogate on the last rollout, as in MAML-PPO. As in both, Adam moves initial
and rule parameters alike, and inner gradients are constants (``first_order``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metarl.agents.promp import MAMLPPOConfig


@dataclass(frozen=True)
class MetaLSTMConfig(MAMLPPOConfig):
    """A learned update rule with a PPO outer loop."""

    inner_rule: Literal["ravi-lstm", "andrychowicz-lstm"] = "ravi-lstm"
    """The LSTM of Ravi and Larochelle (gates on parameters and gradient), or of Andrychowicz et al. (its output is the
    step)."""
    first_order: bool = True
    """Take inner gradients for constants in all derivatives, as both papers do."""
