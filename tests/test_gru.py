"""The GRU's own loop on the CPU gives what torch's GRU gives, derivatives too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metarl.networks import gru as own
from metarl.networks.gru import run_gru

SIZE = 5


def _given(num_steps: int) -> tuple[nn.GRU, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    gru = nn.GRU(3, SIZE, batch_first=True)
    for parameter in gru.parameters():
        nn.init.normal_(parameter, std=0.7)
    inputs, state = torch.randn(4, num_steps, 3, requires_grad=True), torch.randn(4, SIZE, requires_grad=True)
    return gru, inputs, state, torch.randn(4, num_steps, SIZE)


def _torch(gru: nn.GRU, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    hidden, last = gru(inputs, state[None])
    return hidden, last[0]


@pytest.mark.parametrize("num_steps", [1, 2, 7, own._ROWS // 4, own._ROWS // 2 + 3])
def test_outputs_and_all_gradients_are_torchs(num_steps: int, float64: None) -> None:
    gru, inputs, state, slopes = _given(num_steps)
    found = []
    for run in (_torch, run_gru):
        hidden, last = run(gru, inputs, state)
        # The last state has a slope of its own, beside that of the last step.
        loss = (hidden * slopes).sum() + (last * torch.arange(SIZE)).sum()
        found.append((hidden, last, *torch.autograd.grad(loss, [inputs, state, *gru.parameters()])))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences(float64: None) -> None:
    gru, inputs, state, _ = _given(6)
    assert torch.autograd.gradcheck(own._Scan.apply, (inputs.transpose(0, 1), state, *gru.parameters()))


def test_without_derivatives_the_same_numbers_come_out(float64: None) -> None:
    gru, inputs, state, _ = _given(9)
    learning = run_gru(gru, inputs, state)
    with torch.no_grad():
        for ours, theirs in zip(run_gru(gru, inputs, state), learning, strict=True):
            assert torch.equal(ours, theirs)


def test_step_by_step_and_at_once_are_the_same(float64: None) -> None:
    gru, inputs, state, _ = _given(30)
    whole, last = run_gru(gru, inputs, state)
    parts, now = [], state
    for t in range(30):
        step, now = run_gru(gru, inputs[:, t : t + 1], now)
        parts.append(step)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(now, last, rtol=1e-12, atol=1e-12)


def test_reduced_precision_leaves_the_state_as_it_is() -> None:
    gru, inputs, state, _ = _given(40)
    exact = run_gru(gru, inputs, state)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run_gru(gru, inputs.to(torch.bfloat16), state)
        step = run_gru(gru, inputs[:, :1].to(torch.bfloat16), state)
    assert rounded[0].dtype == step[0].dtype == torch.float32
    torch.testing.assert_close(rounded[0], exact[0], rtol=0.0, atol=0.02)
    torch.testing.assert_close(step[1], rounded[0][:, 0])


def test_a_second_derivative_is_refused() -> None:
    gru, inputs, state, slopes = _given(4)
    loss = (run_gru(gru, inputs, state)[0] * slopes).sum()
    with pytest.raises(RuntimeError, match="knows its first derivative alone"):
        torch.autograd.grad(loss, [gru.weight_hh_l0], create_graph=True)
