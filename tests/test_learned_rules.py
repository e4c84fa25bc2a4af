"""The LSTM rules outside reinforcement learning: against plain coordinates, and on quadratics."""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Sequence

import pytest
import torch
from helpers.reference_rules import Memory, Step, andrychowicz, features, move, ravi, spread
from torch import Tensor, nn

from metarl import adaptation
from metarl.adaptation import (
    AndrychowiczLSTM,
    LossFn,
    Params,
    RaviLSTM,
    UpdateRule,
    call,
    inner_loop,
    learned_rules,
    log_and_sign,
    meta_gradient,
    stack_module,
)
from metarl.errors import ConfigError

NUM_TASKS, NUM_STEPS = 3, 3
CASES: dict[str, tuple[UpdateRule, Step]] = {
    "ravi": (RaviLSTM(0.1).double(), ravi),
    "andrychowicz": (AndrychowiczLSTM(0.1, output_scale=0.3).double(), andrychowicz(0.1, 0.3)),
}


def test_log_and_sign_has_two_features_on_both_sides_of_its_threshold() -> None:
    """The paper's cases one by one; where they meet they agree."""
    x = torch.tensor([2.0, -2.0, 0.0, 1e-5, -1e-5, 1e-12, math.exp(-10), -1e4], dtype=torch.float64)
    expected = torch.stack([torch.stack(features(value)) for value in x])
    assert (log_and_sign(x) - expected).abs().max() < 1e-12
    assert log_and_sign(torch.tensor([2.0, 0.0])).tolist() == [[pytest.approx(math.log(2) / 10), 1.0], [-1.0, 0.0]]


def test_log_and_sign_has_finite_slopes_everywhere() -> None:
    x = torch.tensor([0.0, 1e-30, -1e-5, 1.0], requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(log_and_sign(x).sum(), x)[0]).all()


class Problem:
    """Regression by a small network of each task's own data; ``seed`` differs between inner and outer loss."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        shape = (2, NUM_TASKS, 4, 2)
        self.x = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.y = torch.randn(*shape[:3], 1, generator=generator, dtype=torch.float64)

    def loss(self, part: int) -> LossFn:
        return lambda params: (call(self.net, params, self.x[part]) - self.y[part]).square().mean((1, 2))

    def loss_of_task(self, params: Sequence[Tensor], part: int, task: int) -> Tensor:
        named = dict(zip(dict(self.net.named_parameters()), params, strict=True))
        out: Tensor = torch.func.functional_call(self.net, named, (self.x[part, task],))
        return (out - self.y[part, task]).square().mean()


def reference(problem: Problem, rule: UpdateRule, step: Step, first_order: bool, along_path: bool) -> Tensor:
    """The mean loss after adaptation (or summed over the path), with its graph; a loop over tasks and coordinates."""
    total = torch.zeros((), dtype=torch.float64)
    for task in range(NUM_TASKS):
        params: list[Tensor] = [*problem.net.parameters()]
        memories: list[Memory] = []
        for _ in range(NUM_STEPS):
            total = total + (problem.loss_of_task(params, 1, task) if along_path else 0.0)
            loss = problem.loss_of_task(params, 0, task)
            grads = torch.autograd.grad(loss, params, create_graph=True)
            if first_order:
                loss, grads = loss.detach(), tuple(grad.detach() for grad in grads)
            params = move(step, dict(rule.named_parameters()), params, grads, loss, memories)
        total = total + problem.loss_of_task(params, 1, task)
    return total / NUM_TASKS


@pytest.mark.parametrize("along_path", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_meta_gradients_equal_a_loop_over_tasks_and_coordinates(name: str, first_order: bool, along_path: bool) -> None:
    """Of initial parameters and of the rule's own, to 1e-8; second-order parts are large enough to be missed."""
    problem, (rule, step) = Problem(0), CASES[name]
    rule = copy.deepcopy(rule)
    spread(rule)
    leaves = [*problem.net.parameters(), *rule.parameters()]
    expected = torch.autograd.grad(reference(problem, rule, step, first_order, along_path), leaves)
    other = torch.autograd.grad(reference(problem, rule, step, not first_order, along_path), leaves)
    loop = inner_loop(
        stack_module(problem.net, NUM_TASKS), [problem.loss(0)] * NUM_STEPS, rule, second_order=not first_order
    )
    loss = meta_gradient(problem.net, loop, problem.loss(1), rule=rule, along_path=along_path)
    assert (loss - reference(problem, rule, step, first_order, False)).abs() < 1e-10
    for leaf, slope in zip(leaves, expected, strict=True):
        assert leaf.grad is not None and (leaf.grad - slope).abs().max() < 1e-8
    num_initial = len(list(problem.net.parameters()))
    for part in (slice(num_initial), slice(num_initial, None)):
        gaps = [(a - b).abs().max() for a, b in zip(expected[part], other[part], strict=True)]
        assert max(gaps) > 1e-3


@pytest.mark.parametrize("rule", [RaviLSTM(0.05), AndrychowiczLSTM(0.05)], ids=["ravi", "andrychowicz"])
def test_a_new_rule_is_gradient_descent_and_has_a_gradient_to_leave_it(rule: UpdateRule) -> None:
    """Ravi's keeps 0.9997 of each parameter; over three steps neither is off by more than 3 parts in 1000."""
    problem = Problem(1)
    start = {name: value.float() for name, value in stack_module(problem.net, NUM_TASKS).items()}
    problem.net.float()
    problem.x, problem.y = problem.x.float(), problem.y.float()
    learned, descent = (inner_loop(start, [problem.loss(0)] * 3, kind, second_order=False) for kind in (rule, 0.05))
    moved = max(float((descent.adapted[name] - value).abs().max()) for name, value in start.items())
    off = max(float((descent.adapted[name] - value).abs().max()) for name, value in learned.adapted.items())
    assert moved > 0.05 and off < 3e-3
    meta_gradient(None, learned, problem.loss(1), rule=rule)
    assert (
        max(float(parameter.grad.abs().max()) for parameter in rule.parameters() if parameter.grad is not None) > 1e-4
    )


@pytest.mark.parametrize("kind", [RaviLSTM, AndrychowiczLSTM])
def test_parameters_that_do_not_adapt_stay(kind: type[RaviLSTM] | type[AndrychowiczLSTM]) -> None:
    problem = Problem(2)
    start = stack_module(problem.net, NUM_TASKS)
    rule = kind(0.1, adapted=frozenset({"2.weight", "2.bias"})).double()
    spread(rule)
    adapted = inner_loop(start, [problem.loss(0)] * 2, rule, second_order=True).adapted
    for name, value in adapted.items():
        assert ((value - start[name]).abs().max() > 1e-3) == name.startswith("2."), name


@pytest.mark.parametrize("kind", [RaviLSTM, AndrychowiczLSTM])
def test_coordinates_share_the_rule_but_not_its_memory(kind: type[RaviLSTM] | type[AndrychowiczLSTM]) -> None:
    """Permuting coordinates and tasks permutes the path."""
    rule = kind(0.1).double()
    spread(rule)
    generator = torch.Generator().manual_seed(3)
    start, target = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)

    def path(start: Tensor, target: Tensor) -> Tensor:
        error: LossFn = lambda params: (params["x"] - target).pow(4).sum(1)  # noqa: E731
        return inner_loop({"x": start}, [error] * 4, rule, second_order=False).adapted["x"]

    tasks, coordinates = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 1, 0, 4, 2, 3])
    shuffled = path(start[tasks][:, coordinates], target[tasks][:, coordinates])
    assert (shuffled - path(start, target)[tasks][:, coordinates]).abs().max() < 1e-12


@pytest.mark.parametrize("inner_lr", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_no_gate_can_take_is_refused(inner_lr: float) -> None:
    with pytest.raises(ConfigError, match=rf"in \(0, 1\), got {inner_lr}"):
        RaviLSTM(inner_lr)


def quadratics(generator: torch.Generator, num: int) -> tuple[Params, LossFn]:
    """Andrychowicz et al., section 3.1: ``|W x - y|^2`` with all numbers from a standard normal."""
    w, y, start = (torch.randn(num, 10, size, generator=generator) for size in (10, 1, 1))
    return {"x": start}, lambda params: (w @ params["x"] - y).square().sum((1, 2))


def loss_after(rule: UpdateRule | float, num_steps: int) -> float:
    """Mean over 500 quadratics that no rule was trained on."""
    start, error = quadratics(torch.Generator().manual_seed(12345), 500)
    loop = inner_loop(start, [error] * num_steps, rule, second_order=False, differentiable=False)
    return float(error(loop.adapted).mean())


def test_the_learned_optimiser_of_the_docstring_beats_the_best_step_size_on_new_quadratics() -> None:
    """After 20 steps, as in training, by half at least; and after 100, which training never saw.

    The best of all constant step sizes is searched on the held-out quadratics themselves, in its favour.
    """
    assert learned_rules.__doc__ is not None
    example = textwrap.dedent(learned_rules.__doc__.split("in full::")[1])
    space = {"torch": torch, **{name: getattr(adaptation, name) for name in adaptation.__all__}}
    torch.manual_seed(0)
    exec(example, space)
    rule = space["rule"]
    assert isinstance(rule, UpdateRule)
    rates = [0.001 * k for k in range(1, 31)]
    for num_steps, share in ((20, 0.5), (100, 0.8)):
        best = min(loss for rate in rates if math.isfinite(loss := loss_after(rate, num_steps)))
        assert loss_after(rule, num_steps) < share * best
