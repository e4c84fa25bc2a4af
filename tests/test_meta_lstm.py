"""Agents with a learned update rule, against a float64 loop over tasks and coordinates."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.arms import arms, train
from helpers.reference_maml import BOX, CPU, DISCRETE, NUM_TASKS, capture, flat, meta_vector, random_trial, randomise
from helpers.reference_rules import RuleReference, Step, andrychowicz, ravi, spread
from test_promp import ClippedReference
from torch import Tensor

from metarl.adaptation import AndrychowiczLSTM, inner_loop
from metarl.agents import (
    AGENTS,
    ANILConfig,
    FOMAMLConfig,
    GradientConfig,
    MAMLPPOConfig,
    MAMLTRPOConfig,
    MetaLSTMConfig,
    MetaSGDConfig,
    OracleConfig,
    PretrainedConfig,
    ProMPConfig,
    ReptileConfig,
)
from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.maml import TrustRegionConfig
from metarl.agents.maml_ppo import ClippedConfig
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.networks.params import stack
from metarl.runs.checkpoint import load, save
from metarl.testing import check_agent
from metarl.types import Spec, Trial

RULES = ("ravi-lstm", "andrychowicz-lstm")
SETTINGS: dict[str, Any] = {"hidden_sizes": (3,), "inner_lr": 0.3, "discount": 0.9, "gae_lambda": 0.8}
CLIPPED: dict[str, Any] = {"meta_lr": 0.01, "num_epochs": 2, "clip_range": 0.5}
TRUST_REGION: dict[str, type[TrustRegionConfig]] = {
    "maml-trpo": MAMLTRPOConfig,
    "fomaml": FOMAMLConfig,
    "anil": ANILConfig,
    "meta-lstm": MetaLSTMConfig,
}


def built(config: GradientConfig, spec: Spec) -> GradientAgent:
    agent = config.build(spec, CPU, 0)
    assert isinstance(agent, GradientAgent)
    spread(randomise(agent).rule)
    return agent


def plain(agent: GradientAgent) -> Step:
    return andrychowicz(0.3, 0.1) if isinstance(agent.rule, AndrychowiczLSTM) else ravi


class ClippedRuleReference(RuleReference, ClippedReference):
    """Epochs of Adam on the clipped loss after adaptation by a learned rule."""

    def __init__(self, agent: GradientAgent, trial: Trial, step: Step, kl_coef: float) -> None:
        self.kl_coef = kl_coef
        self.moments = (torch.zeros(()), torch.zeros(()))
        self.num_steps = 0
        RuleReference.__init__(self, agent, trial, step)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "spec"), [("maml-trpo", DISCRETE), ("fomaml", BOX), ("anil", BOX), ("meta-lstm", DISCRETE)]
)
@pytest.mark.parametrize("rule", RULES)
def test_gradient_and_fisher_product_equal_the_reference(
    rule: Any, name: str, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With respect to initial parameters and rule, second and first order, two steps; all of these parts are real."""
    trial = random_trial(spec, 2)
    config = TRUST_REGION[name](**SETTINGS, inner_rule=rule, num_inner_steps=2, task_chunk=2)
    agent = built(config, spec)
    reference = RuleReference(agent, trial, plain(agent))
    expected = reference.gradient()
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - expected).abs().max() < 1e-8 * (1 + expected.abs().max())
    product = reference.product(vector)
    assert (image - product).abs().max() < 1e-8 * (1 + product.abs().max())
    size = sum(value.numel() for value in agent.policy.parameters())
    for part in (expected[:size], expected[size:], product[:size], product[size:]):
        assert part.abs().max() > 1e-3
    if name == "maml-trpo":
        reference.config = dataclasses.replace(reference.config, first_order=True)
        dropped = reference.gradient()
        assert (dropped - expected)[:size].abs().max() > 1e-4
        assert (dropped - expected)[size:].abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", RULES)
def test_meta_lstm_takes_the_trpo_step_of_the_reference(rule: Any) -> None:
    """Accepted parameters of policy and rule, the loss after it and its KL; both parts move."""
    trial = random_trial(BOX, 1)
    agent = built(MetaLSTMConfig(**SETTINGS, inner_rule=rule, cg_iterations=4), BOX)
    start, reference = meta_vector(agent), RuleReference(agent, trial, plain(agent))
    parameters, loss, kl, trials = reference.step()
    metrics = agent.meta_update(trial)
    assert (meta_vector(agent) - parameters).abs().max() < 1e-8
    assert abs(metrics["loss"] - metrics["improvement"] - loss) < 1e-8 and abs(metrics["kl"] - kl) < 1e-8
    assert metrics["line_search_trials"] == trials and 0 < kl <= 0.01
    size = len(flat(agent.policy.parameters()))
    assert (parameters - start)[:size].abs().max() > 1e-4 and (parameters - start)[size:].abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (MAMLPPOConfig(**SETTINGS, **CLIPPED, first_order=True), DISCRETE),
        (ProMPConfig(**SETTINGS, **CLIPPED, kl_coef=1.0), BOX),
    ],
    ids=["first-order-maml-ppo", "promp"],
)
def test_two_clipped_updates_equal_the_reference(config: ClippedConfig, spec: Spec, rule: Any) -> None:
    """First and second order; ProMP's loss depends on the policies before adaptation as well."""
    config = dataclasses.replace(config, inner_rule=rule, num_inner_steps=2, task_chunk=2)
    agent = built(config, spec)
    start = meta_vector(agent)
    coefficient = config.kl_coef if isinstance(config, ProMPConfig) else 0.0
    reference = ClippedRuleReference(agent, random_trial(spec, 2), plain(agent), coefficient)
    for seed in range(2):
        trial = random_trial(spec, 2, seed)
        reference.load(trial)
        losses = reference.update()
        metrics = agent.meta_update(trial)
        assert (meta_vector(agent) - flat(reference.start)).abs().max() < 1e-8
        assert abs(metrics["loss"] - losses[0]) < 1e-8
        assert abs(metrics["improvement"] - (losses[0] - losses[-1])) < 1e-8
    moved = (meta_vector(agent) - start).abs()
    assert moved[: len(flat(agent.policy.parameters()))].max() > 1e-2
    assert moved[len(flat(agent.policy.parameters())) :].max() > 1e-2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", RULES)
def test_adapt_takes_the_steps_that_the_meta_update_differentiates(rule: Any) -> None:
    """Three of them: the rule's state goes from rollout to rollout; a state that began anew would end elsewhere."""
    agent = built(MetaLSTMConfig(**SETTINGS, inner_rule=rule, num_inner_steps=3), BOX)
    trial = random_trial(BOX, 3)
    reference = RuleReference(agent, trial, plain(agent))
    state, forgetful = agent.begin(NUM_TASKS), agent.begin(NUM_TASKS)
    for rollout in trial.rollouts[:-1]:
        state = agent.adapt(state, rollout)
        forgetful = agent.adapt(dataclasses.replace(forgetful, rule_state=None), rollout)
    for task, samples in enumerate(reference.tasks):
        for (key, value), want in zip(state.params.items(), reference.adapt(reference.start, samples), strict=True):
            assert (value[task] - want).abs().max() < 1e-8, key
    assert max(float((value - forgetful.params[key]).abs().max()) for key, value in state.params.items()) > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("config", [MetaLSTMConfig, MAMLPPOConfig, ANILConfig])
def test_an_untrained_rule_takes_the_step_of_gradient_descent(config: Any, rule: Any) -> None:
    """But for Ravi's forget gate, which shrinks what adapts by 3 parts in 10,000."""
    learned = config(**SETTINGS, inner_rule=rule).build(BOX, CPU, 0)
    untrained = copy.deepcopy(learned.rule.state_dict())
    randomise(learned).rule.load_state_dict(untrained)
    kind = ANILConfig if config is ANILConfig else MAMLPPOConfig
    descent = randomise(kind(**SETTINGS).build(BOX, CPU, 0))
    rollout = random_trial(BOX, 0).rollouts[0]
    found, expected = (agent.adapt(agent.begin(NUM_TASKS), rollout).params for agent in (learned, descent))
    for key, start in learned.policy.params().items():
        adapts = config is not ANILConfig or key in ("w1", "b1")
        lost = 1 / (1 + math.exp(8)) if rule == "ravi-lstm" and adapts else 0.0
        assert (expected[key] - lost * start - found[key]).abs().max() < 1e-12, key
        assert ((expected[key] - start).abs().max() > 0.01) == adapts


@pytest.mark.usefixtures("float64")
def test_ravis_rule_sees_the_return() -> None:
    """On-policy the inner loss is 0 whatever was earned; larger returns with the same advantages make another step."""
    agent = built(MetaLSTMConfig(**SETTINGS), BOX)
    rollout = random_trial(BOX, 0).rollouts[0]
    meta = agent.meta_gradient
    batch = meta.batch(rollout)
    shift = torch.tensor([0.0, 1.0, -3.0])
    moved = dataclasses.replace(batch, returns=batch.returns + shift)
    assert torch.allclose(meta.signal(moved) - meta.signal(batch), -shift / BOX.horizon)
    start = stack(agent.policy.params(), NUM_TASKS)
    steps = [
        inner_loop(start, [meta.inner_loss(batch)], agent.rule, second_order=False, signals=[meta.signal(part)]).adapted
        for part in (batch, moved)
    ]
    adapted = agent.adapt(agent.begin(NUM_TASKS), rollout).params
    for name, value in steps[0].items():
        assert torch.equal(value, adapted[name])
        gap = (value - steps[1][name]).abs().flatten(1).amax(1)
        assert gap[0] == 0 and (gap[1:] > 1e-5).all()


@pytest.mark.parametrize("rule", RULES)
def test_steps_beyond_training_are_scaled(rule: Any) -> None:
    agent = built(MetaLSTMConfig(**SETTINGS, inner_rule=rule, extra_step_factor=0.25), BOX)
    rollout = random_trial(BOX, 0).rollouts[0]
    first = agent.adapt(agent.begin(NUM_TASKS), rollout)
    second = agent.adapt(first, rollout)
    unscaled = agent.adapt(dataclasses.replace(first, num_steps=0), rollout)
    for key, value in first.params.items():
        assert torch.allclose(second.params[key] - value, 0.25 * (unscaled.params[key] - value), atol=1e-6)
        assert (unscaled.params[key] - value).abs().max() > 1e-3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["maml-trpo", "maml-ppo", "promp", "e-maml", "fomaml", "anil", "meta-lstm"])
def test_agents_with_a_learned_rule_keep_the_contract(name: str, rule: Any) -> None:
    """Their states hold the rule's memory, and their checkpoints its parameters."""
    small: dict[str, Any] = {"hidden_sizes": (8,), "rollouts_per_task": 4, "num_inner_steps": 2, "inner_rule": rule}
    if name not in ("maml-ppo", "promp"):
        small["max_backtracks"] = 40  # So little data makes the loss so rough that only short steps lower it.
    check_agent(AGENTS[name](**small))


@pytest.mark.parametrize("kind", [MetaSGDConfig, ReptileConfig, PretrainedConfig, OracleConfig])
def test_agents_that_cannot_learn_a_rule_refuse_it(kind: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"{kind.__name__}\.inner_rule must be 'sgd', which is fixed here, got 'ravi-lstm'"
    ):
        kind(inner_rule="ravi-lstm")


def test_unknown_rules_are_refused_with_the_valid_choices() -> None:
    everything = r"MAMLTRPOConfig\.inner_rule must be one of sgd, ravi-lstm, andrychowicz-lstm, got 'lstm'"
    with pytest.raises(ConfigError, match=everything):
        MAMLTRPOConfig(inner_rule="lstm")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"MetaLSTMConfig.* one of ravi-lstm, andrychowicz-lstm, got"):
        MetaLSTMConfig(inner_rule="sgd")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"inner_lr is a gate's initial value, in \(0, 1\), got 1\.0"):
        MetaLSTMConfig(inner_lr=1.0).build(DISCRETE, CPU, 0)


@pytest.mark.parametrize("rule", RULES)
def test_a_checkpoint_holds_the_rule_and_training_goes_on_from_it(rule: Any, tmp_path: Path) -> None:
    config = MetaLSTMConfig(**SETTINGS, inner_rule=rule)
    agent, restored = built(config, BOX), config.build(BOX, CPU, 1)
    agent.meta_update(random_trial(BOX, 1))
    save(tmp_path / "agent.safetensors", agent.state_dict())
    restored.load_state_dict(load(tmp_path / "agent.safetensors"))
    for one in (agent, restored):
        one.meta_update(random_trial(BOX, 1, seed=1))
    assert torch.equal(meta_vector(agent), meta_vector(restored))
    states = [one.adapt(one.begin(NUM_TASKS), random_trial(BOX, 0).rollouts[0]) for one in (agent, restored)]
    assert all(torch.equal(value, states[1].params[key]) for key, value in states[0].params.items())


PROBES: dict[str, dict[str, Any]] = {
    "meta-lstm": {"max_kl": 0.05, "backtrack_ratio": 0.5},
    "promp": {"meta_lr": 0.03, "first_order": True},
    "maml-trpo": {"max_kl": 0.05, "backtrack_ratio": 0.5},
}


def shares(agent: GradientAgent) -> Tensor:
    """Share of pulls of the best arm, before adaptation and after each of four steps, on 100 tasks."""
    found = evaluate(agent, arms(num_pulls=3), num_tasks=100, num_adaptations=4, seed=1)
    return torch.tensor(found.returns.mean(0) / 3)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", PROBES)
def test_a_learned_rule_finds_the_best_arm_in_one_step_and_keeps_to_it(name: str, rule: Any) -> None:
    """Only the reward tells the best arm; training took one step, evaluation takes three more.

    After each of them 95 % of the pulls are right. The untrained rule, gradient descent, is below 80 %.
    """
    distribution = arms(num_pulls=3)
    sizes: dict[str, Any] = {"hidden_sizes": (16,), "inner_lr": 0.5, "rollouts_per_task": 20, "inner_rule": rule}
    agent = AGENTS[name](**sizes, **PROBES[name]).build(distribution.spec, CPU, 0)
    assert isinstance(agent, GradientAgent)
    before = shares(agent)
    train(agent, distribution, 15, 20)
    after = shares(agent)
    assert before[1] < 0.8
    assert 0.35 < after[0] < 0.65 and (after[1:] >= 0.95).all(), after
