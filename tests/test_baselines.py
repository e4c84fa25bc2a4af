"""The linear baseline, against float64 least squares and a loop over tasks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from metarl.functional import baselines
from metarl.functional.baselines import fit_linear, linear_baseline_advantages, predict_linear, time_features
from metarl.functional.returns import discounted_sums
from metarl.types import Rollout, Timestep


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least_squares(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """The ridge regression as an ordinary one with one more sample for each feature, by singular values."""
    size = x.shape[1]
    tall = torch.cat([x, ridge**0.5 * torch.eye(size, dtype=torch.float64)])
    right = torch.cat([y, torch.zeros(size, dtype=torch.float64)])
    return torch.linalg.lstsq(tall, right[:, None], driver="gelsd").solution[:, 0]


def test_features_are_those_of_the_paper() -> None:
    obs = torch.tensor([[0.5, -20.0]])
    expected = [0.5, -10.0, 0.25, 100.0, 0.5, 0.25, 0.125, 1.0]
    features = time_features(obs, torch.tensor([50]))
    assert features.dtype == torch.float64 and features[0].tolist() == pytest.approx(expected)


def test_fit_equals_least_squares_of_every_task_without_its_padding() -> None:
    features, targets = randn(3, 40, 6), randn(3, 40, seed=1)
    valid = torch.rand(3, 40, generator=torch.Generator().manual_seed(2)) < 0.7
    weights = fit_linear(features, targets, valid, ridge=1e-5)
    for task in range(3):
        expected = least_squares(features[task][valid[task]], targets[task][valid[task]], 1e-5)
        assert (weights[task] - expected).abs().max() < 1e-10
    prediction = predict_linear(weights, features)
    assert (prediction[1, 7] - features[1, 7] @ weights[1]).abs() < 1e-12


@pytest.mark.parametrize("samples", [3, 40])
def test_rank_deficient_features_give_finite_predictions_as_good_as_least_squares(samples: int) -> None:
    """A constant feature twice, a column of zeros, copies, and fewer samples than features."""
    base = randn(1, samples, 3)
    ones, zeros = torch.ones(1, samples, 1, dtype=torch.float64), torch.zeros(1, samples, 1, dtype=torch.float64)
    features = torch.cat([base, 1e3 * base, ones, ones, zeros], dim=-1)
    targets = randn(1, samples, seed=1)
    valid = torch.ones(1, samples, dtype=torch.bool)
    weights = fit_linear(features, targets, valid)
    assert torch.isfinite(weights).all()
    plain = torch.cat([base, ones], dim=-1)[0]
    best = plain @ torch.linalg.lstsq(plain, targets[0][:, None], driver="gelsd").solution[:, 0]
    assert (predict_linear(weights, features)[0] - best).abs().max() < 1e-4


def test_float32_observations_that_hardly_vary_are_fitted_in_float64() -> None:
    """A robot's coordinates move by millimetres around half a metre: in float32 the same equations lose the fit."""
    obs = (0.5 + 1e-3 * randn(1, 4000, 10)).float()
    steps = torch.arange(4000).remainder(500)[None]
    features = time_features(obs, steps)
    targets = features[..., :10] @ (1e3 * randn(10, seed=1)) + 0.1 * randn(1, 4000, seed=2)
    weights = fit_linear(features, targets.float(), torch.ones(1, 4000, dtype=torch.bool))
    ours = (predict_linear(weights, features) - targets).square().mean()
    best = (features[0] @ least_squares(features[0], targets[0], 1e-5) - targets[0]).square().mean()
    x, y = features[0].float(), targets[0].float()
    single = torch.linalg.solve(x.mT @ x + 1e-5 * torch.eye(x.shape[1]), x.mT @ y)
    assert ours < 1.001 * best
    assert (x @ single - y).square().mean() > 2.0 * best


def test_failed_factorisations_get_more_ridge_and_leave_other_tasks_alone() -> None:
    """Features of 1e6 drown a ridge of 1e-5 in rounding; the task beside them is fitted as it would be alone."""
    huge = 1e6 * torch.ones(1, 5, 4, dtype=torch.float64)
    features, targets = torch.cat([huge, randn(1, 5, 4)]), randn(2, 5, seed=1)
    valid = torch.ones(2, 5, dtype=torch.bool)
    weights = fit_linear(features, targets, valid)
    alone = fit_linear(features[1:], targets[1:], valid[1:])
    assert torch.isfinite(weights).all()
    assert torch.allclose(weights[1], alone[0], atol=1e-12)


def rollout(dtype: torch.dtype = torch.float64) -> Rollout:
    """3 tasks, 4 episodes of 2 to 6 steps, the first of each task terminated, the others truncated."""
    lengths = 2 + torch.arange(12).view(3, 4) % 5
    steps = torch.arange(6)
    valid = steps < lengths[..., None]
    ends = steps == lengths[..., None] - 1
    first = torch.zeros(3, 4, 1, dtype=torch.bool)
    first[:, 0] = True
    none = torch.zeros(3, 4, 6, dtype=dtype)
    timesteps = Timestep(randn(3, 4, 6, 2).to(dtype), none[..., None], none, none, valid)
    rewards = (randn(3, 4, 6, seed=1) * valid).to(dtype)
    last_obs = randn(3, 4, 2, seed=2).to(dtype)
    episodes = valid.any(-1)
    return Rollout(timesteps, none, none, rewards, ends & first, ends & ~first, last_obs, episodes, ~episodes)


@pytest.mark.parametrize("bootstrap", [True, False])
def test_advantages_equal_a_loop_over_tasks_episodes_and_time(bootstrap: bool) -> None:
    """With the value of the state in which time ran out, and with 0 in its place."""
    data = rollout()
    result = linear_baseline_advantages(data, discount=0.9, gae_lambda=0.7, bootstrap_at_horizon=bootstrap)
    other = linear_baseline_advantages(data, discount=0.9, gae_lambda=0.7, bootstrap_at_horizon=not bootstrap)
    assert (result - other).abs().max() > 0.1
    for task in range(3):
        rows, returns = [], []
        for episode in range(4):
            length = int(data.lengths[task, episode])
            tail, backwards = 0.0, []
            for t in reversed(range(length)):
                tail = data.rewards[task, episode, t].item() + 0.9 * tail
                backwards.append(tail)
            returns += backwards[::-1]
            rows += [time_features(data.obs[task, episode, t], torch.tensor(t)) for t in range(length)]
        # Of a task with fewer than three steps for each of 8 features time alone is seen.
        seen = torch.stack(rows) if len(rows) >= 24 else torch.stack(rows) * torch.tensor([0.0] * 4 + [1.0] * 4)
        weights = least_squares(seen, torch.tensor(returns, dtype=torch.float64), 1e-5)
        found = []
        for episode in range(4):
            length = int(data.lengths[task, episode])
            after = time_features(data.last_obs[task, episode], torch.tensor(length)) @ weights
            following = after.item() if bootstrap and not data.terminated[task, episode].any() else 0.0
            advantage, backwards = 0.0, []
            for t in reversed(range(length)):
                value = (time_features(data.obs[task, episode, t], torch.tensor(t)) @ weights).item()
                delta = data.rewards[task, episode, t].item() + 0.9 * following - value
                advantage, following = delta + 0.9 * 0.7 * advantage, value
                backwards.append(advantage)
            found += backwards[::-1]
        expected = torch.tensor(found, dtype=torch.float64)
        expected = (expected - expected.mean()) / expected.std(correction=0)
        assert (result[task][data.valid[task]] - expected).abs().max() < 1e-6
    assert not result[~data.valid].any()


@pytest.mark.parametrize("bootstrap", [True, False])
def test_of_images_in_short_episodes_time_alone_is_fitted(bootstrap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were nothing to observe; solving for zeros took minutes, and gigabytes."""
    data = rollout()
    size = (3, 4, 6, 3000)
    timesteps = dataclasses.replace(data.timesteps, obs=randn(*size))
    images = dataclasses.replace(data, timesteps=timesteps, last_obs=randn(3, 4, 3000))
    sizes: list[int] = []
    fit = baselines.fit_linear

    def watched(features: Tensor, *others: Tensor) -> Tensor:
        sizes.append(features.shape[-1])
        return fit(features, *others)

    monkeypatch.setattr(baselines, "fit_linear", watched)
    result = linear_baseline_advantages(images, discount=0.9, gae_lambda=0.7, bootstrap_at_horizon=bootstrap)
    assert sizes == [4]
    nothing = dataclasses.replace(data, timesteps=dataclasses.replace(timesteps, obs=randn(*size)[..., :0]))
    expected = linear_baseline_advantages(
        dataclasses.replace(nothing, last_obs=randn(3, 4, 3000)[..., :0]), 0.9, 0.7, bootstrap_at_horizon=bootstrap
    )
    torch.testing.assert_close(result, expected)


def test_float32_rollouts_lose_no_digits_in_the_fit() -> None:
    """The result is float32, and as exact as one can be."""
    single, double = (
        linear_baseline_advantages(rollout(dtype), 0.9, 0.7, bootstrap_at_horizon=True)
        for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 1e-4


def test_rewards_that_never_vary_give_zero_advantages() -> None:
    data = rollout()
    data.rewards.zero_()
    assert not linear_baseline_advantages(data, 0.99, 1.0, bootstrap_at_horizon=True).any()


@pytest.mark.parametrize("padding", [torch.inf, torch.nan])
def test_what_stands_on_padding_is_not_fitted(padding: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 30, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    valid = torch.arange(30) < torch.tensor([[20], [25]])
    filled = fit_linear(torch.where(valid[..., None], features, padding), torch.where(valid, targets, padding), valid)
    assert torch.equal(filled, fit_linear(features, targets, valid))


def _played(obs: Tensor, rewards: Tensor) -> Rollout:
    """Whole episodes ``[task, episode, time]`` of these observations and rewards."""
    nothing, ends = torch.zeros_like(rewards), torch.zeros(rewards.shape, dtype=torch.bool)
    ends[..., -1] = True
    timesteps = Timestep(obs, nothing[..., None], nothing, nothing, torch.ones_like(ends))
    episodes = ends.any(-1)
    return Rollout(timesteps, nothing, nothing, rewards, ends, ~ends & ends, obs[:, :, -1], episodes, ~episodes)


@pytest.mark.parametrize(("steps", "knows"), [(7, False), (13, False), (14, True), (40, True)])
def test_a_task_of_few_steps_is_fitted_by_time_alone(steps: int, knows: bool) -> None:
    """44 features of 70 steps would explain most of any return, and of 44 all: what is left is rounding."""
    obs, rewards = randn(1, 10, steps, 20), randn(1, 10, steps, seed=1)
    found, alone = (
        linear_baseline_advantages(_played(seen, rewards), 0.9, 1.0, bootstrap_at_horizon=False)
        for seen in (obs, torch.zeros_like(obs))
    )
    assert torch.allclose(found, alone, rtol=1e-4, atol=1e-4) == (not knows)


def test_advantages_of_wide_observations_follow_the_returns() -> None:
    """The first rewards of an episode are worth their discounted sum, whatever a hundred numbers of noise say."""
    obs, rewards = randn(3, 5, 20, 100), randn(3, 5, 20, seed=1)
    found = linear_baseline_advantages(_played(obs, rewards), 0.9, 1.0, bootstrap_at_horizon=False)
    for task in range(3):
        both = torch.stack([found[task].flatten(), discounted_sums(rewards, 0.9)[task].flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.9


def test_two_steps_are_not_fitted_exactly() -> None:
    """Powers of time go through both returns: what was left was rounding, and of steps that paid every other was -1."""
    rewards = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]])
    found = linear_baseline_advantages(_played(randn(3, 1, 2, 1), rewards), 1.0, 1.0, bootstrap_at_horizon=False)
    # Returns to go 1 0, 1 1 and 2 1, less their means and over their deviations.
    assert torch.allclose(found, torch.tensor([[[1.0, -1.0]], [[0.0, 0.0]], [[1.0, -1.0]]]), atol=1e-3)
