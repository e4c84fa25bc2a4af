"""MAML-TRPO against the float64 reference, and on a probe task."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers.arms import arms, train
from helpers.reference_maml import (
    BOX,
    CPU,
    DISCRETE,
    NUM_TASKS,
    PRODUCT,
    Reference,
    capture,
    flat,
    random_trial,
    randomise,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import metarl.agents.maml as maml
from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.maml import MAMLTRPOConfig
from metarl.agents.references import PretrainedConfig
from metarl.config import from_dict
from metarl.errors import ConfigError, NonFiniteError
from metarl.evaluation.evaluator import evaluate
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.types import Spec


def build(config: MAMLTRPOConfig, spec: Spec, num_inner_steps: int) -> GradientAgent:
    """An agent with any number of inner steps, none included: what learns without them is called pretrained."""
    if num_inner_steps:
        return randomise(dataclasses.replace(config, num_inner_steps=num_inner_steps).build(spec, CPU, 0))
    return randomise(from_dict(PretrainedConfig, dataclasses.asdict(config)).build(spec, CPU, 0))


SETTINGS = {"hidden_sizes": (5,), "inner_lr": 0.3, "discount": 0.9, "gae_lambda": 0.8, "max_kl": 0.02}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_inner_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("spec", [DISCRETE, BOX, PRODUCT], ids=["categorical", "gaussian", "product"])
def test_meta_gradient_and_kl_hessian_equal_the_reference(
    spec: Spec, num_inner_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact second order: without it the gradient would be off by more than 1e-4, so the comparison can fail."""
    trial = random_trial(spec, num_inner_steps)
    agent = build(MAMLTRPOConfig(**SETTINGS, task_chunk=2), spec, num_inner_steps)
    reference = Reference(agent, trial)
    gradient, vector, image = capture(agent, trial, monkeypatch)
    expected = reference.gradient()
    assert (gradient - expected).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() < 1e-8
    if num_inner_steps:
        reference.config = dataclasses.replace(reference.config, first_order=True)
        assert (reference.gradient() - expected).abs().max() > 1e-4
        assert (reference.product(vector) - image).abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spec", [DISCRETE, BOX, PRODUCT], ids=["categorical", "gaussian", "product"])
def test_first_order_equals_the_reference_with_detached_inner_gradients(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = random_trial(spec, 2)
    agent = build(MAMLTRPOConfig(**SETTINGS, first_order=True), spec, 2)
    reference = Reference(agent, trial)
    parameters = reference.step()[0]
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - reference.gradient()).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() < 1e-8
    assert (flat(agent.policy.parameters()) - parameters).abs().max() < 1e-8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_inner_steps", [1, 2])
@pytest.mark.parametrize("spec", [DISCRETE, BOX, PRODUCT], ids=["categorical", "gaussian", "product"])
def test_first_order_metric_changes_the_products_alone(
    spec: Spec, num_inner_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient keeps its Hessians; the products are those of the KL with inner gradients held constant."""
    trial = random_trial(spec, num_inner_steps)
    agent = build(MAMLTRPOConfig(**SETTINGS, fisher_metric="first_order"), spec, num_inner_steps)
    reference = Reference(agent, trial)
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - reference.gradient()).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() > 1e-4
    reference.config = dataclasses.replace(reference.config, first_order=True)
    assert (image - reference.product(vector)).abs().max() < 1e-8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task_chunk", [0, 1, 2])
@pytest.mark.parametrize("num_inner_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("spec", [DISCRETE, BOX, PRODUCT], ids=["categorical", "gaussian", "product"])
def test_trpo_step_equals_the_reference(spec: Spec, num_inner_steps: int, task_chunk: int) -> None:
    """Accepted parameters, loss, KL and number of trials; the step is real, and its KL inside the radius."""
    trial = random_trial(spec, num_inner_steps, seed=num_inner_steps)
    agent = build(MAMLTRPOConfig(**SETTINGS, task_chunk=task_chunk), spec, num_inner_steps)
    reference = Reference(agent, trial)
    before = flat(agent.policy.parameters())
    parameters, loss, kl, trials = reference.step()
    metrics = agent.meta_update(trial)
    assert (flat(agent.policy.parameters()) - parameters).abs().max() < 1e-8
    assert abs(metrics["loss"] - reference.surrogate(reference.start).item()) < 1e-8
    assert abs(metrics["loss"] - metrics["improvement"] - loss) < 1e-8
    assert abs(metrics["kl"] - kl) < 1e-8
    assert metrics["line_search_trials"] == trials
    assert (parameters - before).abs().max() > 1e-3 and 0 < kl <= 0.02 and metrics["improvement"] > 0


@pytest.mark.usefixtures("float64")
def test_line_search_that_backtracks_equals_the_reference() -> None:
    """A radius far beyond the quadratic model's validity: the first trials break the KL and are refused."""
    trial = random_trial(DISCRETE, 1)
    agent = build(MAMLTRPOConfig(**SETTINGS | {"max_kl": 2.0, "inner_lr": 1.0}), DISCRETE, 1)
    parameters, _, _, trials = Reference(agent, trial).step()
    assert 1 < trials < 15
    metrics = agent.meta_update(trial)
    assert metrics["line_search_trials"] == trials
    assert (flat(agent.policy.parameters()) - parameters).abs().max() < 1e-8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spec", [DISCRETE, BOX, PRODUCT], ids=["categorical", "gaussian", "product"])
def test_meta_gradient_at_zero_inner_lr_is_the_plain_policy_gradient(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = random_trial(spec, 2)
    agent = build(MAMLTRPOConfig(**SETTINGS | {"inner_lr": 1e-300}), spec, 2)
    reference = Reference(agent, trial)
    losses = [reference.loss(reference.start, samples[-1]) for samples in reference.tasks]
    plain = flat(torch.autograd.grad(torch.stack(losses).mean(), reference.start))
    gradient, _, _ = capture(agent, trial, monkeypatch)
    assert (gradient - plain).abs().max() < 1e-10


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spec", [DISCRETE, BOX, PRODUCT], ids=["categorical", "gaussian", "product"])
def test_adapt_equals_the_reference_and_is_what_the_meta_update_differentiates(spec: Spec) -> None:
    trial = random_trial(spec, 3)
    agent = build(MAMLTRPOConfig(**SETTINGS), spec, 3)
    reference = Reference(agent, trial)
    state = agent.begin(NUM_TASKS)
    for rollout in trial.rollouts[:-1]:
        state = agent.adapt(state, rollout)
    for task, samples in enumerate(reference.tasks):
        expected = reference.adapt(reference.start, samples)
        for (name, value), want in zip(state.params.items(), expected, strict=True):
            assert (value[task] - want).abs().max() < 1e-10, name


# The device -----------------------------------------------------------------------------------------------------------


class NoHost(TorchDispatchMode):
    """Refuses whatever makes the host wait for a device: tensors read as numbers, and shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse or run."""
        masked = func.name() == "aten::index.Tensor" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masked or func.name() in ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero"):
            raise AssertionError(f"{func.name()} waits for the device.")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("metric", ["full", "first_order"])
def test_conjugate_gradient_never_waits_for_the_device(
    metric: Literal["full", "first_order"], stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = maml.conjugate_gradient, []

    def watched(product: Any, b: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
        with NoHost():
            calls.append(num_iterations)
            return original(product, b, num_iterations)

    monkeypatch.setattr(maml, "conjugate_gradient", watched)
    config = MAMLTRPOConfig(hidden_sizes=(5,), fisher_metric=metric, fisher_stride=stride)
    metrics = build(config, BOX, 2).meta_update(random_trial(BOX, 2))
    assert calls == [10] and metrics["accepted"] == 1


@pytest.mark.parametrize("read", [float, bool, lambda x: x.item(), lambda x: x[x > 0], lambda x: torch.equal(x, x)])
def test_the_watch_over_conjugate_gradient_sees_what_waits(read: Any) -> None:
    number = torch.ones(1)
    with NoHost(), pytest.raises(AssertionError, match="waits"):
        read(number)


@pytest.mark.cuda
def test_conjugate_gradient_never_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same by PyTorch's own watch, which sees synchronisation inside kernels' wrappers as well."""
    original = maml.conjugate_gradient

    def watched(product: Any, b: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(product, b, num_iterations)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(maml, "conjugate_gradient", watched)
    device = torch.device("cuda")
    config = MAMLTRPOConfig(hidden_sizes=(5,))
    trial = random_trial(BOX, 1)
    trial = dataclasses.replace(trial, rollouts=tuple(rollout.to(device) for rollout in trial.rollouts))
    assert config.build(BOX, device, 0).meta_update(trial)["loss"] != 0


# With environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_pulls", [1, 3])
def test_adapted_policy_pulls_the_best_arm_although_nothing_but_the_reward_tells_it(num_pulls: int) -> None:
    """Before meta-training one gradient step is too small to matter; after it 95 % of the pulls are right.

    The search must reach short steps: the observation is constant, so that the Fisher matrix is nearly singular and
    its quadratic model far too bold. Within 15 trials of 0.8 none is accepted, and nothing is ever learned.
    """
    distribution = arms(num_pulls)
    config = MAMLTRPOConfig(hidden_sizes=(16,), inner_lr=0.5, rollouts_per_task=20, max_kl=0.05, backtrack_ratio=0.5)
    agent = config.build(distribution.spec, CPU, 0)

    def shares() -> Any:
        found = evaluate(agent, distribution, num_tasks=100, num_adaptations=1, seed=1)
        return found.returns.mean(0) / num_pulls

    assert shares()[1] < 0.8
    train(agent, distribution, 15, 20)
    before, after = shares()
    assert 0.35 < before < 0.65 and after >= 0.95, (before, after)


def test_acting_and_recomputing_agree_after_every_adaptation() -> None:
    """What the collector recorded is what the adapted parameters say about it, to float32 rounding."""
    distribution = arms(3)
    agent = MAMLTRPOConfig(hidden_sizes=(8,), inner_lr=2.0, num_inner_steps=2).build(distribution.spec, CPU, 0)
    tasks = distribution.train.sample(4, np.random.default_rng(0))
    trial = run_trial(agent, Collector(distribution, 20, CPU), tasks, 2, seed=0)
    state = agent.begin(4)
    for rollout in trial.rollouts:
        for t in range(3):
            policy = agent.policy.distribution(state.params, rollout.obs[:, :, t])
            assert (policy.log_prob(rollout.actions[:, :, t]) - rollout.log_probs[:, :, t]).abs().max() < 1e-5
        state = agent.adapt(state, rollout)
    assert (trial.rollouts[0].log_probs[:, :, 0] - trial.rollouts[2].log_probs[:, :, 0]).abs().max() > 0.1


def test_steps_beyond_those_trained_are_shortened_by_the_factor() -> None:
    rollout = random_trial(BOX, 0).rollouts[0]
    moves = []
    for num_inner_steps in (1, 2):
        agent = build(MAMLTRPOConfig(hidden_sizes=(5,), num_inner_steps=num_inner_steps), BOX, num_inner_steps)
        first = agent.adapt(agent.begin(NUM_TASKS), rollout)
        second = agent.adapt(first, rollout)
        moves.append(second.params["w0"] - first.params["w0"])
    assert torch.allclose(moves[0], 0.5 * moves[1], atol=1e-6)
    assert moves[1].abs().max() > 1e-3


def test_update_that_no_reward_supports_keeps_the_parameters() -> None:
    """All rewards zero: the gradient vanishes, no step is better, and nothing becomes NaN."""
    agent = build(MAMLTRPOConfig(hidden_sizes=(5,)), DISCRETE, 1)
    trial = random_trial(DISCRETE, 1)
    rollouts = tuple(dataclasses.replace(r, rewards=torch.zeros_like(r.rewards)) for r in trial.rollouts)
    before = flat(agent.policy.parameters())
    metrics = agent.meta_update(dataclasses.replace(trial, rollouts=rollouts))
    assert torch.equal(flat(agent.policy.parameters()), before)
    assert metrics["improvement"] == 0 and metrics["kl"] == 0


def test_non_finite_meta_gradient_is_refused_before_a_parameter_changes() -> None:
    agent = build(MAMLTRPOConfig(hidden_sizes=(5,)), DISCRETE, 1)
    trial = random_trial(DISCRETE, 1)
    trial.rollouts[1].rewards[0, 0, 0] = float("nan")
    before = flat(agent.policy.parameters())
    with pytest.raises(NonFiniteError, match="meta-gradient"):
        agent.meta_update(trial)
    assert torch.equal(flat(agent.policy.parameters()), before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("inner_lr", 0.0),
        ("num_inner_steps", 0),
        ("rollouts_per_task", -1),
        ("max_kl", float("nan")),
        ("discount", 1.5),
        ("backtrack_ratio", 2.0),
        ("task_chunk", -1),
        ("hidden_sizes", (10, 0)),
    ],
)
def test_impossible_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"MAMLTRPOConfig\.{field} must .*{value}".replace("(10, 0)", r"\(10, 0\)")):
        MAMLTRPOConfig(**{field: value})


def test_unknown_metric_is_refused_with_the_choices() -> None:
    message = r"fisher_metric must be one of full, first_order, got 'first-order'\. Did you mean 'first_order'"
    with pytest.raises(ConfigError, match=message):
        MAMLTRPOConfig(fisher_metric="first-order")  # type: ignore[arg-type]
