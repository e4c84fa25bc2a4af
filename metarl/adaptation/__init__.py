"""The inner loop: parameters, a loss and a rule; never an environment or a label.

:func:`adapt` gives a module with parameters of its own for each task, as a graph: any outer loss, and ``backward()``.
:func:`inner_loop` takes the same steps and keeps the products with their Jacobian instead; :func:`meta_gradient`
carries a loss after adaptation back through it.

The rule is a step size, or any :class:`UpdateRule`: :class:`StepSizes` (Meta-SGD, ANIL), :class:`SGD`, :class:`Adam`
and :class:`RMSprop`, gradients transformed by :class:`LearnedRates`, :class:`MetaCurvature`,
:class:`KroneckerFactored` or :class:`MapGradients`, the LSTMs :class:`RaviLSTM` and :class:`AndrychowiczLSTM`, or
one's own.
"""

from metarl.adaptation.inner_loop import InnerLoop, inner_loop
from metarl.adaptation.learned_rules import AndrychowiczLSTM, RaviLSTM, log_and_sign
from metarl.adaptation.live import AdaptedModel, adapt
from metarl.adaptation.modules import meta_gradient, stack_module
from metarl.adaptation.optimisers import SGD, Adam, RMSprop
from metarl.adaptation.transforms import KroneckerFactored, LearnedRates, MapGradients, MetaCurvature
from metarl.adaptation.update_rules import LossFn, StepSizes, UpdateRule
from metarl.networks.module_call import call
from metarl.networks.params import Params

__all__ = [
    "SGD",
    "Adam",
    "AdaptedModel",
    "AndrychowiczLSTM",
    "InnerLoop",
    "KroneckerFactored",
    "LearnedRates",
    "LossFn",
    "MapGradients",
    "MetaCurvature",
    "Params",
    "RMSprop",
    "RaviLSTM",
    "StepSizes",
    "UpdateRule",
    "adapt",
    "call",
    "inner_loop",
    "log_and_sign",
    "meta_gradient",
    "stack_module",
]
