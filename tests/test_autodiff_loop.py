"""The inner loop of any rule: its derivatives against the dense Jacobian of a plain loop over tasks."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_inner_loop import NUM_TASKS, flat, losses, randn, stacked
from torch import Tensor

from metarl.adaptation import (
    SGD,
    AndrychowiczLSTM,
    InnerLoop,
    KroneckerFactored,
    LearnedRates,
    LossFn,
    MetaCurvature,
    Params,
    RaviLSTM,
    StepSizes,
    UpdateRule,
    inner_loop,
    meta_gradient,
)
from metarl.adaptation.autodiff_loop import autodiff_loop
from metarl.errors import ConfigError

SIZE, RULE_SIZE = 7, 2


class Momentum(UpdateRule):
    """Heavy ball; decay and rate are learned, its start depends on a learned number, and it looks at the loss.

    One parameter is in no result, as happens with rules of several parts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decay = torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64))
        self.first = torch.nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
        self.idle = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def init(self, params: Params) -> Params:
        return {name: self.first * torch.ones_like(value) for name, value in params.items()}

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        velocity = {name: self.decay * state[name] + grads[name] for name in params}
        rate = (0.1 + 0.05 * losses.tanh())[:, None]
        moved = {name: p - (rate * velocity[name].flatten(1)).view_as(p) for name, p in params.items()}
        return {**moved, "unused": params["unused"]}, velocity


def plain(start: Tensor, numbers: Tensor, task: int, num_steps: int, first_order: bool) -> Tensor:
    """The same rule on one task's flat parameters; ``numbers`` are decay and first velocity."""
    decay, first = numbers
    velocity = first * torch.ones_like(start)
    for step in range(num_steps):
        x, y = randn(NUM_TASKS, 4, 2, seed=100 + step)[task], randn(NUM_TASKS, 4, 2, seed=200 + step)[task]
        w, b = start[:4].view(2, 2), start[4:6]
        loss = ((x @ w + b).tanh() - y).pow(4).sum() / 4
        (slope,) = torch.autograd.grad(loss, start, create_graph=True)
        if first_order:
            loss, slope = loss.detach(), slope.detach()
        velocity = decay * velocity + slope
        moved = start - (0.1 + 0.05 * loss.tanh()) * velocity
        start = torch.cat([moved[:6], start[6:]])
    return start


def jacobians(params: Params, task: int, num_steps: int, first_order: bool) -> tuple[Tensor, Tensor]:
    """Of the adapted parameters with respect to the initial ones and to the two numbers."""
    run: Callable[..., Tensor] = lambda start, numbers: plain(start, numbers, task, num_steps, first_order)  # noqa: E731
    of_start, of_numbers = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        run, (flat(params, task), torch.tensor([0.6, 0.2], dtype=torch.float64))
    )
    return of_start, of_numbers


def run(num_steps: int, second_order: bool = True) -> InnerLoop:
    return inner_loop(stacked(0), losses(num_steps), Momentum(), second_order=second_order)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_jvp_and_vjp_are_the_dense_jacobian_and_its_transpose(num_steps: int, first_order: bool) -> None:
    """With respect to initial and rule parameters, of every task; the rule's gradient is summed over tasks."""
    tangent, cotangent, of_rule = stacked(10), stacked(20), torch.tensor([0.7, -1.3], dtype=torch.float64)
    loop = run(num_steps, not first_order)
    pushed = loop.jvp(tangent, {"decay": of_rule[0], "first": of_rule[1], "idle": torch.ones(3, dtype=torch.float64)})
    pulled, pulled_rule = loop.vjp(cotangent)
    expected_rule = torch.zeros(2, dtype=torch.float64)
    for task in range(NUM_TASKS):
        of_start, of_numbers = jacobians(stacked(0), task, num_steps, first_order)
        assert (flat(pushed, task) - of_start @ flat(tangent, task) - of_numbers @ of_rule).abs().max() < 1e-10
        assert (flat(pulled, task) - of_start.mT @ flat(cotangent, task)).abs().max() < 1e-10
        expected_rule += of_numbers.mT @ flat(cotangent, task)
        exact = jacobians(stacked(0), task, num_steps, False)
        assert num_steps < 2 or not first_order or (exact[0] - of_start).abs().max() > 1e-3
    assert (torch.stack([pulled_rule["decay"], pulled_rule["first"]]) - expected_rule).abs().max() < 1e-10
    assert (pulled_rule["idle"] == 0).all()
    assert num_steps == 0 or expected_rule.abs().min() > 1e-2
    assert all(not value.requires_grad for part in (loop.adapted, pushed, pulled) for value in part.values())


def test_gradients_at_the_starts_of_steps_are_pulled_along() -> None:
    """``direct`` at step k goes through the steps before k alone."""
    cotangent, direct = stacked(20), [stacked(30), None, stacked(40)]
    loop = run(3)
    pulled, of_rule = loop.vjp(cotangent, direct)
    expected_rule = torch.zeros(2, dtype=torch.float64)
    for task in range(NUM_TASKS):
        expected = torch.zeros(SIZE, dtype=torch.float64)
        for num_steps, part in ((3, cotangent), (0, direct[0]), (2, direct[2])):
            assert part is not None
            of_start, of_numbers = jacobians(stacked(0), task, num_steps, False)
            expected += of_start.mT @ flat(part, task)
            expected_rule += of_numbers.mT @ flat(part, task)
        assert (flat(pulled, task) - expected).abs().max() < 1e-10
    assert (torch.stack([of_rule["decay"], of_rule["first"]]) - expected_rule).abs().max() < 1e-10
    assert [start["w"].equal(run(k).adapted["w"]) for k, start in enumerate(loop.starts)] == [True] * 3


def test_products_can_be_taken_again_and_again_in_any_order() -> None:
    loop = run(2)
    first, pulled = loop.jvp(stacked(10)), loop.vjp(stacked(20))[0]
    assert all(torch.equal(value, loop.jvp(stacked(10))[name]) for name, value in first.items())
    assert all(torch.equal(value, loop.vjp(stacked(20))[0][name]) for name, value in pulled.items())


def test_the_state_lets_a_loop_go_on_where_another_ended() -> None:
    """Three steps at once, and as two loops; without the state the third step is another one."""
    whole, steps = run(3), losses(3)
    part = inner_loop(stacked(0), steps[:2], Momentum(), second_order=False)
    rest = inner_loop(part.adapted, steps[2:], Momentum(), second_order=False, state=part.state)
    forgetful = inner_loop(part.adapted, steps[2:], Momentum(), second_order=False)
    assert (whole.adapted["w"] - rest.adapted["w"]).abs().max() < 1e-14
    assert (whole.adapted["w"] - forgetful.adapted["w"]).abs().max() > 1e-3


def test_other_weights_take_the_place_of_the_rules_own() -> None:
    rule, other = Momentum(), Momentum()
    with torch.no_grad():
        other.decay.fill_(-0.3)
        other.first.fill_(0.9)
    weights = {name: value.detach() for name, value in other.named_parameters()}
    lent = inner_loop(stacked(0), losses(2), rule, second_order=False, weights=weights).adapted
    own = inner_loop(stacked(0), losses(2), other, second_order=False).adapted
    assert all(torch.equal(value, own[name]) for name, value in lent.items())
    assert (lent["w"] - run(2).adapted["w"]).abs().max() > 1e-3
    assert float(rule.decay) == pytest.approx(0.6)


def test_a_factor_scales_every_move() -> None:
    start = stacked(0)
    whole, half = (
        inner_loop(start, losses(1), Momentum(), second_order=False, factor=factor).adapted for factor in (1.0, 0.5)
    )
    assert (half["w"] - start["w"] - 0.5 * (whole["w"] - start["w"])).abs().max() < 1e-15
    plain_whole, plain_half = (
        inner_loop(start, losses(1), 0.3, second_order=False, factor=factor).adapted for factor in (1.0, 0.5)
    )
    assert (plain_half["w"] - start["w"] - 0.5 * (plain_whole["w"] - start["w"])).abs().max() < 1e-15


def test_without_derivatives_the_steps_are_the_same_and_products_are_refused() -> None:
    loop = inner_loop(stacked(0), losses(2), Momentum(), second_order=True, differentiable=False)
    assert all(torch.equal(value, run(2).adapted[name]) for name, value in loop.adapted.items())
    for product in (loop.jvp, loop.vjp):
        with pytest.raises(RuntimeError, match="differentiable=False"):
            product(stacked(10))


def test_arguments_are_left_alone_even_inside_no_grad_and_as_shared_views() -> None:
    shared = {name: value[:1].expand(NUM_TASKS, *value.shape[1:]) for name, value in stacked(0).items()}
    copies = {name: value.clone() for name, value in shared.items()}
    rule = Momentum()
    with torch.no_grad():
        loop = inner_loop(shared, losses(2), rule, second_order=True)
        loop.jvp(stacked(10))
        loop.vjp(stacked(20))[0]
    assert all(torch.equal(value, copies[name]) and not value.requires_grad for name, value in shared.items())
    assert all(parameter.grad is None for parameter in rule.parameters())


@pytest.mark.parametrize("second_order", [True, False])
def test_the_structured_path_of_step_sizes_equals_the_general_one(second_order: bool) -> None:
    """Learned ones, so that both give gradients of the rule as well."""
    sizes = StepSizes({name: value[0] for name, value in stacked(0).items()}, 0.3, learned=True)
    with torch.no_grad():
        for rate in sizes.parameters():
            rate.mul_(0.5 + torch.rand(rate.shape, generator=torch.Generator().manual_seed(1)))
    fast = inner_loop(stacked(0), losses(3), sizes, second_order=second_order)
    general = autodiff_loop(stacked(0), losses(3), sizes, second_order=second_order)
    of_rates = {name: value[0] for name, value in stacked(50).items()}
    direct = [stacked(30), None, stacked(40)]
    pairs = [
        (fast.adapted, general.adapted),
        (fast.jvp(stacked(10), of_rates), general.jvp(stacked(10), of_rates)),
        *zip(fast.vjp(stacked(20), direct), general.vjp(stacked(20), direct), strict=True),
    ]
    for left, right in pairs:
        assert left.keys() == right.keys()
        assert all((value - right[name]).abs().max() < 1e-12 for name, value in left.items())


def test_the_rule_in_the_docstring_is_heavy_ball_momentum() -> None:
    """Its two steps, and the derivative of its learned decay: the second step is longer by decay times the first."""
    assert UpdateRule.__doc__ is not None
    space: dict[str, Any] = {"torch": torch, "UpdateRule": UpdateRule}
    exec(textwrap.dedent(UpdateRule.__doc__.split("in full::")[1]), space)
    start = {"x": torch.tensor([[1.0, -2.0], [3.0, 0.5]])}
    error: LossFn = lambda params: params["x"].square().sum(1) / 2  # noqa: E731
    loop = inner_loop(start, [error] * 2, space["Momentum"](0.1), second_order=False)
    assert torch.allclose(loop.adapted["x"], (0.9 * 0.9 - 0.1 * 0.5) * start["x"])
    _, of_rule = loop.vjp({"x": torch.ones(2, 2)})
    assert float(of_rule["decay"]) == pytest.approx(-0.1 * float(start["x"].sum()))


def test_loss_that_is_not_one_number_per_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[task\] = \(3,\), got \(\)"):
        inner_loop(stacked(0), [lambda params: params["w"].sum()], Momentum(), second_order=False)


def test_a_subclass_of_step_sizes_steps_as_it_says() -> None:
    """Its own step, not that of the class above it; in values and in derivatives."""

    class Half(StepSizes):
        def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
            return super().step(state, params, {name: 0.5 * value for name, value in grads.items()}, losses)

    shapes = {name: value[0] for name, value in stacked(0).items()}
    half = inner_loop(stacked(0), losses(2), Half(shapes, 0.3, learned=False), second_order=True)
    plain = inner_loop(stacked(0), losses(2), 0.15, second_order=True)
    pairs = [(half.adapted, plain.adapted), (half.vjp(stacked(20))[0], plain.vjp(stacked(20))[0])]
    for left, right in pairs:
        assert all((value - right[name]).abs().max() < 1e-12 for name, value in left.items())


@pytest.mark.parametrize("linear_in", [("w", "b"), ("w",), ("b",)])
@pytest.mark.parametrize("general", [False, True])
def test_a_loss_may_be_linear_in_parameters(linear_in: tuple[str, ...], general: bool) -> None:
    """Where second derivatives are absent they are zero: both products equal those of the dense Jacobian."""
    x = randn(NUM_TASKS, 2, 2, seed=7)

    def loss(params: Params) -> Tensor:
        parts = {"w": params["w"] * x, "b": params["b"] * x[:, 0]}
        return sum(
            (part if name in linear_in else part.pow(3)).flatten(1).sum(1) for name, part in parts.items()
        ) + torch.zeros(NUM_TASKS, dtype=x.dtype)

    def end(start: Tensor, task: int) -> Tensor:
        """Two steps of gradient descent by hand."""
        scale = torch.cat([x[task].flatten(), x[task, 0]])
        is_linear = torch.tensor([("w" if k < 4 else "b") in linear_in for k in range(6)])
        for _ in range(2):
            slope = torch.where(is_linear, scale, 3 * scale.pow(3) * start[:6].square())
            start = torch.cat([start[:6] - 0.1 * slope, start[6:]])
        return start

    rule = SGD(0.1) if general else 0.1
    loop = inner_loop(stacked(0), [loss] * 2, rule, second_order=True)
    pushed, pulled = loop.jvp(stacked(10)), loop.vjp(stacked(20))[0]
    for task in range(NUM_TASKS):
        start = flat(stacked(0), task)
        dense = torch.autograd.functional.jacobian(lambda value, task=task: end(value, task), start)  # type: ignore[no-untyped-call]
        assert (flat(loop.adapted, task) - end(start, task)).abs().max() < 1e-12
        assert (flat(pushed, task) - dense @ flat(stacked(10), task)).abs().max() < 1e-12
        assert (flat(pulled, task) - dense.mT @ flat(stacked(20), task)).abs().max() < 1e-12


def test_a_rule_is_shown_signals_in_place_of_losses() -> None:
    """The loss is differentiated, the signal is seen: another signal, another step, and not that of the loss itself."""
    own, shown = losses(2), [randn(NUM_TASKS, seed=60), randn(NUM_TASKS, seed=61)]
    loop = inner_loop(stacked(0), own, Momentum(), second_order=True, signals=shown)
    for task in range(NUM_TASKS):
        start, velocity = flat(stacked(0), task), 0.2 * torch.ones(SIZE, dtype=torch.float64)
        for step, signal in enumerate(shown):
            tasks = {name: value.clone() for name, value in stacked(0).items()}
            point = start.clone().requires_grad_()
            tasks["w"], tasks["b"] = point[:4].view(1, 2, 2).expand(3, 2, 2), point[4:6].expand(3, 2)
            (slope,) = torch.autograd.grad(own[step](tasks)[task], point)
            velocity = 0.6 * velocity + slope
            move = (0.1 + 0.05 * signal[task].tanh()) * velocity
            start = torch.cat([start[:6] - move[:6], start[6:]])
        assert (flat(loop.adapted, task) - start).abs().max() < 1e-12
    assert (loop.adapted["w"] - run(2).adapted["w"]).abs().max() > 1e-3
    same = inner_loop(stacked(0), own[:1], Momentum(), second_order=True, signals=[own[0](stacked(0))])
    assert torch.equal(same.adapted["w"], run(1).adapted["w"])
    with pytest.raises(ValueError, match=r"signals must have shape \(3,\), got \(2,\)"):
        inner_loop(stacked(0), own, Momentum(), second_order=True, signals=[shown[0][:2]] * 2)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: -0.1, "rule must be finite and 0 or more, got -0.1"),
        (lambda: float("nan"), "rule must be finite and 0 or more, got nan"),
        (
            lambda: torch.nn.Parameter(torch.tensor(0.1)),
            "loses the gradient of a step size: take LearnedRates, or adapt",
        ),
        (lambda: True, "rule must be an UpdateRule or the step size of gradient descent, got True"),
        (lambda: StepSizes(stacked(0), -0.1, learned=False), "inner_lr must be finite and 0 or more, got -0.1"),
        (lambda: StepSizes(stacked(0), float("inf"), learned=True), "inner_lr must be finite and 0 or more, got inf"),
        (
            lambda: StepSizes(stacked(0), 0.1, learned=False, adapted=frozenset({"wq"})),
            "unknown parameter to adapt 'wq'.* Valid choices: b, unused, w",
        ),
        (lambda: RaviLSTM(0.1, adapted=frozenset({"wq"})).double(), "unknown parameter to adapt 'wq'"),
        (lambda: AndrychowiczLSTM(0.1, adapted=frozenset({"wq"})).double(), "unknown parameter to adapt 'wq'"),
        (lambda: AndrychowiczLSTM(-0.1), "inner_lr must be finite and 0 or more"),
        (lambda: LearnedRates(stacked(0), -0.1, "model"), "inner_lr must be finite and 0 or more"),
        (lambda: MetaCurvature(stacked(0), float("nan")), "inner_lr must be finite and 0 or more"),
        (lambda: KroneckerFactored(stacked(0), -1.0), "inner_lr must be finite and 0 or more"),
    ],
)
def test_rules_that_cannot_work_are_refused(rule: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inner_loop(stacked(0), losses(1), rule(), second_order=False)


def test_frozen_parameters_of_a_rule_get_no_gradient() -> None:
    rule = Momentum()
    rule.first.requires_grad_(False)
    loop = inner_loop(stacked(0), losses(2), rule, second_order=True)
    assert all((loop.adapted[name] - value).abs().max() < 1e-14 for name, value in run(2).adapted.items())
    meta_gradient(None, loop, losses(3)[2], rule=rule)
    assert rule.first.grad is None and rule.decay.grad is not None and rule.decay.grad.abs() > 1e-4
