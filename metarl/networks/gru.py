"""A GRU's pass over whole sequences on the CPU, with the derivative that training wants and no more.

``torch.nn.GRU`` adds the gradient of its weights up step by step, and moves them through the caches each time: with few
sequences of thousands of steps that takes longer than the products themselves. Here every step costs one product and a
few operations on vectors in either direction, and the gradient of the weights is one product for many steps. On a GPU
and for single steps torch's own is as good.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

_ROWS = 320
"""Steps times sequences that are handled at once where they need not go one by one, so that the caches hold them."""

_FEW = 32
"""Sequences above which torch's own is as fast: its steps are then large, and few."""


def run_gru(gru: nn.GRU, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What ``gru`` makes of sequences, as itself would up to rounding; on the CPU never in reduced precision.

    Args:
        gru: of one layer, one direction and with biases, batch first.
        inputs: ``[sequence, time, input]``.
        state: ``[sequence, hidden]`` before the first step.

    Returns:
        Hidden states ``[sequence, time, hidden]``, and the last of them ``[sequence, hidden]``. On the CPU they can be
        differentiated once; with ``create_graph=True`` a RuntimeError says so.
    """
    if inputs.device.type != "cpu":
        return _by_torch(gru, inputs, state)
    # In bfloat16 the state would be rounded at every step, and the steps take no less time.
    with torch.autocast("cpu", enabled=False):
        weights = tuple(gru.parameters())
        inputs, state = inputs.to(weights[0].dtype), state.to(weights[0].dtype)
        if inputs.shape[1] == 1 or len(inputs) > _FEW or torch.compiler.is_compiling():
            return _by_torch(gru, inputs, state)
        given = (inputs.transpose(0, 1), state, *weights)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
            hidden: Tensor = _Scan.apply(*given)  # type: ignore[no-untyped-call]
        else:
            hidden = _scan(*given, keep=False).hidden[1:]
        return hidden.transpose(0, 1), hidden[-1]


def _by_torch(gru: nn.GRU, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    hidden, last = gru(inputs, state.unsqueeze(0).contiguous())
    return hidden, last.squeeze(0)


class _Passed(NamedTuple):
    """What a pass leaves, ``[time, sequence, ...]``.

    Attributes:
        hidden: states, the first one before the first step.
        gates: reset, update and new gate, side by side.
        pushed: what the hidden state adds to the new gate, before the reset gate.
    """

    hidden: Tensor
    gates: Tensor
    pushed: Tensor


def _pieces(num_steps: int, num_sequences: int) -> list[tuple[int, int]]:
    """First and last step of the pieces that are handled at once."""
    length = max(1, _ROWS // num_sequences)
    return [(begin, min(begin + length, num_steps)) for begin in range(0, num_steps, length)]


def _scan(
    inputs: Tensor,
    state: Tensor,
    from_input: Tensor,
    weight: Tensor,
    input_bias: Tensor,
    bias: Tensor,
    *,
    keep: bool,
) -> _Passed:
    """Step by step (Cho et al., 2014, arXiv 1406.1078, in torch's form): ``h' = (1 - z) n + z h``.

    Args:
        inputs: ``[time, sequence, input]``.
        state: ``[sequence, hidden]``.
        from_input: from the inputs to the gates, ``[3 hidden, input]``.
        weight: from the hidden state to the gates, ``[3 hidden, hidden]``.
        input_bias: of the former, ``[3 hidden]``.
        bias: of the latter.
        keep: whether gates and pushes of all steps are left, or those of the last piece alone.
    """
    num_steps, num_sequences, _ = inputs.shape
    size = state.shape[1]
    pieces = _pieces(num_steps, num_sequences)
    slots = num_steps if keep else pieces[0][1]
    hidden = state.new_empty(num_steps + 1, num_sequences, size)
    gates, pushed = (state.new_empty(slots, num_sequences, width) for width in (3 * size, size))
    hidden[0] = last = state
    to_gates = weight.t().contiguous()
    push = state.new_empty(num_sequences, 3 * size)
    push_rz, push_n = push[:, : 2 * size], push[:, 2 * size :]
    for begin, end in pieces:
        here = slice(begin, end) if keep else slice(0, end - begin)
        torch.add(inputs[begin:end] @ from_input.t(), input_bias, out=gates[here])
        steps = (gates[here, :, : 2 * size], *gates[here].chunk(3, -1), pushed[here], hidden[begin + 1 : end + 1])
        for rz, r, z, n, p, following in zip(*(each.unbind(0) for each in steps), strict=True):
            torch.addmm(bias, last, to_gates, out=push)
            rz.add_(push_rz).sigmoid_()
            p.copy_(push_n)
            n.addcmul_(r, p).tanh_()
            last = torch.lerp(n, last, z, out=following)
    return _Passed(hidden, gates, pushed)


class _Scan(Function):
    """:func:`_scan` with its derivative."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, state: Tensor, from_input: Tensor, weight: Tensor, input_bias: Tensor, bias: Tensor
    ) -> Tensor:
        """Hidden states after each step, ``[time, sequence, hidden]``."""
        with torch.no_grad():
            passed = _scan(inputs, state, from_input, weight, input_bias, bias, keep=True)
        ctx.save_for_backward(*passed, inputs, from_input, weight)
        return passed.hidden[1:]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Slopes of the arguments, from those of the hidden states.

        With ``s`` for the slope of a hidden state, those of what is pushed to the gates r, z and n are ``s`` times
        ``(1 - z)(1 - n^2) p r (1 - r)``, where ``p`` is what is pushed to n; ``(h - n) z (1 - z)``; and
        ``(1 - z)(1 - n^2) r``. What the input adds to n has the last without ``r``, and r and z have the same of both.
        """
        if torch.is_grad_enabled():  # Whoever sums it up with others would miss its part without a word.
            raise RuntimeError(
                "run_gru knows its first derivative alone, and create_graph=True asks for one to differentiate again: "
                "call the torch.nn.GRU itself."
            )
        hidden, gates, pushed, inputs, from_input, weight = ctx.saved_tensors
        num_steps, num_sequences, size = slope.shape
        to_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
        to_from_input, to_weight = torch.zeros_like(from_input), torch.zeros_like(weight)
        to_input_bias, to_bias = weight.new_zeros(3 * size), weight.new_zeros(3 * size)
        carried, kept = torch.zeros_like(hidden[0]), torch.empty_like(hidden[0])
        pieces = _pieces(num_steps, num_sequences)
        longest = pieces[0][1]
        to_hidden = slope.new_empty(longest, num_sequences, 1, size)
        factors, to_gates = slope.new_empty(2, longest, num_sequences, 3, size)
        for begin, end in reversed(pieces):
            num = end - begin
            r, z, n = gates[begin:end].chunk(3, -1)
            new = (1.0 - z) * (1.0 - n * n)
            torch.mul(new, r, out=factors[:num, :, 2])
            torch.mul(factors[:num, :, 2] * (1.0 - r), pushed[begin:end], out=factors[:num, :, 0])
            torch.mul(hidden[begin:end] - n, z * (1.0 - z), out=factors[:num, :, 1])
            rows = to_gates[:num].view(num * num_sequences, 3 * size)
            steps = (slope[begin:end], to_hidden[:num, :, 0], to_hidden[:num], factors[:num], to_gates[:num])
            flat = rows.view(num, num_sequences, 3 * size)
            for given, one, broad, factor, each, row, stays in zip(
                *(each.unbind(0)[::-1] for each in (*steps, flat, z)), strict=True
            ):
                torch.add(carried, given, out=one)
                torch.mul(broad, factor, out=each)
                torch.mul(one, stays, out=kept)
                torch.addmm(kept, row, weight, out=carried)
            to_weight.addmm_(rows.t(), hidden[begin:end].flatten(0, 1))
            to_bias += rows.sum(0)
            # From here on they are the slopes of what the inputs add, which differ in the new gate alone.
            torch.mul(to_hidden[:num, :, 0], new, out=to_gates[:num, :, 2])
            to_from_input.addmm_(rows.t(), inputs[begin:end].flatten(0, 1))
            to_input_bias += rows.sum(0)
            if to_inputs is not None:
                to_inputs[begin:end] = (rows @ from_input).view(num, num_sequences, -1)
        return to_inputs, carried, to_from_input, to_weight, to_input_bias, to_bias
