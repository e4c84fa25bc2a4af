"""Adapted models with their graph: gradients of everything that took part equal those of a plain loop over tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarl.adaptation import (
    SGD,
    Adam,
    AdaptedModel,
    LearnedRates,
    Params,
    UpdateRule,
    adapt,
    call,
    inner_loop,
    meta_gradient,
    stack_module,
)
from metarl.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")

NUM_TASKS = 3


class World:
    """An encoder before an adapted head, learned loss weights, a learned step size, and tasks."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
        self.weights = nn.Parameter(torch.tensor([0.7, 1.3, 0.2, 0.9, 1.1]))
        self.rate = nn.Parameter(torch.tensor(0.2))
        self.x, self.x_new = torch.randn(2, NUM_TASKS, 5, 2)
        self.y, self.y_new = torch.randn(2, NUM_TASKS, 5, 1)

    def parameters(self) -> list[Tensor]:
        return [*self.encoder.parameters(), *self.head.parameters(), self.weights, self.rate]

    def inner(self, model: Callable[..., Tensor]) -> Tensor:
        errors = (model(self.encoder(self.x)) - self.y).square().squeeze(-1)
        return (self.weights * errors).mean(1)

    def outer(self, model: Callable[..., Tensor]) -> Tensor:
        return (model(self.encoder(self.x_new)) - self.y_new).square().mean()

    def plain(self, steps: int, second_order: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Task by task, and the gradients of all parameters."""
        total = torch.zeros(())
        for task in range(NUM_TASKS):
            params: dict[str, Tensor] = dict(self.head.named_parameters())
            for _ in range(steps):
                out = torch.func.functional_call(self.head, params, (self.encoder(self.x[task]),))
                loss = (self.weights * (out - self.y[task]).square().squeeze(-1)).mean()
                slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
                if not second_order:
                    slopes = tuple(slope.detach() for slope in slopes)
                params = {n: p - self.rate * g for (n, p), g in zip(params.items(), slopes, strict=True)}
            out = torch.func.functional_call(self.head, params, (self.encoder(self.x_new[task]),))
            total = total + (out - self.y_new[task]).square().mean() / NUM_TASKS
        return total, torch.autograd.grad(total, self.parameters(), materialize_grads=True)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_backward_fills_the_gradients_of_everything_that_took_part(steps: int, second_order: bool) -> None:
    """Head, encoder, loss weights and step size."""
    world = World()
    model = adapt(world.head, world.inner, steps=steps, rule=world.rate, num_tasks=NUM_TASKS, second_order=second_order)
    loss = world.outer(model)
    loss.backward()
    expected, slopes = world.plain(steps, second_order)
    assert torch.allclose(loss, expected, atol=1e-13)
    for parameter, slope in zip(world.parameters(), slopes, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(found, slope, atol=1e-12)
    assert steps < 3 or slopes[-1].abs() > 1e-4
    if steps == 3:
        other = world.plain(steps, not second_order)[1]
        assert (other[0] - slopes[0]).abs().max() > 1e-4


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize(
    "make_rule",
    [
        lambda net: SGD(0.1, momentum=0.9),
        lambda net: Adam(0.05),
        lambda net: LearnedRates(dict(net.named_parameters()), 0.1, "layer"),
    ],
)
def test_a_live_model_and_a_meta_gradient_agree(
    make_rule: Callable[[nn.Module], UpdateRule], second_order: bool
) -> None:
    """Adapted parameters, loss, and gradients of module and rule; both add to what is in ``.grad``."""
    world = World()
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    rule = make_rule(net)
    parameters = [*net.parameters(), *rule.parameters()]

    def error(x: Tensor, y: Tensor) -> Callable[[Params], Tensor]:
        return lambda params: (call(net, params, x) - y).square().mean((1, 2))

    losses = [error(world.x, world.y)] * 2
    loop = inner_loop(stack_module(net, NUM_TASKS), losses, rule, second_order=second_order)
    loss = meta_gradient(net, loop, error(world.x_new, world.y_new), rule=rule)
    first = [None if p.grad is None else p.grad.clone() for p in parameters]
    model = adapt(
        net,
        lambda model: (model(world.x) - world.y).square().mean((1, 2)),
        steps=2,
        rule=rule,
        num_tasks=NUM_TASKS,
        second_order=second_order,
    )
    assert all(torch.allclose(model.params[name], value, atol=1e-14) for name, value in loop.adapted.items())
    live = (model(world.x_new) - world.y_new).square().mean()
    assert torch.allclose(live, loss)
    live.backward()
    for parameter, before in zip(parameters, first, strict=True):
        assert before is not None and parameter.grad is not None and before.abs().max() > 1e-6
        assert torch.allclose(parameter.grad, 2 * before, atol=1e-13)


def test_steps_go_on_from_an_adapted_model() -> None:
    """With the rule's memory; each step knows its number, so that each can have data of its own."""
    world, rule = World(), Adam(0.05)
    seen: list[int] = []

    def loss(model: AdaptedModel) -> Tensor:
        seen.append(model.num_steps)
        return world.inner(model) * (1 + model.num_steps)

    whole = adapt(world.head, loss, steps=4, rule=rule, num_tasks=NUM_TASKS)
    half = adapt(world.head, loss, steps=2, rule=rule, num_tasks=NUM_TASKS)
    rest = adapt(half, loss, steps=2, rule=rule)
    assert seen == [0, 1, 2, 3] * 2 and rest.num_steps == 4
    assert all(torch.equal(rest.params[name], value) for name, value in whole.params.items())
    slopes = [torch.autograd.grad(world.outer(model), list(world.head.parameters())) for model in (whole, rest)]
    assert all(torch.allclose(left, right) for left, right in zip(*slopes, strict=True))


def test_without_gradients_the_steps_are_the_same_and_nothing_is_kept() -> None:
    world = World()
    kept = adapt(world.head, world.inner, steps=2, rule=world.rate, num_tasks=NUM_TASKS)
    with torch.no_grad():
        bare = adapt(world.head, world.inner, steps=2, rule=world.rate, num_tasks=NUM_TASKS)
    for name, value in kept.params.items():
        assert torch.allclose(bare.params[name], value) and value.requires_grad and not bare.params[name].requires_grad


def test_an_optimiser_learns_encoder_head_and_step_size_through_a_live_model() -> None:
    world = World()
    optimizer = torch.optim.Adam(world.parameters(), lr=0.02)
    before = [parameter.detach().clone() for parameter in world.parameters()]
    losses = []
    for _ in range(60):
        loss = world.outer(adapt(world.head, world.inner, steps=2, rule=world.rate, num_tasks=NUM_TASKS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all((after - old).abs().max() > 1e-2 for after, old in zip(world.parameters(), before, strict=True))


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("rule", [0.1, Adam(0.05), SGD(0.1, weight_decay=0.1)])
def test_frozen_parameters_are_constants_of_both_loops(rule: UpdateRule | float, second_order: bool) -> None:
    """Not adapted, no gradient; the others adapt as a loop over tasks with those constants says."""
    world = World()
    net = nn.Sequential(world.encoder, world.head)
    for parameter in (*world.encoder.parameters(), world.head[0].weight):
        parameter.requires_grad_(False)
    values = {name: value.clone() for name, value in net.named_parameters()}

    def inner(model: Callable[..., Tensor]) -> Tensor:
        return (model(world.x) - world.y).square().mean((1, 2))

    def outer(model: Callable[..., Tensor]) -> Tensor:
        return (model(world.x_new) - world.y_new).square().mean((1, 2))

    losses: list[Callable[[Params], Tensor]] = [lambda params: inner(lambda x: call(net, params, x))] * 2
    loop = inner_loop(stack_module(net, NUM_TASKS), losses, rule, second_order=second_order)
    meta_gradient(net, loop, lambda params: outer(lambda x: call(net, params, x)))
    found = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    model = adapt(net, inner, steps=2, rule=rule, num_tasks=NUM_TASKS, second_order=second_order)
    outer(model).mean().backward()
    trained = {"1.0.bias", "1.2.weight", "1.2.bias"}
    assert loop.adapted.keys() == model.params.keys() == trained
    assert all((loop.adapted[name][0] - values[name]).abs().max() > 1e-3 for name in trained)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, values[name])
        if name in trained:
            grad = found[name]
            assert parameter.grad is not None and grad is not None
            assert torch.allclose(parameter.grad, grad, atol=1e-14) and grad.abs().max() > 1e-6
        else:
            assert parameter.grad is None and found[name] is None
    if rule == 0.1 and second_order:
        total = torch.zeros(())
        for task in range(NUM_TASKS):
            params = dict(net.named_parameters())
            for _ in range(2):
                loss = (torch.func.functional_call(net, params, (world.x[task],)) - world.y[task]).square().mean()
                slopes = torch.autograd.grad(loss, [params[name] for name in sorted(trained)], create_graph=True)
                params |= {n: params[n] - 0.1 * g for n, g in zip(sorted(trained), slopes, strict=True)}
            out = torch.func.functional_call(net, params, (world.x_new[task],))
            total = total + (out - world.y_new[task]).square().mean() / NUM_TASKS
        for name in trained:
            (slope,) = torch.autograd.grad(total, net.get_parameter(name), retain_graph=True)
            grad = found[name]
            assert grad is not None and torch.allclose(grad, slope, atol=1e-13)


def test_a_module_behind_two_paths_stays_trainable() -> None:
    """Its parameters are the same objects, an optimiser moves them, and both paths see it."""

    class TwoPaths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.out = nn.Linear(2, 4), nn.Linear(4, 1)
            self.whole = nn.Sequential(self.trunk, nn.Tanh(), self.out)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.whole(x)
            return out

    world, module = World(), TwoPaths()
    weight = module.trunk.weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loss: Callable[[Params], Tensor] = lambda params: (call(module, params, world.x) - world.y).square().mean((1, 2))  # noqa: E731
    meta_gradient(module, inner_loop(stack_module(module, NUM_TASKS), [loss], 0.1, second_order=True), loss)
    optimizer.step()
    assert module.trunk.weight is weight and module.whole[0].weight is weight and isinstance(weight, nn.Parameter)
    assert (weight - before).abs().max() > 1e-4
    assert torch.equal(module(world.x[0]), module.out(module.trunk(world.x[0]).tanh()))


def test_a_parameter_that_the_loss_does_not_use_keeps_its_value() -> None:
    """Also where the rule moves without a gradient: by weight decay, as torch.optim leaves those without alone."""

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.never = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    world, net = World(), Unused()
    loss: Callable[[Callable[..., Tensor]], Tensor] = lambda model: (model(world.x) - world.y).square().mean((1, 2))  # noqa: E731
    for rule in (0.1, SGD(0.1, weight_decay=0.5), Adam(0.1, weight_decay=0.5)):
        model = adapt(net, loss, steps=2, rule=rule, num_tasks=NUM_TASKS)
        loss(model).mean().backward()
        for name, value in net.named_parameters():
            moves = (model.params[name] - value).abs().max() > 1e-3
            assert moves == name.startswith("used"), name
    assert net.never.weight.grad is None or (net.never.weight.grad == 0).all()


def _lost(world: World) -> Mapping[str, tuple[Callable[[Params], Tensor], Callable[[Params], Tensor]]]:
    """Inner and outer losses, by where something besides the adapted parameters has a gradient."""

    def clean(params: Params) -> Tensor:
        out: Tensor = call(world.head, params, world.encoder(world.x).detach())
        return out.mean((1, 2))

    def encoded(params: Params) -> Tensor:
        out: Tensor = call(world.head, params, world.encoder(world.x))
        return out.square().mean((1, 2))

    def direct(params: Params) -> Tensor:
        return clean(params).square() + world.head[0].weight.sum()

    return {"outer": (clean, encoded), "inner": (encoded, clean), "module": (clean, direct)}


@pytest.mark.parametrize("rule", [0.1, Adam(0.1)])
@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("outer", r"one of shape \(4, 2\)"),
        ("inner", r"one of shape \(4, 2\)"),
        ("module", r"lose theirs: 0\.weight\."),
    ],
)
def test_a_meta_gradient_that_would_lose_gradients_is_refused(where: str, named: str, rule: UpdateRule | float) -> None:
    """An encoder in the outer or the inner loss, or the module's own parameters beside the adapted ones."""
    world = World()
    inner, outer = _lost(world)[where]
    loop = inner_loop(stack_module(world.head, NUM_TASKS), [inner] * 2, rule, second_order=True)
    with pytest.raises(ConfigError, match=named):
        meta_gradient(world.head, loop, outer)
    assert all(parameter.grad is None for parameter in world.head.parameters())


def test_first_order_gradients_of_an_encoder_in_the_inner_loss_are_not_lost_as_there_are_none() -> None:
    world = World()
    inner, outer = _lost(world)["inner"]
    for rule in (0.1, Adam(0.1)):
        loop = inner_loop(stack_module(world.head, NUM_TASKS), [inner] * 2, rule, second_order=False)
        meta_gradient(world.head, loop, outer)
    assert world.head[0].weight.grad is not None


@pytest.mark.parametrize("rule", [0.1, Adam(0.1)])
def test_gradients_of_chunks_add_up_to_that_of_the_whole(rule: UpdateRule | float) -> None:
    world = World()
    net = nn.Linear(2, 1)

    def accumulate(tasks: slice, num_tasks: int | None) -> float:
        def error(x: Tensor, y: Tensor) -> Callable[[Params], Tensor]:
            return lambda params: (call(net, params, x[tasks]) - y[tasks]).square().mean((1, 2))

        count = len(world.x[tasks])
        loop = inner_loop(stack_module(net, count), [error(world.x, world.y)], rule, second_order=True)
        return float(meta_gradient(net, loop, error(world.x_new, world.y_new), num_tasks=num_tasks))

    whole = accumulate(slice(3), None)
    assert net.weight.grad is not None
    expected = net.weight.grad.clone()
    net.zero_grad()
    parts = [accumulate(tasks, 3) for tasks in (slice(0, 1), slice(1, 3))]
    assert net.weight.grad is not None and torch.allclose(net.weight.grad, expected, atol=1e-14)
    assert sum(parts) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": -0.1}, "rule must be finite and 0 or more, got -0.1"),
        ({"rule": float("nan")}, "rule must be finite and 0 or more, got nan"),
        ({"rule": torch.tensor(-1.0)}, "rule must be finite and 0 or more"),
        ({"rule": torch.ones(2)}, "rule must be an UpdateRule or the step size"),
        ({"rule": "sgd"}, "rule must be an UpdateRule or the step size of gradient descent, got 'sgd'"),
        ({"steps": -1}, "steps must be a whole number of 0 or more, got -1"),
        ({"num_tasks": None}, "num_tasks must be a whole number of 1 or more, got None"),
        ({"num_tasks": 0}, "num_tasks must be a whole number of 1 or more, got 0"),
        (
            {"loss_fn": lambda model: model(torch.zeros(3, 1, 4)).sum()},
            r"inner loss must have shape \[task\] = \(3,\), got \(\)",
        ),
        ({"loss_fn": lambda model: torch.zeros(3)}, "an inner loss must depend on the parameters"),
    ],
)
def test_arguments_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    world = World()
    given: dict[str, Any] = {"loss_fn": world.inner, "steps": 1, "rule": 0.1, "num_tasks": NUM_TASKS} | changes
    with pytest.raises(ValueError, match=message):
        adapt(world.head, **given)
    model = adapt(world.head, world.inner, steps=1, rule=0.1, num_tasks=NUM_TASKS)
    with pytest.raises(ConfigError, match="num_tasks must be 3, as in the adapted model, got 4"):
        adapt(model, world.inner, steps=1, rule=0.1, num_tasks=4)


def test_the_loss_after_adaptation_must_be_one_number_per_task() -> None:
    world = World()
    clean = _lost(world)["inner"][1]
    loop = inner_loop(stack_module(world.head, NUM_TASKS), [clean], 0.1, second_order=True)
    with pytest.raises(ValueError, match=r"the loss after adaptation must have shape \[task\] = \(3,\), got \(\)"):
        meta_gradient(world.head, loop, lambda params: clean(params).mean())
