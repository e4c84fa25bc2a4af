"""Differentiable optimisers are those of torch.optim, task by task; transforms are what their papers say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarl.adaptation import (
    SGD,
    Adam,
    KroneckerFactored,
    LearnedRates,
    MapGradients,
    MetaCurvature,
    RMSprop,
    UpdateRule,
    call,
    inner_loop,
    meta_gradient,
    stack_module,
)
from metarl.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")

NUM_TASKS, NUM_STEPS = 3, 5

Params = dict[str, Tensor]


def _net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def _data(seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(NUM_TASKS, 6, 2), torch.randn(NUM_TASKS, 6, 1)


def _error(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[Params], Tensor]:
    def error(params: Params) -> Tensor:
        out: Tensor = call(net, params, x)
        return (out - y).square().mean((1, 2))

    return error


RULES: list[tuple[Callable[[], UpdateRule], Callable[[Any], torch.optim.Optimizer]]] = [
    (lambda: SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    (lambda: SGD(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    (
        lambda: SGD(0.1, momentum=0.9, dampening=0.3, weight_decay=0.02),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.3, weight_decay=0.02),
    ),
    (
        lambda: SGD(0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    ),
    (lambda: Adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    (
        lambda: Adam(0.05, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.05, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.1),
    ),
    (lambda: RMSprop(0.02), lambda p: torch.optim.RMSprop(p, 0.02)),
    (
        lambda: RMSprop(0.02, alpha=0.8, eps=1e-4, weight_decay=0.1, momentum=0.5, centered=True),
        lambda p: torch.optim.RMSprop(p, 0.02, alpha=0.8, eps=1e-4, weight_decay=0.1, momentum=0.5, centered=True),
    ),
]


@pytest.mark.parametrize(("make_rule", "make_optimizer"), RULES)
@pytest.mark.parametrize("differentiable", [True, False])
def test_a_rule_steps_as_torchs_optimiser_does_on_each_task(
    make_rule: Callable[[], UpdateRule],
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    differentiable: bool,
) -> None:
    net, (x, y) = _net(), _data()
    losses = [_error(net, x, y)] * NUM_STEPS
    loop = inner_loop(
        stack_module(net, NUM_TASKS), losses, make_rule(), second_order=differentiable, differentiable=differentiable
    )
    for task in range(NUM_TASKS):
        alone = _net()
        optimizer = make_optimizer(alone.parameters())
        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            (alone(x[task]) - y[task]).square().mean().backward()
            optimizer.step()
        for name, value in alone.named_parameters():
            assert torch.allclose(loop.adapted[name][task], value, rtol=1e-11, atol=1e-12)


def test_steps_go_on_from_the_state_of_the_last_ones() -> None:
    net, (x, y) = _net(), _data()
    error, rule = _error(net, x, y), Adam(0.05)
    whole = inner_loop(stack_module(net, NUM_TASKS), [error] * 4, rule, second_order=False)
    half = inner_loop(stack_module(net, NUM_TASKS), [error] * 2, rule, second_order=False)
    rest = inner_loop(half.adapted, [error] * 2, rule, second_order=False, state=half.state)
    assert all(torch.equal(rest.adapted[name], value) for name, value in whole.adapted.items())


TRANSFORMS: list[Callable[[Params], UpdateRule]] = [
    lambda params: LearnedRates(params, 0.1, "model"),
    lambda params: LearnedRates(params, 0.1, "layer"),
    lambda params: LearnedRates(params, 0.1, "parameter"),
    lambda params: MetaCurvature(params, 0.1),
    lambda params: KroneckerFactored(params, 0.1),
    lambda params: MapGradients(SGD(0.1), lambda grads: {name: 1.0 * value for name, value in grads.items()}),
]


@pytest.mark.parametrize("make_rule", TRANSFORMS)
def test_a_new_transform_is_gradient_descent(make_rule: Callable[[Params], UpdateRule]) -> None:
    net, (x, y) = _net(), _data()
    losses = [_error(net, x, y)] * 2
    found = inner_loop(stack_module(net, 3), losses, make_rule(dict(net.named_parameters())), second_order=False)
    expected = inner_loop(stack_module(net, 3), losses, 0.1, second_order=False)
    assert all(torch.allclose(found.adapted[name], value) for name, value in expected.adapted.items())


@pytest.mark.parametrize(
    "make_rule",
    [*TRANSFORMS, *((lambda params, make=make: make()) for make, _ in RULES)],
)
def test_the_meta_gradient_is_that_of_finite_differences(make_rule: Callable[[Params], UpdateRule]) -> None:
    """Of the loss after three steps, for every number of the initial parameters and of the rule."""
    net, (x, y) = _net(), _data()
    x_new, y_new = _data(2)
    rule = make_rule(dict(net.named_parameters()))
    for parameter in rule.parameters():
        # Away from the identity, where terms vanish.
        parameter.data += 0.1 * torch.randn_like(parameter)

    def after() -> Tensor:
        losses = [_error(net, x, y)] * 3
        loop = inner_loop(stack_module(net, NUM_TASKS), losses, rule, second_order=True)
        return meta_gradient(net, loop, _error(net, x_new, y_new), rule=rule)

    after()
    parameters = [*net.parameters(), *rule.parameters()]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in itertools.islice(itertools.product(*(range(size) for size in parameter.shape)), 6):
            values = []
            for sign in (1, -1):
                parameter.data[index] += sign * 1e-5
                values.append(float(after()))
                parameter.data[index] -= sign * 1e-5
            assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_meta_curvature_multiplies_every_axis() -> None:
    grads = {"w": torch.randn(NUM_TASKS, 3, 2, 2, 2), "b": torch.randn(NUM_TASKS, 3)}
    rule = MetaCurvature({name: value[0] for name, value in grads.items()}, 0.5)
    for parameter in rule.parameters():
        nn.init.normal_(parameter)
    outputs, inputs, positions = (rule.matrices[f"w/{axis}"] for axis in range(3))
    zeros = {name: torch.zeros_like(value) for name, value in grads.items()}
    moved, _ = rule.step({}, zeros, grads, torch.zeros(NUM_TASKS))
    folded = grads["w"].flatten(3)
    expected = torch.einsum("toip,ao,bi,cp->tabc", folded, outputs, inputs, positions).view_as(grads["w"])
    assert torch.allclose(moved["w"], -0.5 * expected)
    assert torch.allclose(moved["b"], -0.5 * grads["b"] @ rule.matrices["b/0"].T)


def test_a_parameter_without_gradient_leaves_derivatives_finite() -> None:
    """The root of Adam's second moment has no derivative at zero, where it would turn all into NaN."""
    net, (x, y) = _net(), _data()
    nn.init.zeros_(net[2].weight)  # No gradient reaches the first layer at the first step.
    for rule in (Adam(0.05), RMSprop(0.05)):
        loop = inner_loop(stack_module(net, NUM_TASKS), [_error(net, x, y)] * 2, rule, second_order=True)
        meta_gradient(net, loop, _error(net, x, y))
        assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters() if parameter.grad is not None)


def test_groups_have_rates_of_their_own() -> None:
    net, (x, y) = _net(), _data()
    loop = inner_loop(stack_module(net, 3), [_error(net, x, y)], SGD({"0": 0.0, "2": 0.1}), second_order=False)
    expected = inner_loop(stack_module(net, 3), [_error(net, x, y)], 0.1, second_order=False)
    for name, value in stack_module(net, 3).items():
        assert torch.allclose(loop.adapted[name], value if name.startswith("0") else expected.adapted[name])


def test_layers_share_a_learned_rate() -> None:
    assert len(list(LearnedRates(dict(_net().named_parameters()), 0.1, "layer").parameters())) == 2
    assert len(list(LearnedRates(dict(_net().named_parameters()), 0.1, "parameter").parameters())) == 4


def test_clipped_gradients_move_parameters_by_what_is_left() -> None:
    net, (x, y) = _net(), _data()
    rule = MapGradients(SGD(1.0), lambda grads: {name: value.clamp(-1e-3, 1e-3) for name, value in grads.items()})
    start = stack_module(net, 3)
    loop = inner_loop(start, [_error(net, x, y)], rule, second_order=True)
    assert max(float((loop.adapted[name] - value).abs().max()) for name, value in start.items()) <= 1e-3 + 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-0.1), "finite and 0 or more, got -0.1"),
        (lambda: SGD(float("nan")), "finite and 0 or more, got nan"),
        (lambda: SGD({"0": 0.1}), "'2.weight' lies in no group of 0"),
        (lambda: SGD({"": 0.1, "0": 0.1, "2": 0.1}), "no parameter's name begins with ''"),
        (lambda: SGD({"0": 0.1, "0.weight": 0.1, "2": 0.1}), "'0.weight' lies in the groups 0, 0.weight"),
        (lambda: SGD({"0": 0.1, "2": 0.1, "body": 0.1}), "no parameter's name begins with 'body'"),
        (lambda: SGD(0.1, nesterov=True), "nesterov needs momentum above 0"),
        (lambda: SGD(0.1, momentum=-1.0), "momentum must be finite and 0 or more"),
        (lambda: Adam(0.1, betas=(0.9, 1.0)), r"betas must lie in \[0, 1\)"),
        (lambda: RMSprop(0.1, eps=float("inf")), "eps must be finite"),
        (lambda: LearnedRates(dict(_net().named_parameters()), 0.1, "tensor"), "per must be model, layer or parameter"),  # type: ignore[arg-type]
        (lambda: MapGradients(SGD(0.1), lambda grads: {}), "must return gradients of the shapes"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Callable[[], UpdateRule], message: str) -> None:
    net, (x, y) = _net(), _data()
    with pytest.raises(ConfigError, match=message):
        inner_loop(stack_module(net, NUM_TASKS), [_error(net, x, y)], make(), second_order=False)
