"""Meta-LSTM: Ravi, Larochelle, 2017, "Optimization as a model for few-shot learning"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from metarl.adaptation import RaviLSTM, UpdateRule
from metarl.config.settings import Natural
from metarl.fewshot.learners.maml import MAMLConfig
from metarl.networks.params import Params


@dataclass(frozen=True)
class MetaLSTMConfig(MAMLConfig):
    """Meta-LSTM: an LSTM whose cell state is the parameter vector takes the steps.

    Ravi, Larochelle, 2017, "Optimization as a model for few-shot learning", section 3: the learned initial parameters
    are the first cell state, one LSTM serves all coordinates, its gates see gradient and loss, rescaled, and gradients
    of gradients are left out (their section 3.2). Theirs keeps running batch statistics in training and takes the
    batch's in evaluation; here ``norm`` says what is done.
    """

    when: ClassVar[str] = "to learn the update rule together with where it starts"

    first_order: Literal[True] = True
    """Inner gradients are constants, as in the paper."""
    learned_rates: Literal["none"] = "none"
    """The gates are the step sizes."""
    task_chunk: Natural = 1
    """Tasks at a time; the LSTM's graph holds 20 numbers for every parameter, step and task."""

    def make_rule(self, params: Params) -> UpdateRule | float:
        """The LSTM; untrained it is gradient descent with ``inner_lr``."""
        return RaviLSTM(self.inner_lr)
