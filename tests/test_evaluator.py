"""Evaluation: exact quotas, honest shots, untouched meta-parameters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.countdown import Counter, countdown
from scipy.stats import binomtest

from metarl.agent import AgentConfig
from metarl.agents.maml import MAMLTRPOConfig
from metarl.agents.rl2 import RL2Config
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.seeding import numpy_stream
from metarl.statistics import mean_interval, mean_of_intervals, share_interval
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


@pytest.mark.parametrize("spec", [Spec(3, 3, True, 5), Spec(2, 4, True, 5), Spec(2, 3, False, 5)])
def test_agent_for_other_spaces_is_refused(spec: Spec) -> None:
    with pytest.raises(ConfigError, match=r"built for Spec\(.* but test/countdown has Spec\(obs_dim=2, action_dim=3"):
        evaluate(Counter(spec), countdown(), num_tasks=2, seed=0)


def test_other_horizon_is_no_other_space() -> None:
    spec = dataclasses.replace(countdown().spec, horizon=99)
    assert np.isfinite(evaluate(Counter(spec), countdown(), num_tasks=2, seed=0).returns).all()


def test_interval_covers_the_mean_and_shrinks_with_more_tasks() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        mean, low, high = mean_interval(rng.normal(2.0, 1.0, 50))
        assert low < mean < high
        covered += low <= 2.0 <= high
    assert 85 <= covered <= 100
    assert high - low == pytest.approx(2 * 1.96 / 50**0.5, rel=0.3)


@pytest.mark.parametrize("scores", [[3.0], [2.0, 2.0, 2.0]])
def test_interval_of_scores_that_do_not_vary_is_a_point(scores: list[float]) -> None:
    assert mean_interval(np.array(scores)) == (scores[0],) * 3


@pytest.mark.parametrize(("num_solved", "num"), [(0, 50), (25, 50), (50, 50), (1, 5), (1, 1)])
def test_share_interval_is_wilsons(num_solved: int, num: int) -> None:
    expected = binomtest(num_solved, num).proportion_ci(method="wilson")
    found = share_interval(np.where(np.arange(num) < num_solved, 1.0, 0.0))
    assert found == pytest.approx((num_solved / num, expected.low, expected.high))


def test_share_interval_covers_the_mean_of_scores_between_0_and_1() -> None:
    """Goals with three episodes each: the interval must hold the truth at least as often as it says."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        chance = rng.beta(0.4, 0.6, 50)
        _, low, high = share_interval(rng.binomial(3, chance) / 3)
        inside += low <= 0.4 <= high
    assert inside >= 0.93 * 300


def test_the_mean_of_intervals_is_narrower_by_the_root_of_their_number() -> None:
    one = (0.5, 0.3, 0.6)
    assert mean_of_intervals([one]) == pytest.approx(one)
    assert mean_of_intervals([one] * 4) == pytest.approx((0.5, 0.4, 0.55))
    assert mean_of_intervals([(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]) == (0.5, 0.5, 0.5)
