"""Step sizes of the inner loop: learned (Meta-SGD), none for the body (ANIL); and first-order MAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.reference_maml import (
    BOX,
    CPU,
    DISCRETE,
    NUM_TASKS,
    Reference,
    capture,
    meta_vector,
    random_trial,
    randomise,
)
from torch import Tensor

from metarl.adaptation import StepSizes
from metarl.agents import ANILConfig, FOMAMLConfig, MAMLTRPOConfig, MetaSGDConfig
from metarl.agents.common.gradient_agent import FastWeights, GradientAgent
from metarl.runs.checkpoint import load, save
from metarl.types import Spec

SETTINGS: dict[str, Any] = {"hidden_sizes": (5,), "inner_lr": 0.3, "discount": 0.9, "gae_lambda": 0.8, "max_kl": 0.02}
HEAD = ("w1", "b1")
CASES: dict[str, tuple[type[MAMLTRPOConfig], tuple[str, ...] | None]] = {
    "fomaml": (FOMAMLConfig, None),
    "anil": (ANILConfig, HEAD),
    "meta-sgd": (MetaSGDConfig, None),
}
SPECS = pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])


def built(kind: type[MAMLTRPOConfig], spec: Spec, **changes: Any) -> GradientAgent:
    return randomise(kind(**SETTINGS | changes).build(spec, CPU, 0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task_chunk", [0, 1, 2])
@pytest.mark.parametrize("num_inner_steps", [1, 2])
@SPECS
@pytest.mark.parametrize("name", CASES)
def test_gradient_fisher_product_and_trpo_step_equal_the_reference(
    name: str, spec: Spec, num_inner_steps: int, task_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For Meta-SGD with respect to parameters and every step size; the accepted step is real, its loss and KL agree."""
    kind, adapting = CASES[name]
    trial = random_trial(spec, num_inner_steps)
    agent = built(kind, spec, num_inner_steps=num_inner_steps, task_chunk=task_chunk)
    reference = Reference(agent, trial, adapting)
    assert reference.config.first_order == (name == "fomaml")
    start, expected = meta_vector(agent), reference.gradient()
    parameters, loss, kl, trials = reference.step()
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - expected).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() < 1e-8
    assert (meta_vector(agent) - parameters).abs().max() < 1e-8
    assert (parameters - start).abs().max() > 1e-3 and 0 < kl <= 0.02 and trials <= 15
    metrics = built(kind, spec, num_inner_steps=num_inner_steps, task_chunk=task_chunk).meta_update(trial)
    before = reference.surrogate(reference.start).item()
    assert abs(metrics["loss"] - before) < 1e-8 and abs(metrics["improvement"] - (before - loss)) < 1e-8
    assert abs(metrics["kl"] - kl) < 1e-8 and metrics["improvement"] > 0


@pytest.mark.usefixtures("float64")
@SPECS
def test_each_kin_differs_from_maml(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none of the comparisons above would pass with MAML's own gradient or product."""
    trial = random_trial(spec, 2)
    maml_agent = built(MAMLTRPOConfig, spec, num_inner_steps=2)
    size = len(meta_vector(maml_agent))
    gradient, vector, image = capture(maml_agent, trial, monkeypatch)
    for kind, adapting in CASES.values():
        reference = Reference(built(kind, spec, num_inner_steps=2), trial, adapting)
        other = reference.gradient()
        assert (other[:size] - gradient).abs().max() > 1e-4, kind
        padded = torch.cat([vector, torch.zeros(len(other) - size)])
        assert (reference.product(padded)[:size] - image).abs().max() > 1e-4, kind


@pytest.mark.usefixtures("float64")
@SPECS
def test_step_sizes_have_gradients_and_a_part_in_every_fisher_product(spec: Spec) -> None:
    """Dropping their columns of ``J``, or their rows, would be off by more than 1e-4; every one has a gradient."""
    reference = Reference(built(MetaSGDConfig, spec), random_trial(spec, 1))
    size = sum(p.numel() for p in reference.start[: len(reference.names)])
    gradient = reference.gradient()
    assert len(gradient) == 2 * size and (gradient[size:].abs() > 1e-12).all()
    vector = torch.randn(2 * size, generator=torch.Generator().manual_seed(1))
    whole, without = reference.product(vector), reference.product(vector * (torch.arange(2 * size) < size))
    assert (whole - without)[:size].abs().max() > 1e-4
    assert without[size:].abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
@SPECS
def test_first_order_meta_sgd_has_gradients_of_its_step_sizes(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Hessians are left out: the step sizes still multiply the (constant) inner gradients."""
    trial = random_trial(spec, 2)
    agent = built(MetaSGDConfig, spec, num_inner_steps=2, first_order=True)
    reference = Reference(agent, trial)
    expected = reference.gradient()
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - expected).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() < 1e-8
    assert expected[len(expected) // 2 :].abs().max() > 1e-3


def adapted(agent: GradientAgent, spec: Spec) -> dict[str, Tensor]:
    """Stacked parameters after as many steps as training takes."""
    state = agent.begin(NUM_TASKS)
    for rollout in random_trial(spec, agent.num_adaptations).rollouts[:-1]:
        state = agent.adapt(state, rollout)
    return state.params


@pytest.mark.usefixtures("float64")
@SPECS
@pytest.mark.parametrize("name", CASES)
def test_adapt_takes_the_steps_that_the_meta_update_differentiates(name: str, spec: Spec) -> None:
    kind, adapting = CASES[name]
    agent = built(kind, spec, num_inner_steps=2)
    reference = Reference(agent, random_trial(spec, 2), adapting)
    found = adapted(agent, spec)
    for task, samples in enumerate(reference.tasks):
        for (key, value), want in zip(found.items(), reference.adapt(reference.start, samples), strict=True):
            assert (value[task] - want).abs().max() < 1e-8, key


@pytest.mark.usefixtures("float64")
@SPECS
def test_anil_adapts_the_head_alone_and_meta_learns_the_body_too(spec: Spec) -> None:
    agent = built(ANILConfig, spec, num_inner_steps=2)
    start = {key: value.detach().clone() for key, value in agent.policy.params().items()}
    for key, value in adapted(agent, spec).items():
        moved = (value - start[key]).abs().amax(dim=tuple(range(1, value.dim())))
        assert (moved > 1e-3).all() if key in HEAD else (moved == 0).all(), key
    agent.meta_update(random_trial(spec, 2))
    assert all((value - start[key]).abs().max() > 1e-4 for key, value in agent.policy.params().items())


def test_learned_rates_begin_at_inner_lr_are_scaled_beyond_training_and_move() -> None:
    agent = MetaSGDConfig(**SETTINGS).build(BOX, CPU, 0)
    assert all((rate == 0.3).all() for rate in agent.rule.parameters())
    randomise(agent)
    rollout = random_trial(BOX, 0).rollouts[0]
    first = agent.adapt(agent.begin(NUM_TASKS), rollout)
    second = agent.adapt(first, rollout)
    unscaled = agent.adapt(FastWeights(first.params, 0), rollout)
    for key, rate in agent.rule.named_parameters():
        full, half = unscaled.params[key] - first.params[key], second.params[key] - first.params[key]
        assert torch.allclose(half, 0.5 * full, atol=1e-6) and rate.unique().numel() == rate.numel()
    before = [rate.detach().clone() for rate in agent.rule.parameters()]
    agent.meta_update(random_trial(BOX, 1))
    moved = [(rate - old).abs().max() for rate, old in zip(agent.rule.parameters(), before, strict=True)]
    assert min(moved) > 1e-5


def test_learned_rates_survive_a_checkpoint(tmp_path: Path) -> None:
    agent = built(MetaSGDConfig, BOX)
    agent.meta_update(random_trial(BOX, 1))
    save(tmp_path / "agent.safetensors", agent.state_dict())
    restored = MetaSGDConfig(**SETTINGS).build(BOX, CPU, 1)
    assert any((rate == 0.3).all() for rate in restored.rule.parameters())
    restored.load_state_dict(load(tmp_path / "agent.safetensors"))
    for one in (agent, restored):
        one.meta_update(random_trial(BOX, 1, seed=1))
    assert torch.equal(meta_vector(agent), meta_vector(restored))
    expected = adapted(agent, BOX)
    assert all(torch.equal(value, expected[key]) for key, value in adapted(restored, BOX).items())


def test_fixed_step_sizes_are_no_parameters() -> None:
    """Neither meta-parameters nor part of a checkpoint; a factor scales them all."""
    sizes = StepSizes({"w": torch.zeros(2, 3), "b": torch.zeros(3)}, 0.1, learned=False, adapted=frozenset({"b"}))
    assert not list(sizes.parameters()) and sizes.state_dict() == {}
    assert sizes.values() == {"w": 0.0, "b": 0.1}
    assert sizes.values(0.5) == {"w": 0.0, "b": 0.05}
    assert "rule" not in built(MAMLTRPOConfig, BOX).state_dict()
