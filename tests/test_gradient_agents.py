"""Every entry of AGENTS keeps the contract of Agent; every gradient-based one learns to adapt."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from helpers.arms import arms, train
from helpers.reference_maml import BOX, CPU, random_trial
from torch import Tensor

from metarl.adaptation import Params, UpdateRule
from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.agents.common.gradient_agent import GradientConfig, OuterUpdate
from metarl.agents.common.meta_gradient import Batch, MetaGradient, loss_after_adaptation
from metarl.evaluation.evaluator import evaluate
from metarl.networks.policy import Policy
from metarl.testing import check_agent

SMALL: dict[str, Any] = {
    "hidden_sizes": (8,),
    "hidden_size": 8,
    "rollouts_per_task": 4,
    "episodes_per_trial": 2,
    "num_epochs": 2,
}
"""Sizes for quick checks, of whichever agent has the setting."""


def small(name: str, **settings: Any) -> AgentConfig:
    config = AGENTS[name]
    fields = {field.name for field in dataclasses.fields(config)}
    return config(**{key: value for key, value in SMALL.items() if key in fields} | settings)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_keeps_the_contract(name: str) -> None:
    """With discrete and with box actions; acting, adapting, evaluation, seeds and checkpoints."""
    check_agent(small(name))


@pytest.mark.parametrize("name", ["e-maml", "meta-sgd", "promp"])
def test_agents_that_keep_more_than_a_policy_keep_the_contract_with_two_inner_steps(name: str) -> None:
    more = {"adaptive_kl": True} if name == "promp" else {}
    check_agent(small(name, num_inner_steps=2, **more))


class Momentum(UpdateRule):
    """Heavy ball with a learned decay."""

    def __init__(self, inner_lr: float) -> None:
        super().__init__()
        self.inner_lr = inner_lr
        self.decay = torch.nn.Parameter(torch.tensor(0.5))

    def init(self, params: Params) -> Params:
        return {name: torch.zeros_like(value) for name, value in params.items()}

    def step(self, state: Params, params: Params, grads: Params, losses: Tensor) -> tuple[Params, Params]:
        velocity = {name: self.decay * state[name] + grads[name] for name in params}
        return {name: value - self.inner_lr * velocity[name] for name, value in params.items()}, velocity


class PlainDescent:
    """One step of gradient descent on the loss after adaptation."""

    def __init__(self, meta: MetaGradient) -> None:
        self.meta = meta

    def components(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        return {}

    def __call__(self, batches: list[Batch]) -> dict[str, float]:
        chunk = self.meta.linearise(batches, loss_after_adaptation)
        self.meta.assign(self.meta.current() - 0.1 * chunk.gradient)
        return {"loss": float(chunk.loss)}


@dataclasses.dataclass(frozen=True)
class OwnConfig(GradientConfig):
    """An algorithm of one's own: a rule, and an outer update."""

    def make_rule(self, policy: Policy) -> UpdateRule:
        return Momentum(self.inner_lr)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        return PlainDescent(meta)


def test_an_algorithm_of_ones_own_is_a_rule_and_an_outer_update() -> None:
    """It keeps the contract, and its update moves the rule's parameter as well."""
    config = OwnConfig(hidden_sizes=(8,), rollouts_per_task=4, num_inner_steps=2)
    check_agent(config)
    agent = config.build(BOX, CPU, 0)
    before = {name: value.detach().clone() for name, value in agent.meta_gradient.meta_parameters().items()}
    agent.meta_update(random_trial(BOX, 2))
    after = agent.meta_gradient.meta_parameters()
    assert "rule.decay" in after and all((after[name] - value).abs().max() > 0 for name, value in before.items())


@pytest.mark.parametrize("name", AGENTS)
def test_what_a_config_inherits_is_abstract(name: str) -> None:
    """No algorithm's settings are another's with changes, and nothing concrete is said twice."""
    *bases, base = [kind for kind in AGENTS[name].__mro__[1:] if issubclass(kind, AgentConfig)]
    assert base is AgentConfig and len(bases) <= 2
    assert all(inspect.isabstract(kind) for kind in bases)
    own = {key for key, value in vars(AGENTS[name]).items() if callable(value) and not key.startswith("__")}
    for kind in bases:
        assert all(getattr(vars(kind)[key], "__isabstractmethod__", False) for key in own & vars(kind).keys())


TRPO: dict[str, Any] = {"max_kl": 0.05, "backtrack_ratio": 0.5}
PROBES: dict[str, tuple[dict[str, Any], int]] = {
    "maml-ppo": ({"meta_lr": 0.03}, 10),
    "promp": ({"meta_lr": 0.03}, 10),
    "e-maml": (TRPO, 15),
    "fomaml": (TRPO, 10),
    "anil": (TRPO, 10),
    "meta-sgd": (TRPO, 10),
}
"""Settings and iterations."""


def shares(name: str, settings: dict[str, Any], num_iterations: int, num_steps: int) -> tuple[list[float], list[float]]:
    """Share of pulls of the best arm by gradient step, before and after meta-training, on 100 tasks."""
    distribution = arms(num_pulls=3)
    sizes = {"hidden_sizes": (16,), "inner_lr": 0.5, "rollouts_per_task": 20}
    agent = small(name, **sizes | settings).build(distribution.spec, CPU, 0)

    def by_step() -> list[float]:
        found = evaluate(agent, distribution, num_tasks=100, num_adaptations=num_steps, seed=1)
        return list(found.returns.mean(0) / 3)

    before = by_step()
    train(agent, distribution, num_iterations, 20)
    return before, by_step()


@pytest.mark.parametrize("name", PROBES)
def test_adapted_policy_pulls_the_best_arm_although_nothing_but_the_reward_tells_it(name: str) -> None:
    """One gradient step is too small to matter before meta-training; after it 95 % of the pulls are right."""
    settings, num_iterations = PROBES[name]
    before, after = shares(name, settings, num_iterations, 1)
    assert before[1] < 0.8
    assert 0.35 < after[0] < 0.65 and after[1] >= 0.95, after


def test_reptile_learns_to_adapt_although_its_tasks_pull_in_opposite_directions() -> None:
    """After 40 iterations 95 % of the pulls after one step are right, as for the others.

    Reptile's move is, to first order in the inner step size, the gradient of joint training, which is zero here: what
    one arm's tasks do to the policy, the other's undo. What is left is of second order, the growth of the inner product
    between one task's gradients on two rollouts (Nichol et al., section 5.1), hence larger gradients and longer steps.
    It needs larger inner steps and more iterations than MAML: with inner steps of 0.5 as above, 20 iterations of whole
    moves change nothing, and 40 reach 97 % after three steps but 73 % after one.
    """
    before, after = shares("reptile", {"inner_lr": 1.0}, 40, 1)
    assert before[1] < 0.8
    assert 0.35 < after[0] < 0.65 and after[1] >= 0.95, after
