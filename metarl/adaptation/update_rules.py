"""Update rules of the inner loop: the interface of all of them, and step sizes, which are the simplest.

Step sizes are one for all, none for the body (ANIL), or learned ones (Meta-SGD). Rules of one's own subclass
:class:`UpdateRule`; its docstring shows one.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from metarl.networks.params import Params

LossFn = Callable[[Params], Tensor]
"""Stacked parameters ``[task, ...]`` -> loss of each task ``[task]``."""


def slopes(loss_fn: LossFn, params: Params, *, create_graph: bool) -> tuple[Params, Tensor]:
    """The gradient of each task's loss with respect to ``params``, also inside ``no_grad``, and the losses ``[task]``.

    Raises:
        ValueError: for a loss that is not one number per task.
    """
    num_tasks = next(iter(params.values())).shape[0]
    with torch.enable_grad():
        loss = loss_fn(params)
        if loss.shape != (num_tasks,):
            raise ValueError(f"an inner loss must have shape [task] = ({num_tasks},), got {tuple(loss.shape)}.")
        found = torch.autograd.grad(
            loss.sum(), tuple(params.values()), create_graph=create_graph, materialize_grads=True
        )
    return dict(zip(params, found, strict=True)), loss


class UpdateRule(nn.Module, abc.ABC):
    """How parameters move, given their gradients.

    A rule has a state for each task, which lasts from one step to the next, and a step that can be differentiated
    through. Its own parameters are shared by all tasks and can be meta-learned together with the initial parameters.
    Tasks must not mix: row ``t`` of every result depends on rows ``t`` of the arguments alone.

    Heavy-ball momentum with a learned decay, in full::

        class Momentum(UpdateRule):
            def __init__(self, inner_lr):
                super().__init__()
                self.inner_lr = inner_lr
                self.decay = torch.nn.Parameter(torch.tensor(0.5))

            def init(self, params):
                return {name: torch.zeros_like(value) for name, value in params.items()}

            def step(self, state, params, grads, losses):
                velocity = {name: self.decay * state[name] + grads[name] for name in params}
                return {name: value - self.inner_lr * velocity[name] for name, value in params.items()}, velocity
    """

    @abc.abstractmethod
    def init(self, params: Params) -> Params:
        """The state before the first step, tensors ``[task, ...]`` by name; may be empty.

        Args:
            params: the stacked parameters that will be adapted, ``[task, ...]``.
        """

    @abc.abstractmethod
    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """One step of all tasks; changes none of its arguments.

        Args:
            state: from :meth:`init` or the previous step.
            params: ``[task, ...]``.
            grads: gradients of ``losses`` with respect to ``params``, ``[task, ...]``; without graph where derivatives
                are first order, so that no gradient flows through them.
            losses: ``[task]``; without graph likewise.

        Returns:
            New parameters of the same names and shapes, and the new state.
        """

    def forward(self, state: Params | None, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """:meth:`step`, from :meth:`init` if ``state`` is None.

        This is the method that ``functional_call`` runs with other parameters than the rule's own.
        """
        return self.step(self.init(params) if state is None else state, params, grads, losses)


class StepSizes(UpdateRule):
    """Gradient descent with a step size for each parameter; where learned, a tensor of its shape.

    Meta-SGD learns them (Li et al., 2017, arXiv 1707.09835, eq. 2); ANIL fixes those of the body at zero
    (Raghu et al., 2020, arXiv 1909.09157, section 4.1).

    Args:
        params: the parameters that will be adapted, without task axis.
        inner_lr: initial step size.
        learned: whether meta-training moves them.
        adapted: names of the parameters that adapt; default: all.

    Attributes:
        rate_names: the learned step sizes' own names by those of the parameters; a module's name holds no dots.
    """

    def __init__(
        self, params: Mapping[str, Tensor], inner_lr: float, *, learned: bool, adapted: frozenset[str] | None = None
    ) -> None:
        super().__init__()
        self.rate_names = {name: name.replace(".", "/") for name in params if learned}
        self._fixed = {name: inner_lr if adapted is None or name in adapted else 0.0 for name in params}
        for name, rate_name in self.rate_names.items():
            self.register_parameter(rate_name, nn.Parameter(torch.full_like(params[name], self._fixed[name])))

    def values(self, factor: float = 1.0, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor | float]:
        """Step sizes by parameter name, times ``factor``, detached; ``weights`` in place of the learned ones."""
        learned = weights or dict(self.named_parameters())
        return {
            name: factor * learned[self.rate_names[name]].detach() if name in self.rate_names else factor * size
            for name, size in self._fixed.items()
        }

    def init(self, params: Params) -> Params:
        """Nothing is remembered."""
        return {}

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """``theta - rate * gradient``."""
        learned = dict(self.named_parameters())
        rates = {
            name: learned[self.rate_names[name]] if name in self.rate_names else size
            for name, size in self._fixed.items()
        }
        return {name: value - rates[name] * grads[name] for name, value in params.items()}, {}
