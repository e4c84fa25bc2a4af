"""Gradient-based few-shot learners: their updates against plain loops over tasks, in float64."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.adaptation import LearnedRates, RaviLSTM, StepSizes
from metarl.errors import ConfigError
from metarl.fewshot.evaluation import score_batch
from metarl.fewshot.learners import LEARNERS
from metarl.fewshot.learners.anil import ANILConfig
from metarl.fewshot.learners.fomaml import FOMAMLConfig
from metarl.fewshot.learners.learned_optimiser import LearnedOptimiserConfig
from metarl.fewshot.learners.maml import MAML, MAMLConfig
from metarl.fewshot.learners.meta_sgd import MetaSGDConfig
from metarl.fewshot.learners.reptile import Reptile, ReptileConfig
from metarl.fewshot.tasks.quadratic import Quadratic
from metarl.fewshot.tasks.sinusoid import Sinusoid
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, TaskBatch
from metarl.networks.params import trainable
from metarl.networks.task_norm import TaskNorm
from metarl.testing.learners import check_learner

CPU = torch.device("cpu")
SPEC = FewShotSpec((3,), 4, "classification")
REGRESSION = FewShotSpec((3,), 2, "regression")

Params = dict[str, Tensor]


def _module(num_outputs: int = 4) -> nn.Sequential:
    """A smooth network, so that finite differences mean something."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, num_outputs)).double()


def _batch(num_tasks: int = 3, shots: int = 2, spec: FewShotSpec = SPEC) -> TaskBatch:
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> Examples:
        x = torch.randn(num_tasks, count, 3, generator=generator, dtype=torch.float64)
        if spec.kind == "regression":
            return Examples(x, torch.randn(num_tasks, count, 2, generator=generator, dtype=torch.float64))
        return Examples(x, torch.arange(count).remainder(4).expand(num_tasks, count))

    return TaskBatch(draw(4 * shots), draw(4))


def _loss(module: nn.Module, params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Loss of one task."""
    out = torch.func.functional_call(module, params, (x,))
    return F.cross_entropy(out, y) if y.dtype == torch.int64 else (out - y).square().mean()


Rate = Callable[[int, str], Tensor | float]
"""Number of the step, name of the parameter -> its step size."""


def _outer_by_loop(
    module: nn.Module, params: Params, batch: TaskBatch, rate: Rate, *, second_order: bool, weights: list[float]
) -> Tensor:
    """The mean query loss after each step, weighted, one task after the other, with its graph."""
    total = torch.zeros((), dtype=torch.float64)
    for task in range(batch.num_tasks):
        own = dict(params)
        for number, weight in enumerate(weights):
            point = own if second_order else {name: value.detach().requires_grad_() for name, value in own.items()}
            loss = _loss(module, point, batch.support.x[task], batch.support.y[task])
            found = torch.autograd.grad(loss, list(point.values()), create_graph=second_order)
            grads = dict(zip(point, found, strict=True))
            own = {name: value - rate(number, name) * grads[name] for name, value in own.items()}
            total = total + weight * _loss(module, own, batch.query.x[task], batch.query.y[task])
    return total / batch.num_tasks


def _learned_gradient(learner: MAML, batch: TaskBatch) -> Params:
    """The gradient that an update leaves behind, unclipped; parameters are put back."""
    before = copy.deepcopy(learner.state_dict())
    learner.seed(0)
    learner.meta_update(batch)
    parts = {"module": learner.module} | ({"rule": learner.rule} if isinstance(learner.rule, nn.Module) else {})
    found = {
        f"{part}.{name}": value.grad.clone()
        for part, module in parts.items()
        for name, value in module.named_parameters()
        if value.grad is not None
    }
    learner.load_state_dict(before)
    return found


def _maml(config: MAMLConfig, rule: Any, spec: FewShotSpec = SPEC, adapted: frozenset[str] | None = None) -> MAML:
    return MAML(spec, CPU, dataclasses.replace(config, max_grad_norm=1e9), _module(spec.num_outputs), rule, adapted)


@pytest.mark.parametrize("spec", [SPEC, REGRESSION], ids=lambda spec: spec.kind)
def test_meta_gradient_of_maml_is_that_of_finite_differences(spec: FewShotSpec) -> None:
    batch = _batch(spec=spec)
    learner = _maml(MAMLConfig(num_inner_steps=2), 0.3, spec)
    found = _learned_gradient(learner, batch)
    module = learner.module
    params = {name: value.detach().clone() for name, value in module.named_parameters()}

    def outer(values: Params) -> float:
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        loss = _outer_by_loop(module, leaves, batch, lambda *_: 0.3, second_order=False, weights=[0.0, 1.0])
        return float(loss.detach())

    size = 1e-6
    for name, value in params.items():
        for index in range(value.numel()):
            sides = []
            for sign in (1, -1):
                moved = value.clone().flatten()
                moved[index] += sign * size
                sides.append(outer({**params, name: moved.view_as(value)}))
            difference = (sides[0] - sides[1]) / (2 * size)
            assert found[f"module.{name}"].flatten()[index] == pytest.approx(difference, abs=1e-8)


@pytest.mark.parametrize("kind", ["maml", "fomaml", "anil", "meta-sgd", "layer", "layer-and-step", "multi-step"])
def test_meta_gradients_are_those_of_a_plain_loop_over_tasks(kind: str) -> None:
    steps, inner_lr = 3, 0.3
    params = {name: value.detach().clone().requires_grad_() for name, value in _module().named_parameters()}
    rates: Params = {}
    config: MAMLConfig = MAMLConfig(num_inner_steps=steps)
    rule: Any = inner_lr
    adapted = None
    weights = [0.0, 0.0, 1.0]

    def rate(number: int, name: str) -> Tensor | float:
        if kind == "meta-sgd":
            return rates[f"rule.{name.replace('.', '/')}"]
        if kind == "layer":
            return rates[f"rule.rates.{name[0]}"]
        if kind == "layer-and-step":
            return rates[f"rule.rates.{name[0]}"][number]
        return 0.0 if kind == "anil" and name[0] == "0" else inner_lr

    if kind == "fomaml":
        config = FOMAMLConfig(num_inner_steps=steps)
    elif kind == "anil":
        config = ANILConfig(num_inner_steps=steps, head="2")
        adapted = config.adapted_names(params)
    elif kind == "meta-sgd":
        config = MetaSGDConfig(num_inner_steps=steps)
        rule = StepSizes(params, inner_lr, learned=True)
        rates = {
            f"rule.{name.replace('.', '/')}": torch.full_like(value, inner_lr).requires_grad_()
            for name, value in params.items()
        }
    elif kind in ("layer", "layer-and-step"):
        shape = (steps,) if kind == "layer-and-step" else ()
        rule = LearnedRates(params, inner_lr, "layer", *shape)
        rates = {
            f"rule.rates.{layer}": torch.full(shape, inner_lr, dtype=torch.float64).requires_grad_()
            for layer in ("0", "2")
        }
    elif kind == "multi-step":
        config, weights = dataclasses.replace(config, multi_step_iterations=10), [1 / 3, 1 / 3, 1 / 3]
    batch = _batch()
    found = _learned_gradient(_maml(config, rule, adapted=adapted), batch)
    _outer_by_loop(_module(), params, batch, rate, second_order=kind != "fomaml", weights=weights).backward()
    expected = {f"module.{name}": value.grad for name, value in params.items()}
    expected |= {name: value.grad for name, value in rates.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value is not None
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


def test_weights_of_the_steps_go_over_to_the_last() -> None:
    learner = _maml(MAMLConfig(num_inner_steps=4, multi_step_iterations=4), 0.1)
    batch, seen = _batch(), []
    for iteration in range(6):
        seen.append(learner.step_weights())
        learner.seed(iteration)
        learner.meta_update(batch)
    np.testing.assert_allclose(seen[0], [0.25] * 4)
    np.testing.assert_allclose(seen[2], [0.125] * 3 + [0.625])
    np.testing.assert_allclose(seen[5], [0, 0, 0, 1])
    assert all(sum(weights) == pytest.approx(1.0) for weights in seen)


def test_a_gradient_is_clipped_to_its_largest_norm() -> None:
    config = MAMLConfig(num_inner_steps=1, max_grad_norm=1e-3)
    learner = MAML(SPEC, CPU, config, _module(), 0.1)
    learner.seed(0)
    assert learner.meta_update(_batch())["gradient_norm"] > 1e-3
    norms = [value.grad.norm() for value in learner.module.parameters() if value.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-4)


def test_meta_lstm_with_frozen_gates_is_gradient_descent() -> None:
    """With a forget gate of 1 and an input gate of ``inner_lr``, whatever the LSTM says."""
    rule = RaviLSTM(0.3).double()
    nn.init.constant_(rule.forget.bias, 1e3)
    batch = _batch()
    scores = [score_batch(_maml(MAMLConfig(), given, REGRESSION), _batch(spec=REGRESSION), 4) for given in (rule, 0.3)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-7, atol=1e-9)  # The gate's bias was float32.
    assert not torch.equal(scores[0][:, 0], scores[0][:, -1])
    found = _learned_gradient(_maml(FOMAMLConfig(num_inner_steps=2), rule), batch)
    assert all(found[f"rule.{name}"].isfinite().all() for name in ("forget.weight", "rate.weight", "layer.weight_ih"))


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_reptile_goes_its_share_of_the_way_to_the_mean_of_the_adapted_parameters(rule: Any) -> None:
    config = ReptileConfig(
        inner_lr=0.1, inner_rule=rule, num_inner_steps=3, inner_batch_size=0, meta_lr=0.5, anneal_iterations=4
    )
    learner = Reptile(SPEC, CPU, config, _module())
    batch = _batch()
    for iteration in range(5):
        start = {name: value.detach().clone() for name, value in learner.module.named_parameters()}
        ends = []
        for task in range(batch.num_tasks):
            model = _module()
            model.load_state_dict(start)
            optimizer: torch.optim.Optimizer = (
                torch.optim.SGD(model.parameters(), lr=0.1)
                if rule == "sgd"
                else torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.0, 0.999))
            )
            for _ in range(3):
                optimizer.zero_grad()
                F.cross_entropy(model(batch.support.x[task]), batch.support.y[task]).backward()
                optimizer.step()
            ends.append({name: value.detach() for name, value in model.named_parameters()})
        learner.seed(iteration)
        learner.meta_update(batch)
        share = 0.5 * (1 - min(iteration / 4, 1))
        for name, value in learner.module.named_parameters():
            mean = torch.stack([end[name] for end in ends]).mean(0)
            torch.testing.assert_close(
                value.detach(), start[name] + share * (mean - start[name]), rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "meta-sgd", "meta-lstm", "reptile", "learned-optimiser"])
def test_gradient_learners_keep_the_contract(name: str) -> None:
    settings: dict[str, Any] = {"hidden_sizes": (8,), "num_eval_steps": 4, "inner_batch_size": 3}
    if name == "learned-optimiser":
        settings |= {"num_inner_steps": 4, "unroll": 2}
    check_learner(LEARNERS[name](**settings), Sinusoid(), EpisodeConfig(1, 5, 5))


def test_chunks_of_tasks_learn_the_same() -> None:
    batch = _batch(5)
    for make in (
        lambda chunk: _maml(MAMLConfig(num_inner_steps=2, task_chunk=chunk, inner_batch_size=3), 0.3),
        lambda chunk: Reptile(SPEC, CPU, ReptileConfig(task_chunk=chunk, inner_batch_size=3), _module()),
    ):
        results = []
        for chunk in (5, 2):
            learner = make(chunk)
            learner.seed(3)
            learner.meta_update(batch)
            learner.seed(4)
            scores = score_batch(learner, batch, 2)
            results.append([*(value.detach() for value in learner.module.parameters()), scores])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_minibatches_are_drawn_for_each_task_and_step_without_repetition() -> None:
    learner = _maml(MAMLConfig(inner_batch_size=3), 0.1)
    batch = _batch(4, shots=2)
    numbered = Examples(torch.arange(8.0).expand(4, 8)[..., None].expand(-1, -1, 3).double(), batch.support.y)
    state = learner.begin(4)
    seen = []
    for _ in range(40):
        chosen = learner.minibatch(numbered, state)
        rows = chosen.x[..., 0].tolist()
        assert all(len(set(row)) == 3 for row in rows)
        torch.testing.assert_close(chosen.y, torch.tensor(rows).long().remainder(4))
        seen.append(rows)
        state = learner.step(state, numbered, second_order=False)
    assert any(one != other for one, other in itertools.pairwise(seen[0]))
    assert any(one != other for one, other in itertools.pairwise(seen))
    # Each example is as likely as any other: 160 draws of 3 of 8 give each 60 times.
    counts = np.bincount(np.array(seen).astype(int).ravel(), minlength=8)
    assert counts.min() > 35
    assert counts.max() < 85


@pytest.mark.parametrize("norm", ["transductive", "running", "per-step"])
def test_normalisation_keeps_the_statistics_that_its_name_says(norm: Any) -> None:
    spec = FewShotSpec((1, 16, 16), 3, "classification")
    config = MAMLConfig(num_inner_steps=2, num_eval_steps=2, norm=norm, num_filters=4, inner_lr=0.1)
    learner = config.build(spec, CPU, 0)
    x = torch.rand(2, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
    y = torch.arange(3).repeat(2).expand(2, 6)
    batch = TaskBatch(Examples(x, y), Examples(x + 1, y))
    (first,) = [part for name, part in learner.module.named_modules() if name == "body.1"]
    assert isinstance(first, TaskNorm)
    convolution = learner.module.body[0]  # type: ignore[union-attr, index]
    with torch.no_grad():
        maps = [convolution(part.flatten(0, 1)).view(2, 6, 4, 16, 16) for part in (x, x + 1)]  # type: ignore[operator]
    learner.seed(0)
    learner.meta_update(batch)
    if norm == "transductive":
        assert not dict(learner.module.named_buffers())
    else:
        # Of each task, then their mean; momentum 0.1 from a mean of 0 on.
        expected = 0.1 * maps[0].mean((1, 3, 4)).mean(0)
        running = first.running_mean[0] if norm == "per-step" else None
        if running is not None:
            torch.testing.assert_close(running, expected, rtol=1e-4, atol=1e-5)
            assert not torch.equal(first.running_mean[0], first.running_mean[2])
            assert first.weight.shape == (3, 4)
        else:
            assert (first.running_mean != 0).all()
    # What leaks: the prediction of one query may depend on the others in transductive normalisation alone.
    state = learner.adapt(learner.begin(2), batch.support)
    alone, together = learner.predict(state, x[:, :1]), learner.predict(state, x)[:, :1]
    assert torch.allclose(alone, together, atol=1e-5) == (norm != "transductive")


def _with_batch_norm(norm: Any) -> MAML:
    spec = FewShotSpec((1, 16, 16), 3, "classification")
    config = MAMLConfig(num_inner_steps=2, num_eval_steps=2, num_filters=4, inner_lr=0.1)
    if norm == "torch":
        layers = [nn.Flatten(), nn.Linear(256, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)]
        return MAML(spec, CPU, config, nn.Sequential(*layers), 0.1)
    return dataclasses.replace(config, norm=norm).build(spec, CPU, 0)


@pytest.mark.parametrize("norm", ["running", "per-step", "torch"])
def test_evaluation_adapts_by_the_statistics_that_training_adapts_by(norm: str) -> None:
    learner = _with_batch_norm(norm)
    x = torch.rand(2, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
    support = Examples(x, torch.arange(3).repeat(2).expand(2, 6))
    learner.seed(0)
    learner.meta_update(TaskBatch(support, support))
    buffers = {name: value.clone() for name, value in learner.module.named_buffers()}
    learner.seed(0)
    found = learner.adapt(learner.begin(2), support).model.params
    for part in learner.module.modules():
        part.training = not isinstance(part, nn.Dropout)
    learner.seed(0)
    with torch.no_grad():
        expected = learner.step(learner.begin(2), support, second_order=False).model.params
    learner.module.eval()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    # By the averages over training, which are not those of this support set, it would be another step.
    by_averages = learner.step(learner.begin(2), support, second_order=False).model.params
    assert any(not torch.allclose(found[name], value, atol=1e-4) for name, value in by_averages.items())
    assert all(torch.equal(value, buffers[name]) for name, value in learner.module.named_buffers())
    assert not any(part.training for part in learner.module.modules())


def test_a_single_value_of_each_channel_is_refused_as_by_torch() -> None:
    learner = MAMLConfig(num_filters=4, downsample="stride").build(
        FewShotSpec((1, 16, 16), 3, "classification"), CPU, 0
    )
    with pytest.raises(ValueError, match="one value of each channel has no statistics"):
        learner.predict(learner.begin(2), torch.rand(2, 1, 1, 16, 16))


class _Recurrent(nn.Module):
    """A network that vmap cannot run, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 4, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x[:, None])
        out: Tensor = self.head(self.dropout(hidden[:, -1]))
        return out


def recurrent(input_shape: tuple[int, ...], num_outputs: int | None) -> nn.Module:
    """A backbone of one's own."""
    return _Recurrent()


@pytest.mark.filterwarnings("ignore:vmap cannot run")
def test_recurrent_networks_with_dropout_run_task_by_task_and_keep_the_contract() -> None:
    name = f"{__name__}:recurrent"
    check_learner(MAMLConfig(backbone=name, num_inner_steps=1, num_eval_steps=2), Sinusoid(), EpisodeConfig(1, 4, 4))
    learner = MAMLConfig(backbone=name, num_inner_steps=1).build(Sinusoid().spec(EpisodeConfig(1, 4, 4)), CPU, 0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        batch = Sinusoid().sample("train", 3, EpisodeConfig(1, 4, 4), np.random.default_rng(0))
        for _ in range(3):
            learner.seed(0)
            learner.meta_update(batch)
    assert sum("vmap cannot run" in str(warning.message) for warning in told) <= 1


def test_frozen_layers_stay_as_they_are() -> None:
    module = _module()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    learner = MAML(SPEC, CPU, MAMLConfig(num_inner_steps=2), module, 0.3)
    learner.seed(0)
    learner.meta_update(_batch())
    assert torch.equal(module[0].weight, before)
    assert sorted(learner.begin(2).model.params) == ["2.bias", "2.weight"]


def test_anil_names_the_parameters_if_there_is_no_head() -> None:
    with pytest.raises(ConfigError, match=r"head = 'top'; the network has 0\.weight, 0\.bias"):
        ANILConfig(head="top").adapted_names(trainable(_module()))


def test_an_unroll_that_does_not_divide_the_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of unroll, got 100 and 30"):
        LearnedOptimiserConfig(unroll=30)


def _train(learner: Any, tasks: Any, episode: EpisodeConfig, iterations: int, meta_batch_size: int = 25) -> None:
    for iteration in range(iterations):
        batch = tasks.sample(
            "train", meta_batch_size, learner.training_episode(episode), np.random.default_rng(iteration)
        )
        learner.seed(iteration)
        learner.meta_update(batch)


@pytest.mark.parametrize("name", ["maml", "fomaml", "meta-sgd", "reptile"])
def test_sinusoids_are_learned_from_ten_points(name: str) -> None:
    """Before adaptation nothing is better than zero, with an error of about 4.

    The step sizes that Meta-SGD learns are for as many steps as it trains with; others diverge on some tasks.
    """
    settings: dict[str, Any] = {"num_inner_steps": 5, "num_eval_steps": 10, "inner_lr": 0.02, "meta_lr": 5e-3}
    if name == "meta-sgd":
        settings |= {"meta_lr": 2e-3, "num_inner_steps": 1, "num_eval_steps": 1}
    if name == "reptile":
        settings |= {"inner_rule": "sgd", "inner_batch_size": 0, "meta_lr": 1.0, "num_inner_steps": 10}
    learner = LEARNERS[name](**settings)
    built = learner.build(Sinusoid().spec(EpisodeConfig(1, 10, 10)), CPU, 1)
    _train(built, Sinusoid(), EpisodeConfig(1, 10, 10), 400)
    batch = Sinusoid().sample("test", 200, EpisodeConfig(1, 10, 10), np.random.default_rng(10**6))
    built.seed(0)
    scores = score_batch(built, batch, built.num_eval_adaptations).mean(0)
    assert scores[0] > 2.5
    assert scores[-1] < 1.3


def test_a_learned_optimiser_descends_on_quadratics_faster_than_gradient_descent() -> None:
    tasks, episode = Quadratic(), Quadratic.default_episode
    config = LearnedOptimiserConfig(backbone="linear", num_inner_steps=40, num_eval_steps=40, meta_lr=1e-2)
    learner = config.build(tasks.spec(episode), CPU, 1)
    _train(learner, tasks, episode, 40, 64)
    batch = tasks.sample("test", 100, episode, np.random.default_rng(10**6))
    learner.seed(0)
    learned = score_batch(learner, batch, 40).mean(0)

    def descent(rate: float) -> Tensor:
        maml = MAML(tasks.spec(episode), CPU, MAMLConfig(), copy.deepcopy(learner.module), rate)
        nn.init.zeros_(next(iter(maml.module.parameters())))
        return score_batch(maml, batch, 40).mean(0)

    best = min(float(curve[-1]) for rate in (0.003, 0.01, 0.02, 0.03) if (curve := descent(rate)).isfinite().all())
    assert learned[0] == pytest.approx(10.0, rel=0.25)
    assert learned[-1] < best
