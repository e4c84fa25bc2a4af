"""Differentiable optimisers as update rules: SGD with momentum, Adam and RMSprop, with the formulas of ``torch.optim``.

Each takes one learning rate, or one for each group of parameters: a mapping from the beginning of their names, as
``{"body": 0.01, "head": 0.1}``. Rates that shall be learned are those of :mod:`metarl.adaptation.transforms`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from metarl.adaptation.update_rules import UpdateRule, require_not_negative
from metarl.errors import ConfigError
from metarl.networks.params import Params

Rates = float | Mapping[str, float]
"""One learning rate, or one for each group of parameters by the beginning of their names."""


def rates_by_name(rates: Rates, params: Params) -> dict[str, float]:
    """The learning rate of each parameter.

    Raises:
        ConfigError: for a negative or non-finite rate, a group without parameters, or parameters in no group or in two.
    """
    named = rates if isinstance(rates, Mapping) else {"": rates}
    for group, rate in named.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
            raise ConfigError(
                f"a learning rate must be finite and 0 or more, got {rate!r}{f' for {group!r}' if group else ''}."
            )
    if not isinstance(rates, Mapping):
        return dict.fromkeys(params, float(rates))
    found: dict[str, float] = {}
    for name in params:
        groups = [group for group in named if name == group or name.startswith(f"{group}.")]
        if len(groups) != 1:
            what = f"lies in the groups {', '.join(groups)}" if groups else f"lies in no group of {', '.join(named)}"
            raise ConfigError(f"the parameter {name!r} {what}; give each parameter one learning rate.")
        found[name] = float(named[groups[0]])
    empty = [group for group in named if not any(name == group or name.startswith(f"{group}.") for name in params)]
    if empty:
        raise ConfigError(f"no parameter's name begins with {empty[0]!r}; there are {', '.join(params)}.")
    return found


class SGD(UpdateRule):
    """Gradient descent with momentum, as ``torch.optim.SGD``.

    ``b_t = momentum b_{t-1} + (1 - dampening) g_t`` (``b_1 = g_1``), ``theta_t = theta_{t-1} - lr b_t``, or with
    Nesterov's momentum ``theta_t = theta_{t-1} - lr (g_t + momentum b_t)``; ``g_t`` includes
    ``weight_decay theta_{t-1}``.

    Args:
        lr: learning rates.
        momentum: factor on the velocity.
        dampening: what is left out of the gradient.
        weight_decay: factor of the parameters in the gradient.
        nesterov: Nesterov's momentum.

    Raises:
        ConfigError: for settings that cannot work.
    """

    def __init__(
        self,
        lr: Rates,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__()
        require_not_negative(momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ConfigError(f"nesterov needs momentum above 0 and no dampening, got {momentum!r} and {dampening!r}.")
        self.lr, self.momentum, self.dampening = lr, momentum, dampening
        self.weight_decay, self.nesterov = weight_decay, nesterov

    def init(self, params: Params) -> Params:
        """Velocities, and whether there is one yet."""
        rates_by_name(self.lr, params)
        return _counted(
            {name: torch.zeros_like(value) for name, value in params.items()} if self.momentum else {}, params
        )

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """See the class; the losses are not used."""
        rates, following = rates_by_name(self.lr, params), {_COUNT: state[_COUNT] + 1}
        moved = {}
        for name, value in params.items():
            slope = grads[name] + self.weight_decay * value if self.weight_decay else grads[name]
            if self.momentum:
                is_first = _beside(state[_COUNT], value) == 0
                velocity = torch.where(is_first, slope, self.momentum * state[name] + (1 - self.dampening) * slope)
                following[name] = velocity
                slope = slope + self.momentum * velocity if self.nesterov else velocity
            moved[name] = value - rates[name] * slope
        return moved, following


class Adam(UpdateRule):
    """Adam, as ``torch.optim.Adam`` (Kingma, Ba, 2015, arXiv 1412.6980, Algorithm 1).

    Where a second moment is zero, its root has no derivative; it counts as zero there, so that a parameter without any
    gradient does not turn derivatives of the inner loop into NaN.

    Args:
        lr: learning rates.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: factor of the parameters in the gradient.

    Raises:
        ConfigError: for settings that cannot work.
    """

    def __init__(
        self, lr: Rates, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        require_not_negative(eps=eps, weight_decay=weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas must lie in [0, 1), got {betas!r}.")
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay

    def init(self, params: Params) -> Params:
        """First and second moments, and how many steps were taken."""
        rates_by_name(self.lr, params)
        zeros = {
            f"{kind}/{name}": torch.zeros_like(value) for kind in ("first", "second") for name, value in params.items()
        }
        return _counted(zeros, params)

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """See the class; the losses are not used."""
        rates, (beta1, beta2) = rates_by_name(self.lr, params), self.betas
        following, moved = {_COUNT: state[_COUNT] + 1}, {}
        for name, value in params.items():
            slope = grads[name] + self.weight_decay * value if self.weight_decay else grads[name]
            count = _beside(following[_COUNT], value)
            first = beta1 * state[f"first/{name}"] + (1 - beta1) * slope
            second = beta2 * state[f"second/{name}"] + (1 - beta2) * slope.square()
            following |= {f"first/{name}": first, f"second/{name}": second}
            root = _root(second / (1 - beta2**count))
            moved[name] = value - rates[name] * (first / (1 - beta1**count)) / (root + self.eps)
        return moved, following


class RMSprop(UpdateRule):
    """RMSprop, as ``torch.optim.RMSprop`` (Tieleman, Hinton, 2012, "Lecture 6.5").

    Args:
        lr: learning rates.
        alpha: decay of the second moment.
        eps: added to its root, whose derivative counts as zero where it is zero (see :class:`Adam`).
        weight_decay: factor of the parameters in the gradient.
        momentum: factor on the velocity.
        centered: divide by the root of an estimate of the variance instead.

    Raises:
        ConfigError: for settings that cannot work.
    """

    def __init__(
        self,
        lr: Rates,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__()
        require_not_negative(alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)
        self.lr, self.alpha, self.eps = lr, alpha, eps
        self.weight_decay, self.momentum, self.centered = weight_decay, momentum, centered

    def init(self, params: Params) -> Params:
        """Moments and velocities."""
        rates_by_name(self.lr, params)
        kinds = ["second", *(["first"] if self.centered else []), *(["velocity"] if self.momentum else [])]
        return {f"{kind}/{name}": torch.zeros_like(value) for kind in kinds for name, value in params.items()}

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """See the class; the losses are not used."""
        rates = rates_by_name(self.lr, params)
        following: Params = {}
        moved = {}
        for name, value in params.items():
            slope = grads[name] + self.weight_decay * value if self.weight_decay else grads[name]
            second = self.alpha * state[f"second/{name}"] + (1 - self.alpha) * slope.square()
            following[f"second/{name}"] = variance = second
            if self.centered:
                first = self.alpha * state[f"first/{name}"] + (1 - self.alpha) * slope
                following[f"first/{name}"] = first
                variance = second - first.square()
            move = slope / (_root(variance) + self.eps)
            if self.momentum:
                move = self.momentum * state[f"velocity/{name}"] + move
                following[f"velocity/{name}"] = move
            moved[name] = value - rates[name] * move
        return moved, following


_COUNT = "count"
"""Name of the steps taken in a state; a parameter's own entries bear its name, which holds no such word alone."""


def _counted(state: Params, params: Params) -> Params:
    """``state`` with a count of steps for each task, ``[task]``."""
    some = next(iter(params.values()))
    return {**state, _COUNT: torch.zeros(len(some), dtype=some.dtype, device=some.device)}


def _beside(count: Tensor, value: Tensor) -> Tensor:
    """``count`` ``[task]`` in a shape that broadcasts with ``value`` ``[task, ...]``."""
    return count.view(-1, *(1,) * (value.dim() - 1))


def _root(x: Tensor) -> Tensor:
    """The square root, whose derivative at zero is zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), torch.zeros_like(x))
