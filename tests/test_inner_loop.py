"""The inner loop's derivatives, against the dense Jacobian of plain gradient descent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarl.adaptation import Params, inner_loop

NUM_TASKS, INNER_LR = 3, 0.3
SHAPES = {"w": (2, 2), "b": (2,), "unused": (1,)}
SIZE = 7


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stacked(seed: int) -> Params:
    return {name: randn(NUM_TASKS, *shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


def losses(num_steps: int) -> list[Callable[[Params], Tensor]]:
    """Each step and each task has data of its own; nothing is quadratic, so every Hessian depends on where it is."""

    def loss(step: int) -> Callable[[Params], Tensor]:
        x, y = randn(NUM_TASKS, 4, 2, seed=100 + step), randn(NUM_TASKS, 4, 2, seed=200 + step)
        return lambda params: ((x @ params["w"] + params["b"][:, None]).tanh() - y).pow(4).sum((1, 2)) / 4

    return [loss(step) for step in range(num_steps)]


def flat(params: Params, task: int) -> Tensor:
    return torch.cat([value[task].flatten() for value in params.values()])


def descend(start: Tensor, task: int, num_steps: int) -> Tensor:
    """Plain gradient descent of one task on flat parameters; differentiable."""
    for step in range(num_steps):
        x, y = randn(NUM_TASKS, 4, 2, seed=100 + step)[task], randn(NUM_TASKS, 4, 2, seed=200 + step)[task]
        w, b = start[:4].view(2, 2), start[4:6]
        loss = ((x @ w + b).tanh() - y).pow(4).sum() / 4
        (slope,) = torch.autograd.grad(loss, start, create_graph=True)
        start = start - INNER_LR * slope
    return start


def jacobian(params: Params, task: int, num_steps: int) -> Tensor:
    result = torch.autograd.functional.jacobian(lambda x: descend(x, task, num_steps), flat(params, task))
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_jvp_and_vjp_are_the_dense_jacobian_and_its_transpose(num_steps: int) -> None:
    """Of every task by itself; several steps' Hessians do not commute, so the order shows."""
    params, tangent, cotangent = stacked(0), stacked(10), stacked(20)
    loop = inner_loop(params, losses(num_steps), INNER_LR, second_order=True)
    pushed, pulled = loop.jvp(tangent), loop.vjp(cotangent)[0]
    for task in range(NUM_TASKS):
        dense = jacobian(params, task, num_steps)
        start = flat(params, task).requires_grad_()
        assert (flat(loop.adapted, task) - descend(start, task, num_steps)).abs().max() < 1e-12
        assert (flat(pushed, task) - dense @ flat(tangent, task)).abs().max() < 1e-10
        assert (flat(pulled, task) - dense.mT @ flat(cotangent, task)).abs().max() < 1e-10
        if num_steps >= 2:
            assert (dense - dense.mT).abs().max() > 1e-3
            assert (flat(pushed, task) - flat(tangent, task)).abs().max() > 1e-3
    assert all(not value.requires_grad for result in (loop.adapted, pushed, pulled) for value in result.values())


def test_vjp_is_the_transpose_of_jvp() -> None:
    loop = inner_loop(stacked(0), losses(3), INNER_LR, second_order=True)
    tangent, cotangent = stacked(10), stacked(20)
    pushed, pulled = loop.jvp(tangent), loop.vjp(cotangent)[0]
    for task in range(NUM_TASKS):
        left = flat(pushed, task) @ flat(cotangent, task)
        assert abs(left - flat(tangent, task) @ flat(pulled, task)) < 1e-10


def test_graphs_can_be_used_again_and_again() -> None:
    loop = inner_loop(stacked(0), losses(2), INNER_LR, second_order=True)
    first = loop.jvp(stacked(10))
    loop.vjp(stacked(20))[0]
    again = loop.jvp(stacked(10))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_zero_learning_rate_leaves_parameters_and_derivatives_alone() -> None:
    params, vector = stacked(0), stacked(10)
    loop = inner_loop(params, losses(2), 0.0, second_order=True)
    for result, expected in ((loop.adapted, params), (loop.jvp(vector), vector), (loop.vjp(vector)[0], vector)):
        assert all(torch.equal(value, expected[name]) for name, value in result.items())


def test_first_order_takes_the_same_steps_and_has_the_identity_as_derivative() -> None:
    vector = stacked(10)
    exact = inner_loop(stacked(0), losses(2), INNER_LR, second_order=True)
    first = inner_loop(stacked(0), losses(2), INNER_LR, second_order=False)
    assert all(torch.equal(value, exact.adapted[name]) for name, value in first.adapted.items())
    for moved in (first.jvp(vector), first.vjp(vector)[0]):
        assert all(torch.equal(moved[name], value) for name, value in vector.items())


def test_arguments_are_left_alone_even_inside_no_grad_and_as_shared_views() -> None:
    shared = {name: randn(*shape, seed=1).expand(NUM_TASKS, *shape) for name, shape in SHAPES.items()}
    copies = {name: value.clone() for name, value in shared.items()}
    with torch.no_grad():
        loop = inner_loop(shared, losses(2), INNER_LR, second_order=True)
    assert all(torch.equal(value, copies[name]) and not value.requires_grad for name, value in shared.items())
    assert (loop.adapted["w"][0] - loop.adapted["w"][1]).abs().max() > 1e-3


def test_loss_that_is_not_one_number_per_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[task\] = \(3,\), got \(\)"):
        inner_loop(stacked(0), [lambda params: params["w"].sum()], INNER_LR, second_order=False)
