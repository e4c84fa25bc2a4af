"""The inner loop: parameters, a loss and a rule; never an environment or a label."""

from metarl.adaptation.inner_loop import InnerLoop, LossFn, inner_loop
from metarl.adaptation.modules import call, meta_gradient, stack_module
from metarl.adaptation.update_rules import StepSizes

__all__ = ["InnerLoop", "LossFn", "StepSizes", "call", "inner_loop", "meta_gradient", "stack_module"]
