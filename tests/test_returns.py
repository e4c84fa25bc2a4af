"""Returns, advantages and masked statistics, against literals and loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarl.functional.returns import discounted_sums, gae, masked_mean, normalise


def test_discounted_sums_of_a_short_sequence() -> None:
    """1 + 0.5 * (2 + 0.5 * 4) = 3."""
    assert discounted_sums(torch.tensor([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]


@pytest.mark.parametrize("num_steps", [1, 2, 255, 256, 257, 511, 512, 513, 1000])
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_discounted_sums_equal_a_loop_across_blocks(
    num_steps: int, discount: float, dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.randn(2, 3, num_steps, dtype=dtype, generator=torch.Generator().manual_seed(0))
    tail, expected = torch.zeros(2, 3, dtype=torch.float64), torch.empty(2, 3, num_steps, dtype=torch.float64)
    for t in reversed(range(num_steps)):
        tail = x[..., t].double() + discount * tail
        expected[..., t] = tail
    y = discounted_sums(x, discount)
    assert y.dtype == dtype
    # Relative to what was added up: sums of 1,000 normal numbers are not of order 1.
    assert (y - expected).abs().max() < tolerance * discounted_sums(x.double().abs(), discount).max()


def advantages(terminated: bool, length: int, last_value: float = 8.0, gae_lambda: float = 0.5) -> list[float]:
    """Rewards 1, 2, 3; values 4, 6, 2; discount 0.5; padding holds 100s that must not count."""
    steps = torch.arange(4)
    valid = steps < length
    rewards = torch.where(valid, torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor(0.0))
    values = torch.where(valid, torch.tensor([4.0, 6.0, 2.0, 0.0]), torch.tensor(100.0))
    ends = (steps == length - 1) & terminated
    return gae(rewards, values, torch.tensor(last_value), ends, valid, 0.5, gae_lambda).tolist()


def test_gae_of_a_truncated_episode_counts_the_value_behind_its_end() -> None:
    """Deltas 1 + 3 - 4 = 0, 2 + 1 - 6 = -3, 3 + 4 - 2 = 5, decayed by 0.25."""
    assert advantages(terminated=False, length=3) == [-0.4375, -1.75, 5.0, 0.0]


def test_gae_of_a_terminated_episode_does_not() -> None:
    """The last delta is 3 - 2 = 1."""
    assert advantages(terminated=True, length=3) == [-0.6875, -2.75, 1.0, 0.0]


@pytest.mark.parametrize(("terminated", "expected"), [(True, -3.0), (False, 1.0)])
def test_gae_of_a_single_step(terminated: bool, expected: float) -> None:
    assert advantages(terminated, length=1) == [expected, 0.0, 0.0, 0.0]


def test_gae_without_lambda_is_the_temporal_difference_and_with_one_the_return_minus_value() -> None:
    assert advantages(False, 3, gae_lambda=0.0) == [0.0, -3.0, 5.0, 0.0]
    assert advantages(False, 3, gae_lambda=1.0) == [1 + 1 + 0.75 + 1 - 4.0, 2 + 1.5 + 2 - 6.0, 3 + 4 - 2.0, 0.0]


def test_gae_of_an_episode_that_fills_the_time_axis_uses_the_last_value() -> None:
    ones = torch.ones(2, dtype=torch.bool)
    result = gae(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0]), torch.tensor(8.0), ~ones, ones, 0.5, 0.5)
    assert result.tolist() == [0.0, 0.0]
    result = gae(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0]), torch.tensor(9.0), ~ones, ones, 0.5, 0.5)
    assert result.tolist() == [0.125, 0.5]


@pytest.mark.parametrize("num_steps", [7, 600])
def test_gae_equals_a_loop_over_time_of_every_episode(num_steps: int) -> None:
    generator = torch.Generator().manual_seed(num_steps)
    shape = (3, 4, num_steps)
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    last_value = torch.randn(shape[:2], generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, num_steps + 1, shape[:2], generator=generator)
    lengths[0, 0] = num_steps
    valid = torch.arange(num_steps) < lengths[..., None]
    ends = torch.rand(shape[:2], generator=generator) < 0.5
    terminated = (torch.arange(num_steps) == lengths[..., None] - 1) & ends[..., None]
    result = gae(rewards * valid, values, last_value, terminated, valid, 0.97, 0.9)
    for task in range(3):
        for episode in range(4):
            following: Tensor | float = 0.0 if ends[task, episode] else last_value[task, episode]
            advantage: Tensor | float = 0.0
            for t in reversed(range(num_steps)):
                if t >= lengths[task, episode]:
                    assert result[task, episode, t] == 0
                    continue
                delta = rewards[task, episode, t] + 0.97 * following - values[task, episode, t]
                advantage = delta + 0.97 * 0.9 * advantage
                assert abs(result[task, episode, t] - advantage) < 1e-12
                following = values[task, episode, t]


def test_masked_mean_leaves_padding_out() -> None:
    x = torch.tensor([[1.0, 3.0, 50.0], [5.0, 70.0, 90.0]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, valid, (1,)).tolist() == [2.0, 5.0]
    assert masked_mean(x, valid, (0, 1)).item() == 3.0


def test_normalised_entries_have_mean_0_and_standard_deviation_1_for_every_task() -> None:
    x = torch.tensor([[1.0, 3.0, 50.0], [10.0, 10.0, 40.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    result = normalise(x, valid, (1,))
    assert result[0].tolist() == pytest.approx([-1.0, 1.0, 0.0])
    assert result[1].tolist() == pytest.approx([-(0.5**0.5), -(0.5**0.5), 2 * 0.5**0.5])
    assert normalise(x, valid, (0, 1))[valid].mean().abs() < 1e-12


def test_normalising_equal_numbers_gives_zeros() -> None:
    x = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert normalise(x, torch.ones(1, 3, dtype=torch.bool), (1,)).abs().max() < 1e-6


@pytest.mark.parametrize("padding", [torch.inf, -torch.inf, torch.nan])
def test_what_stands_on_padding_reaches_neither_values_nor_gradients(padding: float) -> None:
    valid = torch.tensor([[True, True, False], [True, False, False]])
    clean = torch.tensor([[1.0, 3.0, 0.0], [5.0, 0.0, 0.0]], dtype=torch.float64)
    x = torch.where(valid, clean, padding).requires_grad_()
    assert masked_mean(x, valid, (1,)).tolist() == [2.0, 5.0]
    (slope,) = torch.autograd.grad(masked_mean(x, valid, (1,)).sum(), x)
    assert slope.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    assert torch.equal(normalise(x, valid, (0, 1)), normalise(clean, valid, (0, 1)))
