"""Both inner losses, and the value at the horizon, against the float64 loop over tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers.arms import arms
from helpers.reference_maml import BOX, CPU, DISCRETE, PRODUCT, Reference, capture, random_trial, randomise
from helpers.reference_rules import RuleReference, ravi, spread

from metarl.agents import AGENTS
from metarl.agents.anil import ANILConfig
from metarl.agents.common.gradient_agent import GradientConfig
from metarl.agents.maml import MAMLTRPOConfig, TrustRegionConfig
from metarl.agents.meta_sgd import MetaSGDConfig
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.types import Spec

SETTINGS: dict[str, Any] = {
    "hidden_sizes": (5,),
    "inner_lr": 0.3,
    "discount": 0.9,
    "gae_lambda": 0.8,
    "num_inner_steps": 2,
    "task_chunk": 2,
    "cg_iterations": 4,
    "inner_objective": "log_likelihood",
    "bootstrap_at_horizon": False,
}
KINDS: dict[str, tuple[type[TrustRegionConfig], tuple[str, ...] | None]] = {
    "maml-trpo": (MAMLTRPOConfig, None),
    "anil": (ANILConfig, ("w1", "b1")),
    "meta-sgd": (MetaSGDConfig, None),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spec", [DISCRETE, BOX, PRODUCT], ids=["categorical", "gaussian", "product"])
@pytest.mark.parametrize("name", KINDS)
def test_gradient_fisher_product_and_step_of_the_log_likelihood_equal_the_reference(
    name: str, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the products with Hessians; ratio, first order and a bootstrapped end would each be seen."""
    kind, adapting = KINDS[name]
    trial = random_trial(spec, 2)
    agent = randomise(kind(**SETTINGS).build(spec, CPU, 0))
    reference = Reference(agent, trial, adapting)
    expected, (parameters, loss, kl, _) = reference.gradient(), reference.step()
    before = reference.surrogate(reference.start).item()
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - expected).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() < 1e-8
    assert (agent.meta_gradient.current() - parameters).abs().max() < 1e-8
    assert loss < before and 0 < kl <= 0.01
    for change in ({"inner_objective": "ratio"}, {"first_order": True}, {"bootstrap_at_horizon": True}):
        reference.config = dataclasses.replace(agent.config, **change)  # type: ignore[arg-type]
        reference.load(trial)
        assert (reference.gradient() - expected).abs().max() > 1e-5, change


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("first_order", [True, False])
def test_a_learned_rule_sees_the_gradient_of_the_log_likelihood(
    first_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the graph of all steps."""
    trial = random_trial(BOX, 2)
    agent = MAMLTRPOConfig(**SETTINGS, inner_rule="ravi-lstm", first_order=first_order).build(BOX, CPU, 0)
    spread(randomise(agent).rule)
    reference = RuleReference(agent, trial, ravi)
    expected = reference.gradient()
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - expected).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() < 1e-8
    reference.config = dataclasses.replace(agent.config, inner_objective="ratio")
    assert (reference.gradient() - expected).abs().max() > 1e-5


def test_where_the_policy_acted_both_losses_adapt_alike_and_their_meta_gradients_differ() -> None:
    """First order is the same, second order is not: what ProMP says of the two."""
    distribution = arms(3)
    config = MAMLTRPOConfig(hidden_sizes=(8,), inner_lr=0.5, rollouts_per_task=20)
    configs = (config, dataclasses.replace(config, inner_objective="log_likelihood"))
    # Both arms equally likely, as at first, would give both losses one Hessian.
    ratio, likelihood = (randomise(each.build(distribution.spec, CPU, 0)) for each in configs)
    tasks = distribution.train.sample(4, np.random.default_rng(0))
    trial = run_trial(ratio, Collector(distribution, 20, CPU), tasks, 1, seed=0)
    adapted = [agent.adapt(agent.begin(4), trial.rollouts[0]).params for agent in (ratio, likelihood)]
    assert all(torch.allclose(adapted[0][name], adapted[1][name], atol=1e-6) for name in adapted[0])
    moved = (adapted[0]["b1"] - ratio.begin(4).params["b1"]).abs().max()
    assert moved > 1e-3
    gradients = [agent.meta_update(trial)["gradient_norm"] for agent in (ratio, likelihood)]
    assert abs(gradients[0] - gradients[1]) > 1e-3 * gradients[0]


@pytest.mark.parametrize("name", ["pretrained", "oracle", "reptile"])
def test_agents_that_step_where_they_acted_alone_have_no_choice(name: str) -> None:
    assert "inner_objective" in {field.name for field in dataclasses.fields(AGENTS[name])}
    config = AGENTS[name]()
    assert isinstance(config, GradientConfig) and config.inner_objective == "ratio"
