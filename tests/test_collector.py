"""The collector: one episode in every slot, exactly as it happened."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.countdown import HORIZON, CountdownDynamics, Counter, countdown

from metarl.agents import RandomConfig
from metarl.errors import ConfigError, NonFiniteError
from metarl.rollouts.actions import env_actions
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.tasks import TaskDistribution, make
from metarl.types import Rollout
from metarl.vector.array_env import ArrayVectorEnv

CPU = torch.device("cpu")
TASKS = [{"name": 10.0 * i, "length": length} for i, length in enumerate([1.0, 3.0, 5.0, 8.0], 1)]
"""Ends after 1 and 3 steps, at the horizon of 5 by itself, and beyond it."""


def collect(discrete: bool = True, seed: int = 0, slots: int = 3) -> tuple[Rollout, Counter, Collector]:
    distribution = countdown(discrete)
    agent, collector = Counter(distribution.spec), Collector(distribution, slots, CPU)
    agent.seed(seed)
    collector.seed(seed)
    return collector.collect(agent, agent.begin(4), TASKS)[0], agent, collector


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [part for field in dataclasses.fields(value) for part in tensors(getattr(value, field.name))]


@pytest.mark.parametrize("discrete", [True, False])
def test_every_slot_holds_exactly_one_episode_as_a_prefix(discrete: bool) -> None:
    rollout, _, _ = collect(discrete)
    assert rollout.valid.shape == (4, 3, HORIZON)
    assert rollout.lengths.tolist() == [[1] * 3, [3] * 3, [5] * 3, [5] * 3]
    assert torch.equal(rollout.valid, torch.arange(HORIZON) < rollout.lengths[..., None])
    ends = (rollout.terminated | rollout.truncated).long()
    assert torch.equal(ends.sum(-1), torch.ones(4, 3, dtype=torch.long))
    assert torch.equal(ends.argmax(-1), rollout.lengths - 1)
    assert all(torch.isfinite(tensor).all() for tensor in tensors(rollout))


def test_rewards_are_those_of_the_task_and_nothing_is_recorded_after_the_end() -> None:
    rollout, _, _ = collect()
    steps = torch.arange(HORIZON)
    name = torch.tensor([10.0, 20.0, 30.0, 40.0])[:, None, None]
    expected = (name + steps / 10 + rollout.actions / 100) * rollout.valid
    assert torch.allclose(rollout.rewards, expected, atol=1e-5)
    assert not rollout.rewards[~rollout.valid].any()
    assert not rollout.obs[~rollout.valid].any()
    assert torch.equal(rollout.obs[..., 1] * rollout.valid, steps * rollout.valid)
    assert torch.allclose(rollout.returns, expected.sum(-1))


def test_time_out_is_truncation_and_an_end_at_the_horizon_is_termination() -> None:
    rollout, _, _ = collect()
    assert rollout.terminated.any(-1).tolist() == [[True] * 3] * 3 + [[False] * 3]
    assert rollout.truncated.any(-1).tolist() == [[False] * 3] * 3 + [[True] * 3]
    assert rollout.truncated[3, :, HORIZON - 1].all()


def test_environment_that_truncates_before_the_horizon_ends_the_episode_there() -> None:
    """The environment gives up after 5 of 9 steps; what it would return later is not asked for."""
    distribution = dataclasses.replace(countdown(), horizon=HORIZON + 4)
    rollout, _ = Collector(distribution, 2, CPU).collect(Counter(distribution.spec), 0, TASKS)
    assert rollout.lengths.tolist() == [[1] * 2, [3] * 2, [5] * 2, [5] * 2]
    assert rollout.truncated.sum() == 2 and rollout.truncated[3, :, HORIZON - 1].all()
    assert rollout.last_obs[3, :, 1].tolist() == [5.0, 5.0]


def test_end_flags_that_are_no_flags_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As indices they would end the episodes 0 and 1."""
    plain = ArrayVectorEnv.step

    def step(self: ArrayVectorEnv, actions: Any) -> Any:
        obs, rewards, terminated, truncated, info = plain(self, actions)
        return obs, rewards, terminated.astype(int), truncated, info

    monkeypatch.setattr(ArrayVectorEnv, "step", step)
    distribution = countdown()
    with pytest.raises(ConfigError, match=r"terminated have dtype int64, expected bool: array\.astype\(bool\)"):
        Collector(distribution, 2, CPU).collect(Counter(distribution.spec), 0, TASKS)


def test_last_obs_is_the_observation_after_the_last_step() -> None:
    rollout, _, _ = collect()
    assert torch.equal(rollout.last_obs[..., 1], rollout.lengths.float())
    assert torch.equal(rollout.last_obs[..., 0], rollout.obs[:, :, 0, 0])


def test_episodes_of_one_task_differ_and_success_at_any_step_counts() -> None:
    rollout, _, _ = collect()
    assert rollout.obs[:, :, 0, 0].unique().numel() == 12
    assert rollout.success.tolist() == [[False] * 3] + [[True] * 3] * 3


def _shown(actions: torch.Tensor) -> torch.Tensor:
    """The first coordinate has bounds, the second has none."""
    return torch.stack([actions[..., 0].clamp(-1, 1), actions[..., 1]], -1)


@pytest.mark.parametrize("discrete", [True, False])
def test_rollout_keeps_what_the_agent_saw_and_shows_it_the_step_before(discrete: bool) -> None:
    rollout, agent, _ = collect(discrete)
    for t, seen in enumerate(agent.seen):
        assert all(torch.equal(a, b[:, :, t]) for a, b in zip(tensors(seen), tensors(rollout.timesteps), strict=True))
    assert not rollout.timesteps.prev_action[:, :, 0].any()
    assert not rollout.timesteps.prev_reward[:, :, 0].any()
    assert not rollout.timesteps.prev_done.any()
    valid = rollout.valid[:, :, 1:]
    assert torch.equal(rollout.timesteps.prev_reward[:, :, 1:][valid], rollout.rewards[:, :, :-1][valid])
    actions = rollout.actions
    encoded = torch.eye(3)[actions] if discrete else _shown(actions)
    assert torch.equal(rollout.timesteps.prev_action[:, :, 1:][valid], encoded[:, :, :-1][valid])


@pytest.mark.parametrize("discrete", [True, False])
def test_next_episode_begins_with_the_last_step_of_the_one_before(discrete: bool) -> None:
    first, agent, collector = collect(discrete)
    second, _ = collector.collect(agent, 0, TASKS, previous=first)
    assert (second.timesteps.prev_done[:, :, 0] == 1).all() and not second.timesteps.prev_done[:, :, 1:].any()
    for task in range(4):
        for slot in range(3):
            last = int(first.lengths[task, slot]) - 1
            action = first.actions[task, slot, last]
            encoded = torch.eye(3)[action] if discrete else _shown(action)
            assert second.timesteps.prev_reward[task, slot, 0] == first.rewards[task, slot, last] != 0
            assert torch.equal(second.timesteps.prev_action[task, slot, 0], encoded)
    assert not torch.equal(first.obs[:, :, 0], second.obs[:, :, 0])


def test_box_actions_are_clipped_and_mapped_onto_the_bounds_and_unbounded_ones_passed_on() -> None:
    """[-1, 1] onto [-2, 6]: the actions -1.5, -0.5, 0.5 arrive as -2, 0, 4; the unbounded 9 arrives as 9."""
    dynamics = CountdownDynamics(discrete=False)
    distribution = countdown(dynamics=dynamics)
    agent, collector = Counter(distribution.spec), Collector(distribution, 3, CPU)
    rollout, _ = collector.collect(agent, 0, TASKS)
    arrived = {-1.5: -2.0, -0.5: 0.0, 0.5: 4.0}
    assert len(set(rollout.actions[..., 0].flatten().tolist())) == 3
    for t, received in enumerate(dynamics.received):
        expected = [arrived[value] for value in rollout.actions[:, :, t, 0].flatten().tolist()]
        assert received[:, 0].tolist() == expected
        assert (received[:, 1] == 9.0).all()


_FLOAT_MAX = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-2.0, 6.0, [-2.0, 0.0, 2.0, 6.0]),
        (-np.inf, np.inf, [-7.0, -0.5, 0.0, 7.0]),
        (-_FLOAT_MAX, _FLOAT_MAX, [-7.0, -0.5, 0.0, 7.0]),
        (-3e38, 3e38, [-7.0, -0.5, 0.0, 7.0]),  # Between them lies more than float32 has a number for.
        (0.0, np.inf, [0.0, 0.0, 0.0, 7.0]),
        (10.0, np.inf, [10.0, 10.0, 10.0, 10.0]),
        (-np.inf, -1.0, [-7.0, -1.0, -1.0, -1.0]),
    ],
)
def test_actions_lie_inside_the_declared_box(low: float, high: float, expected: list[float]) -> None:
    space = gym.spaces.Box(low, high, (1,), np.float32)
    actions = env_actions(space, torch.tensor([[-7.0], [-0.5], [0.0], [7.0]]))
    assert actions[:, 0].tolist() == expected
    assert all(space.contains(action) for action in actions)


def test_rounding_does_not_leave_the_box() -> None:
    space = gym.spaces.Box(np.float32(-1 / 3), np.float32(1 / 7), (1,), np.float32)
    actions = env_actions(space, torch.linspace(-1.0, 1.0, 10_001)[:, None])
    assert actions.min() == space.low and actions.max() == space.high


PENDULUMS = TaskDistribution(
    "test/pendulum",
    sample=lambda rng: {"g": float(rng.uniform(5.0, 15.0))},
    make_env=lambda task: gym.make("Pendulum-v1", **task),
    horizon=20,
)


@pytest.mark.parametrize(
    "distribution", [countdown(), PENDULUMS, *map(make, ("bandit", "cartpole-goal", "tabular-mdp"))], ids=lambda d: d.id
)
def test_a_task_plays_the_same_in_any_company(distribution: TaskDistribution) -> None:
    """Environments, actions and exploration of a task follow from its place in the batch, whoever stands behind it."""
    tasks = distribution.train.sample(4, np.random.default_rng(0))
    agent = RandomConfig().build(distribution.spec, CPU, 0)
    rollouts = []
    for company in (tasks, tasks[:1], [tasks[0], tasks[0], tasks[3]]):
        collector = Collector(distribution, 3, CPU)
        trial = run_trial(agent, collector, company, 1, seed=5)
        collector.close()
        rollouts.append(trial.rollouts)
    for shot in range(2):
        whole, *others = (rollout[shot] for rollout in rollouts)
        for other in others:
            length = int(whole.lengths[0].max())
            assert torch.equal(whole.lengths[0], other.lengths[0])
            assert torch.equal(whole.obs[0, :, :length] * whole.valid[0, :, :length, None], other.obs[0, :, :length])
            assert torch.equal(whole.rewards[0, :, :length], other.rewards[0, :, :length])
            valid = whole.valid[0, :, :length]
            assert torch.equal(whole.actions[0, :, :length][valid], other.actions[0, :, :length][valid])


def test_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, second, other = (collect(seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
    assert not torch.equal(first.actions, other.actions)
    assert not torch.equal(first.obs, other.obs)


def test_seeding_again_forgets_earlier_rollouts() -> None:
    first, agent, collector = collect()
    collector.collect(agent, 0, TASKS)
    agent.seed(0)
    collector.seed(0)
    again, _ = collector.collect(agent, 0, TASKS)
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(again), strict=True))


def test_number_of_tasks_may_change_between_rollouts() -> None:
    _, agent, collector = collect()
    assert collector.collect(agent, 0, TASKS[:2])[0].rewards.shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"bad_reward_at": 1.0}, r"test/countdown: reward nan at step 1 in an environment of task .*'name': 7.0"),
        ({"bad_obs_at": 0.0}, r"test/countdown: observation \[nan nan\] at step 1 .*'name': 7.0"),
        ({"bad_obs_at": 4.0}, r"test/countdown: observation \[nan nan\] at step 5 .*'name': 7.0"),
    ],
)
def test_non_finite_number_is_refused_with_its_task(fault: dict[str, float], message: str) -> None:
    """Also in the observation after the last step, which no policy sees but a baseline does."""
    distribution = countdown()
    good = {"name": 1.0, "length": 8.0, **dict.fromkeys(fault, -1.0)}
    bad = {"name": 7.0, "length": 8.0, **fault}
    with pytest.raises(NonFiniteError, match=message):
        Collector(distribution, 2, CPU).collect(Counter(distribution.spec), 0, [good, bad])


def test_non_finite_reward_after_the_end_is_nobodys_business() -> None:
    distribution = countdown()
    tasks = [
        {"name": 1.0, "length": 2.0, "bad_reward_at": 3.0},
        {"name": 2.0, "length": 8.0, "bad_reward_at": -1.0},
    ]
    rollout, _ = Collector(distribution, 2, CPU).collect(Counter(distribution.spec), 0, tasks)
    assert np.isfinite(rollout.rewards.numpy()).all()


@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_diverged_simulation_cuts_its_episode_off_and_leaves_only_what_was_valid(step: int) -> None:
    """Reward 0 at that step, the observation before it as the last one, truncated, no success; others are untouched."""
    good = {"name": 10.0, "length": 8.0, "diverges_at": -1.0}
    rollouts = []
    for second in (good | {"diverges_at": float(step)}, good):
        agent = Counter(countdown().spec)
        agent.seed(0)
        collector = Collector(countdown(), 3, CPU)
        rollouts.append(collector.collect(agent, 0, [good, second])[0])
    found, healthy = rollouts
    assert found.invalid.tolist() == [[False] * 3, [True] * 3] and not healthy.invalid.any()
    assert all(torch.isfinite(tensor).all() for tensor in tensors(found))
    bad = found[1]
    assert bad.lengths.tolist() == [step + 1] * 3
    assert bad.truncated[:, step].all() and not bad.terminated.any()
    assert torch.equal(bad.rewards[:, :step], healthy[1].rewards[:, :step]) and not bad.rewards[:, step:].any()
    assert torch.equal(bad.last_obs, bad.obs[:, step]) and (bad.last_obs[:, 1] == step).all()
    assert not bad.success.any() and healthy.success.all()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(tensors(found), tensors(healthy), strict=True))
