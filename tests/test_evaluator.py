"""Evaluation: exact quotas, honest shots, untouched meta-parameters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.countdown import Counter, countdown

from metarl.agent import AgentConfig
from metarl.agents.maml import MAMLTRPOConfig
from metarl.agents.rl2 import RL2Config
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.seeding import numpy_stream
from metarl.types import Spec

CPU = torch.device("cpu")
CONFIGS = [MAMLTRPOConfig(hidden_sizes=(8,), rollouts_per_task=3), RL2Config(hidden_size=8, episodes_per_trial=3)]


def test_scores_are_means_over_an_exact_quota_for_every_task_and_shot() -> None:
    """Tasks that end early do not get more episodes; the last shot acts by the mode, so its return is known."""
    distribution = countdown()
    agent = Counter(distribution.spec)
    found = evaluate(
        agent, distribution, num_tasks=6, num_adaptations=2, seed=3, rollouts_per_task=4, deterministic_last=True
    )
    tasks = distribution.test.sample(6, numpy_stream(3, "evaluation", "test"))
    lengths = np.array([min(5, task["length"]) for task in tasks])
    names = np.array([task["name"] for task in tasks])
    assert found.returns.shape == found.success.shape == (6, 3)
    assert found.episodes_per_shot == 4
    assert found.num_env_steps == 4 * 3 * lengths.sum()
    expected = lengths * (names + 2 / 100) + lengths * (lengths - 1) / 2 / 10
    assert np.allclose(found.returns[:, 2], expected, rtol=1e-6)
    assert np.array_equal(found.success, np.repeat((lengths > 1)[:, None], 3, axis=1))


@pytest.mark.parametrize("shots", [0, 1, 2])
def test_shot_k_is_after_k_adaptations(shots: int) -> None:
    """The counter's action is the number of its adaptations, and an action of a is worth a / 100 a step."""
    distribution = dataclasses.replace(countdown(), sample=lambda rng: {"name": 0.0, "length": 5.0}, shared_split=True)
    agent = Counter(distribution.spec)
    found = evaluate(agent, distribution, num_tasks=2, num_adaptations=shots, seed=0, deterministic_last=True)
    assert np.allclose(found.returns[:, shots], 1.0 + 5 * shots / 100)


def test_default_number_of_shots_is_what_the_agent_asks_for() -> None:
    distribution = countdown()
    assert evaluate(Counter(distribution.spec, 1), distribution, num_tasks=2, seed=0).returns.shape == (2, 2)


def test_a_task_that_is_drawn_again_is_counted_once() -> None:
    distribution = countdown()
    first, second = distribution.test.sample(2, numpy_stream(0, "tasks"))
    for tasks, distinct in (([first, second], 2), ([first, second, dict(first), first], 2), ([first], 1)):
        assert evaluate(Counter(distribution.spec), distribution, tasks=tasks, seed=0).num_distinct == distinct


def test_tasks_are_those_of_the_split() -> None:
    distribution = dataclasses.replace(countdown(), sample_test=lambda rng: {"name": 1000.0, "length": 5.0})
    agent = Counter(distribution.spec)
    assert (evaluate(agent, distribution, num_tasks=5, seed=0).returns > 4000).all()
    assert (evaluate(agent, distribution, num_tasks=5, seed=0, split="train").returns < 1000).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("discrete", [True, False])
def test_untrained_agent_is_evaluated_without_a_trace_and_repeatably(config: AgentConfig, discrete: bool) -> None:
    distribution = countdown(discrete)
    agent = config.build(distribution.spec, CPU, 0)
    before = {name: tensor.clone() for name, tensor in agent.named_tensors().items()}
    first, again, other = (evaluate(agent, distribution, num_tasks=4, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.returns, again.returns) and np.array_equal(first.success, again.success)
    assert not np.array_equal(first.returns, other.returns)
    assert np.isfinite(first.returns).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in agent.named_tensors().items())


@pytest.mark.parametrize(
    ("spec", "own", "other"),
    [
        (Spec(3, 3, True, 5), "obs_dim = 3", "obs_dim = 2"),
        (Spec(2, 4, True, 5), "action_dim = 4", "action_dim = 3"),
        (
            Spec(2, 4, False, 5, (3,)),
            r"action_dim = 4, discrete = False, choices = \(3,\)",
            "action_dim = 3, discrete = True",
        ),
    ],
)
def test_agent_for_other_spaces_is_refused_with_what_differs(spec: Spec, own: str, other: str) -> None:
    with pytest.raises(ConfigError, match=rf"built for tasks with {own}, but test/countdown has {other}"):
        evaluate(Counter(spec), countdown(), num_tasks=2, seed=0)


def test_other_horizon_is_no_other_space() -> None:
    spec = dataclasses.replace(countdown().spec, horizon=99)
    assert np.isfinite(evaluate(Counter(spec), countdown(), num_tasks=2, seed=0).returns).all()
