"""The inner loop: parameters, a loss and a rule; never an environment or a label.

:func:`inner_loop` takes a few steps of an update rule for many tasks at once. The rule is a step size, or any
:class:`UpdateRule`: :class:`StepSizes` (Meta-SGD, ANIL), the LSTMs :class:`RaviLSTM` and :class:`AndrychowiczLSTM`, or
one's own. :func:`meta_gradient` carries a loss after adaptation back to the initial parameters of a module and to the
parameters of the rule.
"""

from metarl.adaptation.inner_loop import InnerLoop, inner_loop
from metarl.adaptation.learned_rules import AndrychowiczLSTM, RaviLSTM, log_and_sign
from metarl.adaptation.modules import call, meta_gradient, stack_module
from metarl.adaptation.update_rules import LossFn, StepSizes, UpdateRule
from metarl.networks.params import Params

__all__ = [
    "AndrychowiczLSTM",
    "InnerLoop",
    "LossFn",
    "Params",
    "RaviLSTM",
    "StepSizes",
    "UpdateRule",
    "call",
    "inner_loop",
    "log_and_sign",
    "meta_gradient",
    "stack_module",
]
