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

_PIECE = 128
"""Steps whose factors are computed at once in the derivative, so that they stay in the caches."""


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
        to_gates, weight, input_bias, bias = gru.parameters()
        inputs, state = inputs.to(weight.dtype), state.to(weight.dtype)
        if inputs.shape[1] == 1 or torch.compiler.is_compiling():
            return _by_torch(gru, inputs, state)
        given = nn.functional.linear(inputs.transpose(0, 1), to_gates, input_bias), state, weight, bias
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
        pushed: what the hidden state adds to the three, before the reset gate.
    """

    hidden: Tensor
    gates: Tensor
    pushed: Tensor


def _scan(from_input: Tensor, state: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> _Passed:
    """Step by step (Cho et al., 2014, arXiv 1406.1078, in torch's form): ``h' = (1 - z) n + z h``.

    Args:
        from_input: what the inputs add to the gates, ``[time, sequence, 3 hidden]``.
        state: ``[sequence, hidden]``.
        weight: from the hidden state to the gates, ``[3 hidden, hidden]``.
        bias: of these, ``[3 hidden]``.
        keep: whether gates and pushes of all steps are left, or those of the last alone.
    """
    num_steps, num_sequences, _ = from_input.shape
    size = state.shape[1]
    hidden = from_input.new_empty(num_steps + 1, num_sequences, size)
    hidden[0] = state
    slots = num_steps if keep else 1
    gates, pushed = (from_input.new_empty(slots, num_sequences, 3 * size) for _ in range(2))
    to_gates = weight.t().contiguous()
    (input_rz, input_n), (rz, n), (push_rz, push_n) = map(_split, (from_input, gates, pushed))
    r, z = gates[..., :size].unbind(0), gates[..., size : 2 * size].unbind(0)
    push, states = pushed.unbind(0), hidden.unbind(0)
    for t in range(num_steps):
        slot = t if keep else 0
        torch.addmm(bias, states[t], to_gates, out=push[slot])
        torch.add(input_rz[t], push_rz[slot], out=rz[slot]).sigmoid_()
        torch.addcmul(input_n[t], r[slot], push_n[slot], out=n[slot]).tanh_()
        torch.lerp(n[slot], states[t], z[slot], out=states[t + 1])
    return _Passed(hidden, gates, pushed)


def _split(gates: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Reset and update gate of every step together, and the new one."""
    size = gates.shape[-1] // 3
    return gates[..., : 2 * size].unbind(0), gates[..., 2 * size :].unbind(0)


class _Scan(Function):
    """:func:`_scan` with its derivative."""

    @staticmethod
    def forward(ctx: Any, from_input: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Hidden states after each step, ``[time, sequence, hidden]``."""
        with torch.no_grad():
            passed = _scan(from_input, state, weight, bias, keep=True)
        ctx.save_for_backward(*passed, weight)
        return passed.hidden[1:]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slopes of the four arguments, from those of the hidden states.

        With ``s`` for the slope of a hidden state, those of what is pushed to the gates r, z and n are ``s`` times
        ``(1 - z)(1 - n^2) p r (1 - r)``, where ``p`` is what is pushed to n; ``(h - n) z (1 - z)``; and
        ``(1 - z)(1 - n^2) r``. What the input adds to n has the last without ``r``, and r and z have the same of both.
        """
        if torch.is_grad_enabled():  # Whoever sums it up with others would miss its part without a word.
            raise RuntimeError(
                "run_gru knows its first derivative alone, and create_graph=True asks for one to differentiate again: "
                "call the torch.nn.GRU itself."
            )
        hidden, gates, pushed, weight = ctx.saved_tensors
        num_steps, num_sequences, size = slope.shape
        to_gates = torch.empty_like(gates)
        to_weight, to_bias = torch.zeros_like(weight), weight.new_zeros(3 * size)
        carried = torch.zeros_like(hidden[0])
        kept = torch.empty_like(carried)
        length = min(_PIECE, num_steps)
        to_hidden = slope.new_empty(length, num_sequences, size)
        factors = slope.new_empty(length, num_sequences, 3, size)
        to_state, to_state_thrice = to_hidden.unbind(0), to_hidden.unsqueeze(2).unbind(0)
        factor = factors.unbind(0)
        for end in range(num_steps, 0, -length):
            begin = max(0, end - length)
            num = end - begin
            r, z, n = gates[begin:end].chunk(3, -1)
            new = (1.0 - z) * (1.0 - n * n)
            torch.mul(new, r, out=factors[:num, :, 2])
            torch.mul(factors[:num, :, 2] * (1.0 - r), pushed[begin:end, :, 2 * size :], out=factors[:num, :, 0])
            torch.mul(hidden[begin:end] - n, z * (1.0 - z), out=factors[:num, :, 1])
            piece = to_gates[begin:end]
            by_gate = piece.view(num, num_sequences, 3, size).unbind(0)
            flat, stays = piece.unbind(0), z.unbind(0)
            given = slope[begin:end].unbind(0)
            for t in range(num - 1, -1, -1):
                torch.add(carried, given[t], out=to_state[t])
                torch.mul(to_state_thrice[t], factor[t], out=by_gate[t])
                torch.mul(to_state[t], stays[t], out=kept)
                torch.addmm(kept, flat[t], weight, out=carried)
            rows = piece.flatten(0, 1)
            to_weight.addmm_(rows.t(), hidden[begin:end].flatten(0, 1))
            to_bias += rows.sum(0)
            # From here on they are the slopes of what the inputs add, which differ in the new gate alone.
            torch.mul(to_hidden[:num], new, out=piece[..., 2 * size :])
        return to_gates, carried, to_weight, to_bias
