"""Conjugate gradient against a direct solve, and a line search that refuses what it must."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarl.functional.trust_region import backtrack, conjugate_gradient, step_to_radius


def positive_definite(size: int, smallest: float) -> Tensor:
    basis = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(size)).double())[0]
    return basis @ torch.diag(torch.linspace(smallest, 3.0, size, dtype=torch.float64)) @ basis.mT


@pytest.mark.parametrize("size", [1, 2, 10, 30])
def test_conjugate_gradient_solves_in_as_many_iterations_as_unknowns(size: int) -> None:
    matrix = positive_definite(size, 0.5)
    b = torch.randn(size, generator=torch.Generator().manual_seed(1)).double()
    x, _ = conjugate_gradient(lambda v: matrix @ v, b, size)
    assert (x - torch.linalg.solve(matrix, b)).abs().max() < 1e-9


def test_too_few_iterations_leave_an_error_that_more_remove() -> None:
    matrix, b = positive_definite(30, 0.01), torch.ones(30, dtype=torch.float64)
    solution = torch.linalg.solve(matrix, b)
    errors = [(conjugate_gradient(lambda v: matrix @ v, b, n)[0] - solution).norm().item() for n in (3, 10, 60)]
    assert errors[0] > errors[1] > 1e-3 and errors[2] < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iterations_after_convergence_change_nothing(dtype: torch.dtype) -> None:
    matrix = positive_definite(4, 0.5).to(dtype)
    b = torch.ones(4, dtype=dtype)
    x, _ = conjugate_gradient(lambda v: matrix @ v, b, 200)
    assert torch.isfinite(x).all()
    assert torch.allclose(matrix @ x, b, atol=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("num_iterations", [0, 1, 4, 10])
def test_the_image_that_comes_with_the_solution_is_the_matrix_times_it(num_iterations: int) -> None:
    matrix = positive_definite(10, 0.5)
    b = torch.randn(10, generator=torch.Generator().manual_seed(1)).double()
    x, image = conjugate_gradient(lambda v: matrix @ v, b, num_iterations)
    assert (image - matrix @ x).abs().max() < 1e-12
    assert num_iterations in (0, 10) or (image - b).abs().max() > 1e-3


def test_zero_right_hand_side_and_singular_matrix_give_finite_answers() -> None:
    assert torch.equal(conjugate_gradient(lambda v: v, torch.zeros(3), 5)[0], torch.zeros(3))
    matrix = torch.diag(torch.tensor([2.0, 0.0]))
    assert conjugate_gradient(lambda v: matrix @ v, torch.tensor([4.0, 0.0]), 5)[0].tolist() == [2.0, 0.0]
    assert torch.isfinite(conjugate_gradient(lambda v: matrix @ v, torch.tensor([4.0, 1.0]), 5)[0]).all()


def test_step_has_the_radius_by_the_quadratic_model() -> None:
    matrix = positive_definite(5, 0.5)
    direction = torch.arange(1.0, 6.0, dtype=torch.float64)
    step = step_to_radius(direction, matrix @ direction, 0.02)
    assert (step @ matrix @ step / 2).item() == pytest.approx(0.02)
    assert torch.allclose(step / step[0], direction / direction[0])
    assert not step_to_radius(torch.zeros(2), torch.zeros(2), 0.02).any()


START, STEP = torch.tensor([1.0]), torch.tensor([0.8])


def search(
    evaluate: Callable[[float], tuple[float, float]], loss_before: float = 1.0
) -> tuple[float, float, float, int]:
    """Backtrack from 1 by 0.8, 0.4, 0.2, 0.1; returns the accepted parameter first."""
    accepted, loss, kl, trials = backtrack(lambda x: evaluate(x.item()), START, STEP, 1.0, 0.3, 0.5, 4)
    return accepted.item(), loss, kl, trials


def test_longest_step_that_lowers_the_loss_inside_the_region_is_taken() -> None:
    assert search(lambda x: (x, 0.1)) == pytest.approx((0.2, 0.2, 0.1, 1))
    assert search(lambda x: (x, 1.0 - x)) == pytest.approx((0.8, 0.8, 0.2, 3))
    assert search(lambda x: (2.0 - x if x < 0.7 else x, 0.1)) == pytest.approx((0.8, 0.8, 0.1, 3))


def test_kl_at_the_radius_is_accepted_and_above_it_refused() -> None:
    assert search(lambda x: (x, 0.3))[3] == 1
    assert search(lambda x: (x, math.nextafter(0.3, 1.0))) == (1.0, 1.0, 0.0, 4)


@pytest.mark.parametrize(
    "outcome",
    [(math.nan, 0.1), (0.5, math.nan), (math.nan, math.nan), (1.0, 0.1), (1.5, 0.1), (math.inf, 0.1), (0.5, math.inf)],
)
def test_nan_equal_loss_or_violated_kl_keep_the_old_parameters(outcome: tuple[float, float]) -> None:
    assert search(lambda x: outcome) == (1.0, 1.0, 0.0, 4)


def test_nan_at_long_steps_does_not_keep_a_shorter_one_from_being_taken() -> None:
    assert search(lambda x: (math.nan, math.nan) if x < 0.5 else (x, 0.1)) == pytest.approx((0.6, 0.6, 0.1, 2))
