"""Learned update rules: a small LSTM runs on every coordinate of the parameters, and all coordinates share its weights.

Both begin as gradient descent with step size ``inner_lr``, so that an untrained rule already adapts; training moves
them away from it. Their inputs are the coordinate's gradient (and loss), which may span many orders of magnitude and
are rescaled by :func:`log_and_sign`.

Learning to optimise ten-dimensional quadratics (Andrychowicz et al., 2016, section 3.1), outside reinforcement
learning, in full::

    rule = AndrychowiczLSTM(0.01)
    optimizer = torch.optim.Adam(rule.parameters(), lr=1e-2)
    for _ in range(100):
        w, y, start = torch.randn(32, 10, 10), torch.randn(32, 10, 1), torch.randn(32, 10, 1)

        def error(params):  # of each quadratic
            return (w @ params["x"] - y).square().sum((1, 2))

        loop = inner_loop({"x": start}, [error] * 20, rule, second_order=False)
        optimizer.zero_grad()
        loss = meta_gradient(None, loop, error, rule=rule, along_path=True)
        optimizer.step()
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metarl.adaptation.update_rules import UpdateRule, require_not_negative, require_parameters
from metarl.errors import ConfigError
from metarl.networks.params import Params

_HIDDEN_SIZE = 20
"""Units of every LSTM layer, as in both papers."""
_P = 10.0
"""Magnitudes below exp(-p) count as small (Andrychowicz et al., appendix A)."""
_FORGET_BIAS = 8.0
"""The forget gate of a new rule is 0.9997: parameters are kept (Ravi and Larochelle, section 3.2: begin close to 1)."""


def log_and_sign(x: Tensor) -> Tensor:
    """Magnitude and direction of numbers of any scale, as two features.

    ``(log|x| / p, sign x)`` where ``|x| >= exp(-p)``, else ``(-1, exp(p) x)``, with ``p = 10``
    (Andrychowicz et al., 2016, arXiv 1606.04474, appendix A).

    Args:
        x: ``[...]``.

    Returns:
        ``[..., 2]``.
    """
    smallest = math.exp(-_P)
    magnitude = x.abs().clamp(min=smallest).log() / _P
    direction = (x / smallest).clamp(-1.0, 1.0)
    return torch.stack([magnitude, direction], dim=-1)


class RaviLSTM(UpdateRule):
    """An LSTM whose cell state is the parameter vector.

    ``theta_t = f_t theta_{t-1} - i_t grad_t`` with a learned forget gate ``f_t = sigmoid(W_f [h_t, theta_{t-1},
    f_{t-1}] + b_f)`` and a learned rate ``i_t = sigmoid(W_i [h_t, theta_{t-1}, i_{t-1}] + b_i)`` for every coordinate
    (Ravi, Larochelle, 2017, "Optimization as a model for few-shot learning", ICLR, eq. 2 and 3). ``h_t`` comes from an
    ordinary LSTM layer that sees the rescaled gradient and loss (their section 5), or the signal that the inner loop
    shows in place of the loss. Both gates are 0 before the first step; at first ``W_f = W_i = 0``, ``f_t`` is 0.9997
    and ``i_t`` is ``inner_lr``.

    Args:
        inner_lr: initial step size, below 1.
        adapted: names of the parameters that move; default: all.

    Raises:
        ConfigError: for a step size that no gate can take.
    """

    def __init__(self, inner_lr: float, *, adapted: frozenset[str] | None = None) -> None:
        super().__init__()
        if not 0 < inner_lr < 1:
            raise ConfigError(f"ravi-lstm's inner_lr is a gate's initial value, in (0, 1), got {inner_lr!r}.")
        self.adapted = adapted
        self.layer = nn.LSTMCell(4, _HIDDEN_SIZE)
        self.forget = nn.Linear(_HIDDEN_SIZE + 2, 1)
        self.rate = nn.Linear(_HIDDEN_SIZE + 2, 1)
        for gate, bias in ((self.forget, _FORGET_BIAS), (self.rate, math.log(inner_lr / (1.0 - inner_lr)))):
            nn.init.zeros_(gate.weight)
            nn.init.constant_(gate.bias, bias)

    def init(self, params: Params) -> Params:
        """Hidden and cell state ``[task, coordinate, unit]`` of the first layer, and gates ``[task, coordinate]``."""
        require_parameters(self.adapted, params)
        theta = _join(params, self.adapted)
        hidden = torch.zeros(*theta.shape, _HIDDEN_SIZE, dtype=theta.dtype, device=theta.device)
        gate = torch.zeros_like(theta)
        return {"hidden": hidden, "cell": hidden, "forget": gate, "rate": gate}

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """See the class."""
        theta, grad = _join(params, self.adapted), _join(grads, self.adapted)
        inputs = torch.cat([log_and_sign(grad), log_and_sign(losses)[:, None].expand(*grad.shape, 2)], dim=-1)
        hidden, cell = _lstm(self.layer, inputs, state["hidden"], state["cell"])
        forget = self._gate(self.forget, hidden, theta, state["forget"])
        rate = self._gate(self.rate, hidden, theta, state["rate"])
        moved = _split(forget * theta - rate * grad, params, self.adapted)
        return moved, {"hidden": hidden, "cell": cell, "forget": forget, "rate": rate}

    @staticmethod
    def _gate(linear: nn.Linear, hidden: Tensor, theta: Tensor, previous: Tensor) -> Tensor:
        inputs = torch.cat([hidden, theta[..., None], previous[..., None]], dim=-1)
        gate: Tensor = linear(inputs).squeeze(-1).sigmoid()
        return gate


class AndrychowiczLSTM(UpdateRule):
    """A two-layer LSTM whose output is the update.

    ``theta_t = theta_{t-1} + g_t``, ``[g_t, h_t] = m(grad_t, h_{t-1}, phi)`` (Andrychowicz et al., 2016,
    arXiv 1606.04474, eq. 2 and section 2.1), here with ``g_t = output_scale * lstm(grad_t) - inner_lr * grad_t``: the
    second term, which the paper lacks, makes a new rule gradient descent, the output layer being zero at first.

    Args:
        inner_lr: step size of the gradient term.
        adapted: names of the parameters that move; default: all.
        output_scale: factor on the LSTM's output, whose natural size is 1.

    Raises:
        ConfigError: for a negative or non-finite step size.
    """

    def __init__(self, inner_lr: float, *, adapted: frozenset[str] | None = None, output_scale: float = 0.1) -> None:
        super().__init__()
        require_not_negative(inner_lr=inner_lr)
        self.inner_lr = inner_lr
        self.adapted = adapted
        self.output_scale = output_scale
        self.first = nn.LSTMCell(2, _HIDDEN_SIZE)
        self.second = nn.LSTMCell(_HIDDEN_SIZE, _HIDDEN_SIZE)
        self.output = nn.Linear(_HIDDEN_SIZE, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def init(self, params: Params) -> Params:
        """Hidden and cell states ``[task, coordinate, unit]`` of both layers."""
        require_parameters(self.adapted, params)
        theta = _join(params, self.adapted)
        zeros = torch.zeros(*theta.shape, _HIDDEN_SIZE, dtype=theta.dtype, device=theta.device)
        return {"hidden0": zeros, "cell0": zeros, "hidden1": zeros, "cell1": zeros}

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        """See the class; the losses are not used."""
        theta, grad = _join(params, self.adapted), _join(grads, self.adapted)
        hidden0, cell0 = _lstm(self.first, log_and_sign(grad), state["hidden0"], state["cell0"])
        hidden1, cell1 = _lstm(self.second, hidden0, state["hidden1"], state["cell1"])
        update = self.output_scale * self.output(hidden1).squeeze(-1) - self.inner_lr * grad
        following = {"hidden0": hidden0, "cell0": cell0, "hidden1": hidden1, "cell1": cell1}
        return _split(theta + update, params, self.adapted), following


def _join(params: Mapping[str, Tensor], adapted: frozenset[str] | None) -> Tensor:
    """The coordinates that move, ``[task, coordinate]``."""
    return torch.cat([value.flatten(1) for name, value in params.items() if adapted is None or name in adapted], dim=1)


def _split(flat: Tensor, params: Params, adapted: frozenset[str] | None) -> Params:
    """The inverse of :func:`_join`; other parameters stay as they are in ``params``."""
    names = [name for name in params if adapted is None or name in adapted]
    parts = torch.split(flat, [params[name][0].numel() for name in names], dim=1)
    moved = {name: part.view_as(params[name]) for name, part in zip(names, parts, strict=True)}
    return {**params, **moved}


def _lstm(layer: nn.LSTMCell, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the layer on every coordinate: new hidden and cell state ``[task, coordinate, unit]``."""
    following = layer(inputs.flatten(0, 1), (hidden.flatten(0, 1), cell.flatten(0, 1)))
    return following[0].view_as(hidden), following[1].view_as(cell)
