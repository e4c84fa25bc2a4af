"""Agents of metarl in metaworld's own evaluation, on a tiny budget: episodes of 15 steps, two goals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from metaworld.evaluation import metalearning_evaluation

from metarl.agent import Agent
from metarl.agents import MAMLTRPOConfig, RandomConfig, RL2Config
from metarl.envs import metaworld
from metarl.envs.metaworld import TaskSet, task_distribution
from metarl.errors import ConfigError
from metarl.evaluation.metaworld_upstream import OfficialAgent, upstream_envs, upstream_evaluation
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.seeding import derive
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Rollout, Spec

CPU = torch.device("cpu")
STEPS, GOALS = 15, 2
TASKS = TaskSet("ml1/reach-v3", 0)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def distribution() -> TaskDistribution:
    return dataclasses.replace(task_distribution("ml1/reach-v3"), horizon=STEPS)


def rl2(distribution: TaskDistribution) -> Agent[Any]:
    return RL2Config(hidden_size=16).build(distribution.spec, CPU, 0)


def maml(distribution: TaskDistribution) -> Agent[Any]:
    return MAMLTRPOConfig(hidden_sizes=(16,), inner_lr=1.0).build(distribution.spec, CPU, 0)


class Watched(OfficialAgent[Any]):
    """Keeps every reward and every action of an evaluation."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.rewards: list[Any] = []
        self.actions: list[Any] = []
        self.learned: list[Rollout] = []
        super().__init__(*arguments, **settings)
        adapt = self.agent.adapt

        def watched(state: Any, rollout: Rollout) -> Any:
            self.learned.append(rollout)
            return adapt(state, rollout)

        self.agent.adapt = watched  # type: ignore[method-assign]

    def step(self, timestep: Any) -> None:
        self.rewards.append(timestep.reward.astype(np.float32))
        super().step(timestep)

    def eval_action(self, observations: Any) -> Any:
        self.actions.append(super().eval_action(observations))
        return self.actions[-1]


def test_a_memory_does_in_upstreams_evaluation_what_it_does_in_ours(distribution: TaskDistribution) -> None:
    """Rewards while adapting, across episodes, and actions after it are the same, up to the rounding of actions.

    So the terminal reward, which upstream's observations hide, reaches the memory here too.
    """
    goals = list(TASKS.goals.test[:GOALS])
    envs, num_evals = upstream_envs(TASKS, "test", GOALS, recurrent=True, max_episode_steps=STEPS)
    assert (envs.num_envs, num_evals) == (GOALS, 1)
    theirs = Watched(rl2(distribution), GOALS, adapts_by="episode", seed=3)
    metalearning_evaluation(theirs, envs, num_evals=1, adaptation_episodes=3, evaluation_episodes=2 * GOALS)
    envs.close()

    collector = Collector(distribution, 1, CPU)
    ours = run_trial(rl2(distribution), collector, goals, 3, derive(3, "official", 1), deterministic_last=True)
    collector.close()

    rewards = torch.cat([rollout.rewards[:, 0] for rollout in ours.rollouts[:3]], dim=1).numpy()
    assert np.allclose(np.stack(theirs.rewards, axis=1), rewards, rtol=1e-6, atol=0)
    assert len(theirs.learned) == 3
    first, second = (np.stack(theirs.actions[start : start + STEPS], axis=1) for start in (0, STEPS))
    played = ours.rollouts[-1].actions[:, 0].clamp(-1.0, 1.0).numpy()
    # The collector maps [-1, 1] onto the box in float32, which moves an action by up to 6e-8.
    assert np.allclose(first, played, rtol=0, atol=1e-7)
    assert np.abs(played).max() > 1e-3
    assert np.allclose(first, second, rtol=0, atol=1e-7), "an evaluation episode began from another one's memory"


def test_a_gradient_agent_learns_from_all_episodes_of_its_own_environment(distribution: TaskDistribution) -> None:
    envs, _ = upstream_envs(TASKS, "test", GOALS, max_episode_steps=STEPS)
    agent = Watched(maml(distribution), GOALS, seed=3)
    success, _, by_task = metalearning_evaluation(
        agent, envs, num_evals=1, adaptation_episodes=2, evaluation_episodes=1
    )
    envs.close()
    assert 0.0 <= success <= 1.0 and set(by_task) == {"reach-v3"}
    (rollout,) = agent.learned
    assert rollout.rewards.shape == (GOALS, 2, STEPS)
    seen = np.stack(agent.rewards).reshape(2, STEPS, GOALS)
    assert np.array_equal(rollout.rewards.numpy(), np.transpose(seen, (2, 0, 1)))
    assert rollout.truncated[:, :, -1].all() and not rollout.terminated.any()
    assert rollout.timesteps.prev_done[:, 1, 0].all() and not rollout.timesteps.prev_done[:, 0].any()
    weights = agent._adapted.params
    assert any(not torch.equal(value[0], value[1]) for value in weights.values())


@pytest.mark.parametrize("adapts_by", ["gradient step", "episode"])
def test_upstreams_figure_comes_with_every_goal_once(distribution: TaskDistribution, adapts_by: Any) -> None:
    agent = rl2(distribution) if adapts_by == "episode" else maml(distribution)
    success, by_task = upstream_evaluation(
        agent,
        TASKS,
        "test",
        GOALS,
        adapts_by=adapts_by,
        seed=0,
        adaptation_episodes=1,
        evaluation_episodes=1,
        max_episode_steps=5,
    )
    assert by_task == {"reach-v3": success}


def test_upstreams_environments_hold_the_goals_of_the_split() -> None:
    for split in ("train", "test"):
        envs, num_evals = upstream_envs(TASKS, split, 2, max_episode_steps=5)  # type: ignore[arg-type]
        held = {task.data for tasks in envs.get_attr("tasks") for task in tasks}
        expected = {metaworld.upstream_task(task).data for task in getattr(TASKS.goals, split)[:2]}
        envs.close()
        assert held == expected
        assert num_evals * envs.num_envs == 2


def test_reset_puts_back_what_was_known_after_adaptation_where_it_is_told_to(distribution: TaskDistribution) -> None:
    official = OfficialAgent(rl2(distribution), 2, adapts_by="episode")
    shown = np.ones((2, 45))
    official.adapt()
    official.reset(np.array([True, True]))
    for _ in range(3):
        official.eval_action(shown)
    moved = official._state.clone()
    official.reset(np.array([True, False]))
    assert torch.equal(official._state[0], official._adapted[0])
    assert torch.equal(official._state[1], moved[1])
    assert not torch.equal(moved[0], official._adapted[0])


def _normalised(distribution: TaskDistribution) -> None:
    envs, _ = upstream_envs(
        TASKS, "test", 1, recurrent=True, max_episode_steps=5, normalize_reward_in_recurrent_info=True
    )
    try:
        official = OfficialAgent(rl2(distribution), 1, adapts_by="episode")
        metalearning_evaluation(official, envs, num_evals=1, adaptation_episodes=1, evaluation_episodes=1)
    finally:
        envs.close()


def _not_together(distribution: TaskDistribution) -> None:
    official = OfficialAgent(maml(distribution), 2)
    actions, aux = official.adapt_action(np.zeros((2, 39)))
    flags = np.array([True, False])
    from metaworld.evaluation import Timestep

    official.step(Timestep(np.zeros((2, 39)), actions, np.zeros(2), flags, np.zeros(2, bool), aux))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_normalised, "normalize_reward_in_recurrent_info=False"),
        (_not_together, "1 of 2 episodes ended before the others"),
        (
            lambda d: OfficialAgent(rl2(d), 2, adapts_by="episode").eval_action(np.zeros((2, 39))),
            "must see its rewards.*recurrent_info_in_obs=True",
        ),
        (lambda d: OfficialAgent(maml(d), 2).adapt_action(np.zeros((2, 40))), r"shape \(2, 40\), expected \(2, 39\)"),
        (lambda d: OfficialAgent(maml(d), 0), "num_envs must be 1 or more, got 0"),
        (lambda d: OfficialAgent(RandomConfig().build(Spec(39, 4, True, 5), CPU, 0), 2), "continuous"),
    ],
)
def test_what_cannot_work_is_refused(distribution: TaskDistribution, call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(distribution)


def test_the_terminal_reward_is_shown_to_a_memory(distribution: TaskDistribution) -> None:
    """Upstream's observations hide it: tests/test_metaworld.py."""
    collector = Collector(distribution, 1, CPU)
    trial = run_trial(rl2(distribution), collector, list(TASKS.goals.train[:2]), 1, 0)
    collector.close()
    first, second = trial.rollouts
    assert (first.rewards[..., -1] > 0).all()
    assert torch.equal(second.timesteps.prev_reward[..., 0], first.rewards[..., -1])
    assert torch.equal(second.timesteps.prev_action[:, :, 0], first.actions[:, :, -1].clamp(-1.0, 1.0))
    assert (second.timesteps.prev_done[..., 0] == 1).all()
