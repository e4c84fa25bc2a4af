"""On-policy Reptile against a loop over tasks, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.reference_maml import BOX, CPU, DISCRETE, Reference, flat, meta_vector, random_trial, randomise

from metarl.agents.common.gradient_agent import GradientAgent
from metarl.agents.reptile import ReptileConfig
from metarl.errors import ConfigError, NonFiniteError
from metarl.types import Spec

SETTINGS: dict[str, Any] = {"hidden_sizes": (5,), "inner_lr": 0.3, "discount": 0.9, "gae_lambda": 0.8}


def built(spec: Spec, **changes: Any) -> GradientAgent:
    return randomise(ReptileConfig(**SETTINGS | changes).build(spec, CPU, 0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task_chunk", [0, 1, 2])
@pytest.mark.parametrize("num_inner_steps", [1, 2])
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
def test_update_is_a_share_of_the_way_to_the_mean_of_the_tasks_ends(
    spec: Spec, num_inner_steps: int, task_chunk: int
) -> None:
    """One step on every rollout, the last too; leaving that one out would end elsewhere."""
    trial = random_trial(spec, num_inner_steps)
    agent = built(spec, num_inner_steps=num_inner_steps, task_chunk=task_chunk, meta_lr=0.25)
    reference = Reference(agent, trial)
    start, ends, shorter = flat(reference.start), [], []
    for samples in reference.tasks:
        params = [value.detach() for value in reference.start]
        for step, episode in enumerate(samples):
            if step == len(samples) - 1:
                shorter.append(flat(params))
            leaves = [value.requires_grad_() for value in params]
            slopes = torch.autograd.grad(reference.loss(leaves, episode), leaves)
            params = [(value - 0.3 * slope).detach() for value, slope in zip(leaves, slopes, strict=True)]
        ends.append(flat(params))
    move = torch.stack(ends).mean(0) - start
    metrics = agent.meta_update(trial)
    assert (meta_vector(agent) - (start + 0.25 * move)).abs().max() < 1e-8
    assert abs(metrics["step_norm"] - move.norm().item()) < 1e-8
    assert move.abs().max() > 1e-2
    assert (torch.stack(shorter).mean(0) - start - move).abs().max() > 1e-3


def test_non_finite_move_is_refused_before_a_parameter_changes() -> None:
    agent = built(DISCRETE)
    trial = random_trial(DISCRETE, 2)
    trial.rollouts[1].rewards[0, 0, 0] = float("nan")
    before = meta_vector(agent)
    with pytest.raises(NonFiniteError, match="inner loops"):
        agent.meta_update(trial)
    assert torch.equal(meta_vector(agent), before)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_meta_lr_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"ReptileConfig\.meta_lr must .*{value}"):
        ReptileConfig(meta_lr=value)
