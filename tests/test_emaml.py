"""E-MAML against a float64 loop over tasks: MAML's objective and the credit of the pre-update actions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.reference_maml import BOX, CPU, DISCRETE, Reference, capture, meta_vector, random_trial, randomise
from torch import Tensor

from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.emaml import EMAMLConfig
from metarl.types import Spec

SETTINGS: dict[str, Any] = {"hidden_sizes": (5,), "inner_lr": 0.3, "discount": 0.9, "gae_lambda": 0.8, "max_kl": 0.02}


class ExplorationReference(Reference):
    """The return after adaptation, standardised over ``groups`` of tasks, weighs every pre-update ratio."""

    groups: tuple[tuple[int, ...], ...] = ((0, 1, 2),)

    def objective(self, task: int, stages: list[list[Tensor]]) -> Tensor:
        (group,) = (group for group in self.groups if task in group)
        returns = [float(self.tasks[other][-1].mean_return) for other in group]
        mean = sum(returns) / len(returns)
        deviation = (sum((value - mean) ** 2 for value in returns) / len(returns)) ** 0.5
        credit = (float(self.tasks[task][-1].mean_return) - mean) / deviation if deviation else 0.0
        loss = super().objective(task, stages)
        for params, samples in zip(stages[:-1], self.tasks[task][:-1], strict=True):
            loss = loss - (self.ratio(params, samples) * credit).mean()
        return loss


def built(spec: Spec, **changes: Any) -> GradientAgent:
    return randomise(EMAMLConfig(**SETTINGS | changes).build(spec, CPU, 0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task_chunk", [0, 1, 2])
@pytest.mark.parametrize("num_inner_steps", [1, 2])
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
def test_gradient_and_trpo_step_equal_the_reference(
    spec: Spec, num_inner_steps: int, task_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accepted step is real; without the credit, or with one per chunk, the gradient would be another."""
    trial = random_trial(spec, num_inner_steps)
    agent = built(spec, num_inner_steps=num_inner_steps, task_chunk=task_chunk)
    reference = ExplorationReference(agent, trial)
    start, expected, without_credit = meta_vector(agent), reference.gradient(), Reference(agent, trial).gradient()
    parameters, loss, kl, _ = reference.step()
    before = reference.surrogate(reference.start).item()
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - expected).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() < 1e-8
    assert (meta_vector(agent) - parameters).abs().max() < 1e-8
    assert (parameters - start).abs().max() > 1e-3 and 0 < kl <= 0.02
    metrics = built(spec, num_inner_steps=num_inner_steps, task_chunk=task_chunk).meta_update(trial)
    assert abs(metrics["loss"] - before) < 1e-8 and abs(metrics["improvement"] - (before - loss)) < 1e-8
    assert abs(metrics["kl"] - kl) < 1e-8
    assert (without_credit - expected).abs().max() > 1e-3
    reference.groups = ((0, 1), (2,))
    assert (reference.gradient() - expected).abs().max() > 1e-3


@pytest.mark.usefixtures("float64")
def test_the_inner_loss_is_chosen_apart_from_the_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the log-likelihood inside, pre-update actions are still credited by their ratios."""
    trial = random_trial(BOX, 2)
    agent = built(BOX, num_inner_steps=2, inner_objective="log_likelihood")
    expected = ExplorationReference(agent, trial).gradient()
    gradient, _, _ = capture(agent, trial, monkeypatch)
    assert (gradient - expected).abs().max() < 1e-8
    other, _, _ = capture(built(BOX, num_inner_steps=2), trial, monkeypatch)
    assert (other - expected).abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
def test_tasks_of_equal_returns_give_mamls_step() -> None:
    """Nothing to credit, and nothing becomes NaN."""
    trial = random_trial(DISCRETE, 1)
    rewards = trial.rollouts[-1].rewards
    valid = trial.rollouts[-1].valid
    equal = torch.where(valid, rewards - rewards.sum((1, 2), keepdim=True) / valid.sum((1, 2), keepdim=True), 0.0)
    # Whole eighths, so that the sums are equal to the last bit.
    equal = (8 * equal).round() / 8
    first = equal[:, :1, :1] - equal.sum((1, 2), keepdim=True)
    equal = torch.cat([torch.cat([first, equal[:, :1, 1:]], 2), equal[:, 1:]], 1)
    rollouts = (trial.rollouts[0], dataclasses.replace(trial.rollouts[-1], rewards=equal))
    trial = dataclasses.replace(trial, rollouts=rollouts)
    agent = built(DISCRETE)
    parameters = Reference(agent, trial).step()[0]
    agent.meta_update(trial)
    assert (meta_vector(agent) - parameters).abs().max() < 1e-8


def test_pre_update_actions_that_led_to_a_better_adaptation_become_likelier() -> None:
    """With no inner step to speak of and no reward differences within a task, credit alone moves the policy."""
    trial = random_trial(DISCRETE, 1)
    pre, post = trial.rollouts
    first_action = torch.zeros_like(pre.actions)
    first_action[0] = 2
    flat_rewards = post.valid / post.valid.sum(-1, keepdim=True)
    better = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    pre = dataclasses.replace(pre, actions=first_action, log_probs=torch.full_like(pre.log_probs, -1.4))
    trial = dataclasses.replace(
        trial,
        rollouts=(pre, dataclasses.replace(post, rewards=flat_rewards * better, log_probs=-1.4 * post.valid)),
    )
    agent = EMAMLConfig(hidden_sizes=(5,), inner_lr=1e-6, max_kl=0.05).build(DISCRETE, CPU, 0)

    def share() -> float:
        policy = agent.policy.distribution(agent.begin(3).params, pre.obs.flatten(1, 2))
        return policy.log_prob(torch.full_like(pre.actions, 2).flatten(1, 2))[pre.valid.flatten(1)].exp().mean().item()

    before = share()
    agent.meta_update(trial)
    assert share() > before + 0.02
