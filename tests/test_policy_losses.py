"""Policy losses, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from metarl.functional.policy_losses import clipped_ratio_loss, likelihood_ratio_loss, log_likelihood_loss

VALID = torch.tensor([[True, True, False], [True, False, False]])
BEHAVIOUR = torch.tensor([[-1.0, -2.0, 9.0], [-0.5, 9.0, 9.0]])
ADVANTAGE = torch.tensor([[1.0, -3.0, 100.0], [2.0, 100.0, 100.0]])


def log_prob(*ratios: float) -> torch.Tensor:
    """Of the first and second step of the first row, and the first of the second; padding is arbitrary."""
    table = torch.tensor([[ratios[0], ratios[1], 3.0], [ratios[2], 3.0, 3.0]])
    return BEHAVIOUR + table.log()


def test_likelihood_ratio_loss_by_hand() -> None:
    """-(2 * 1 + 0.5 * -3) / 2 = -0.25, and -(1.5 * 2) = -3."""
    loss = likelihood_ratio_loss(log_prob(2.0, 0.5, 1.5), BEHAVIOUR, ADVANTAGE, VALID)
    assert loss.tolist() == pytest.approx([-0.25, -3.0])


def test_log_likelihood_loss_by_hand() -> None:
    """-(-1 * 1 + -2 * -3) / 2 = -2.5, and -(-0.5 * 2) = 1."""
    assert log_likelihood_loss(BEHAVIOUR, ADVANTAGE, VALID).tolist() == pytest.approx([-2.5, 1.0])


def test_clipped_loss_by_hand() -> None:
    """Row 1: min(2, 1.2) * 1 and min(0.5 * -3, 0.8 * -3) = -2.4; row 2: min(1.5, 1.2) * 2."""
    loss = clipped_ratio_loss(log_prob(2.0, 0.5, 1.5), BEHAVIOUR, ADVANTAGE, VALID, 0.2)
    assert loss.tolist() == pytest.approx([-(1.2 - 2.4) / 2, -2.4])


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.0, 1.0, -1.0), (1.5, 1.0, 0.0), (0.5, 1.0, -0.5), (1.5, -1.0, 1.5), (0.5, -1.0, 0.0), (1.19, 2.0, -2.38)],
)
def test_clipping_stops_the_gradient_only_where_the_ratio_has_gone_far_enough(
    ratio: float, advantage: float, slope: float
) -> None:
    """The derivative by log-probability is -ratio * advantage, or 0 behind the clip."""
    log_p = torch.tensor([[math.log(ratio)]], requires_grad=True)
    ones = torch.ones(1, 1)
    clipped_ratio_loss(log_p, torch.zeros(1, 1), advantage * ones, ones.bool(), 0.2).sum().backward()
    assert log_p.grad is not None and log_p.grad.item() == pytest.approx(slope)


def test_gradient_at_the_behaviour_policy_is_reinforce_and_the_second_derivative_keeps_the_squared_score() -> None:
    """d/dx = d2/dx2 = -mean(A) for log_prob = x; of the log-likelihood's loss, the second derivative is 0."""
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    behaviour = torch.zeros(1, 2, dtype=torch.float64)
    advantage = torch.tensor([[3.0, 5.0]], dtype=torch.float64)
    loss = likelihood_ratio_loss(behaviour + x, behaviour, advantage, torch.ones(1, 2, dtype=torch.bool)).sum()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    assert slope.item() == pytest.approx(-4.0) and curvature.item() == pytest.approx(-4.0)
    plain = log_likelihood_loss(behaviour + x, advantage, torch.ones(1, 2, dtype=torch.bool)).sum()
    (slope,) = torch.autograd.grad(plain, x, create_graph=True)
    assert slope.item() == pytest.approx(-4.0) and not slope.requires_grad


@pytest.mark.parametrize("clipped", [True, False])
def test_padding_changes_neither_loss_nor_gradient(clipped: bool) -> None:
    results = []
    for rubbish in (0.0, 5.0):
        log_p = torch.where(VALID, log_prob(1.1, 0.9, 1.0), torch.tensor(rubbish)).requires_grad_()
        parts = (log_p, BEHAVIOUR, ADVANTAGE + rubbish * ~VALID, VALID)
        loss = clipped_ratio_loss(*parts, 0.2) if clipped else likelihood_ratio_loss(*parts)
        results.append((loss, torch.autograd.grad(loss.sum(), log_p)[0]))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    assert not results[0][1][~VALID].any()


@pytest.mark.parametrize("padding", [math.inf, -math.inf, math.nan, 1e4])
def test_padding_reaches_neither_losses_nor_gradients(padding: float) -> None:
    """Not even as zero times the infinite ratio that it would have."""
    for loss in (
        likelihood_ratio_loss,
        lambda *args: clipped_ratio_loss(*args, clip_range=0.2),
        lambda log_p, _, *args: log_likelihood_loss(log_p, *args),
    ):
        found = []
        for filler in (padding, 0.0):
            log_p = torch.where(VALID, log_prob(1.1, 0.5, 0.9), filler).requires_grad_()
            advantage = torch.where(VALID, ADVANTAGE, filler)
            value = loss(log_p, BEHAVIOUR, advantage, VALID)
            found.append((value, torch.autograd.grad(value.sum(), log_p)[0]))
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
        assert torch.isfinite(found[0][1]).all()
