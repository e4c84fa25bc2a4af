"""Every entry of AGENTS keeps the contract of Agent; every gradient-based one learns to adapt."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers.arms import arms, train
from helpers.reference_maml import CPU

from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.evaluation.evaluator import evaluate
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
