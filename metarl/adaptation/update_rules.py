"""Update rules of the inner loop: the interface of all of them, and step sizes, which are the simplest.

Step sizes are one for all, none for the body (ANIL), or learned ones (Meta-SGD). Rules of one's own subclass
:class:`UpdateRule`; its docstring shows one.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metarl.errors import ConfigError, unknown_name
from metarl.networks.params import Params

LossFn = Callable[[Params], Tensor]
"""Stacked parameters ``[task, ...]`` -> loss of each task ``[task]``."""


class Slopes(NamedTuple):
    """Losses ``[task]``, their gradients ``[task, ...]``, and the names of the parameters that they do not use.

    The gradient of a parameter that is not used is zero.
    """

    gradient: Params
    losses: Tensor
    unused: frozenset[str]


def slopes(loss_fn: LossFn, params: Params, *, create_graph: bool, what: str = "an inner loss") -> Slopes:
    """The gradient of each task's loss with respect to ``params``, also inside ``no_grad``.

    Raises:
        ValueError: for a loss that is not one number per task, or depends on no parameter.
    """
    num_tasks = next(iter(params.values())).shape[0]
    with torch.enable_grad():
        loss = loss_fn(params)
        if loss.shape != (num_tasks,):
            raise ValueError(f"{what} must have shape [task] = ({num_tasks},), got {tuple(loss.shape)}.")
        if not loss.requires_grad:
            raise ValueError(f"{what} must depend on the parameters that it is given, got one without gradient.")
        found = torch.autograd.grad(loss.sum(), tuple(params.values()), create_graph=create_graph, allow_unused=True)
    gradient = {
        name: torch.zeros_like(value) if slope is None else slope
        for (name, value), slope in zip(params.items(), found, strict=True)
    }
    return Slopes(gradient, loss, frozenset(name for name, slope in zip(params, found, strict=True) if slope is None))


def require_not_negative(**settings: float) -> None:
    """Refuse settings that are not finite numbers of 0 or more.

    Raises:
        ConfigError: for the first of them.
    """
    for name, value in settings.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be finite and 0 or more, got {value!r}.")


def step_size(rule: object) -> float | Tensor:
    """A step size of gradient descent: a number, or a tensor of one number.

    Raises:
        ConfigError: for anything else, and for numbers that are negative or not finite.
    """
    is_number = isinstance(rule, int | float) and not isinstance(rule, bool)
    if not is_number and not (isinstance(rule, Tensor) and rule.numel() == 1):
        raise ConfigError(f"rule must be an UpdateRule or the step size of gradient descent, got {rule!r}.")
    assert isinstance(rule, int | float | Tensor)
    if isinstance(rule, Tensor):
        if not rule.requires_grad:  # One that is learned may go where its optimiser takes it.
            require_not_negative(rule=float(rule))
        return rule.reshape(())
    require_not_negative(rule=rule)
    return rule


def require_parameters(adapted: Collection[str] | None, names: Collection[str]) -> None:
    """Refuse names of parameters that are to adapt and are not there.

    Raises:
        ConfigError: for the first of them.
    """
    for name in sorted(adapted or ()):
        if name not in names:
            raise unknown_name("parameter to adapt", name, names)


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
            losses: ``[task]``; without graph likewise. Where the numerical value of a loss says nothing, what the
                inner loop is told to show in its place.

        Returns:
            New parameters of the same names and shapes, and the new state. Those that the loss does not use keep their
            values, whatever is returned for them.
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

    Raises:
        ConfigError: for a negative or non-finite step size, or names of no parameter.

    Attributes:
        rate_names: the learned step sizes' own names by those of the parameters; a module's name holds no dots.
    """

    def __init__(
        self, params: Mapping[str, Tensor], inner_lr: float, *, learned: bool, adapted: frozenset[str] | None = None
    ) -> None:
        super().__init__()
        require_not_negative(inner_lr=inner_lr)
        require_parameters(adapted, params)
        self.rate_names = {name: name.replace(".", "/") for name in params if learned}
        self._fixed = {name: inner_lr if adapted is None or name in adapted else 0.0 for name in params}
        for name, rate_name in self.rate_names.items():
            self.register_parameter(rate_name, nn.Parameter(torch.full_like(params[name], self._fixed[name])))

    def values(self, factor: float = 1.0, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor | float]:
        """Step sizes by parameter name, times ``factor``, detached; ``weights`` in place of the learned ones."""
        learned = {**dict(self.named_parameters()), **(weights or {})}
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
