"""A replay shows the recorded episode and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.graphics import missing_library
from helpers.painted import HORIZON, Painted, make_render_env, painted

from metarl.agents import RandomConfig
from metarl.envs.metaworld import task_distribution
from metarl.errors import ConfigError, ReplayError
from metarl.rendering.replay import Moment, replay
from metarl.rollouts.collector import Collector, episode_seeds
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution
from metarl.types import Rollout, Task

TASK = {"scale": 1.5, "length": 5.0}
LONG = {"scale": 1.5, "length": 99.0}


def record(distribution: TaskDistribution, task: Task, slots: int = 3, number: int = 1) -> Rollout:
    """Rollout ``number`` of a collector with seed 4."""
    agent = RandomConfig().build(distribution.spec, torch.device("cpu"), 1)
    agent.seed(2)
    collector = Collector(distribution, slots, torch.device("cpu"))
    collector.seed(4)
    try:
        for _ in range(number + 1):
            rollout, _ = collector.collect(agent, agent.begin(1), [task])
    finally:
        collector.close()
    return rollout


def show(
    episode: Rollout, task: Task = TASK, distribution: TaskDistribution = painted, slot: int = 2, every: int = 1
) -> list[Moment]:
    seed = int(episode_seeds(4, 1, 1, slot + 1)[0, slot])
    return list(replay(distribution, task, episode, reset_seed=seed, every=every))


@pytest.mark.parametrize("task", [TASK, LONG])
def test_moments_are_those_of_the_recorded_episode(task: Task) -> None:
    """Also of one that the collector cut off at the horizon. A frame's brightness is the number of its step."""
    episode = record(painted, task)[0, 2]
    length = min(HORIZON, int(task["length"]))
    moments = show(episode, task)
    assert [moment.step for moment in moments] == list(range(length + 1))
    assert [int(moment.frame[0, 0, 0]) for moment in moments] == [10 * step for step in range(length + 1)]
    totals = [0.0, *episode.rewards[:length].double().cumsum(0).tolist()]
    assert np.allclose([moment.total for moment in moments], totals, rtol=1e-6)
    assert [moment.success_step for moment in moments] == [None] * 3 + [3] * (length - 2)


@pytest.mark.parametrize(("every", "steps"), [(2, [0, 2, 4, 5]), (3, [0, 3, 5]), (5, [0, 5]), (9, [0, 5])])
def test_first_and_last_step_are_shown_and_those_between_now_and_then(every: int, steps: list[int]) -> None:
    assert [moment.step for moment in show(record(painted, TASK)[0, 2], every=every)] == steps


def test_another_episode_is_refused() -> None:
    """Another slot began with another seed."""
    rollout = record(painted, TASK)
    with pytest.raises(
        ReplayError, match=r"test/painted: the replay is not the recorded episode: at step 1 its reward"
    ):
        show(rollout[0, 1])


def test_another_reward_length_or_success_is_refused() -> None:
    episode = record(painted, TASK)[0, 2]
    rewards = episode.rewards.clone()
    rewards[3] += 1e-3
    with pytest.raises(ReplayError, match="at step 4 its reward is"):
        show(dataclasses.replace(episode, rewards=rewards))
    with pytest.raises(ReplayError, match="at step 5 its success is True, recorded is False"):
        show(dataclasses.replace(episode, success=torch.tensor(False)))
    shorter = dataclasses.replace(painted, make_render_env=lambda task: make_render_env(task | {"length": 4.0}))
    with pytest.raises(ReplayError, match="at step 4 its length is 4, recorded is 5"):
        show(episode, distribution=shorter)


def test_a_diverged_episode_is_shown_up_to_the_step_that_diverged() -> None:
    episode = record(painted, TASK)[0, 2]
    rewards = episode.rewards.clone()
    rewards[4] = 0.0
    diverged = dataclasses.replace(episode, rewards=rewards, invalid=torch.tensor(True), success=torch.tensor(False))
    moments = show(diverged)
    assert [moment.step for moment in moments] == [0, 1, 2, 3, 4, 5]
    assert [moment.invalid for moment in moments] == [False] * 5 + [True]
    assert int(moments[-1].frame[0, 0, 0]) == 40 and moments[-1].success_step is None


class _Blind(Painted):
    def render(self) -> Any:
        return np.zeros((4, 4))


def _without_pygame(task: Task) -> gym.Env[Any, Any]:
    raise gym.error.DependencyNotInstalled("pygame is not installed")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda task: Painted(task), "render_mode 'rgb_array', got None"),
        (lambda task: _Blind(task, "rgb_array"), r"uint8 \[height, width, 3\], got float64 of shape \(4, 4\)"),
        (_without_pygame, "test/painted cannot be rendered: pygame is not installed"),
    ],
)
def test_an_environment_that_shows_no_image_is_refused(make: Any, message: str) -> None:
    distribution = dataclasses.replace(painted, make_render_env=make)
    with pytest.raises(ConfigError, match=message):
        show(record(painted, TASK)[0, 2], distribution=distribution)


def _simulated() -> list[Any]:
    return [
        pytest.param("ml1/drawer-close-v3", id="metaworld"),
        pytest.param("locomotion/cheetah-velocity", id="cheetah"),
        pytest.param("locomotion/ant-goal", id="ant"),
    ]


@pytest.mark.parametrize("name", _simulated())
def test_a_rendering_simulation_repeats_what_workers_simulated(name: str) -> None:
    """Where no library renders, the error says which ones would."""
    if name.startswith("ml1/"):
        distribution = dataclasses.replace(task_distribution(name), horizon=40)
        task = {"env_name": "drawer-close-v3", "rand_vec": np.array([0.05, 0.9, 0.0])}
    else:
        distribution = dataclasses.replace(load_distribution(name), horizon=40)
        task = distribution.sample(np.random.default_rng(0))
    rollout = record(distribution, task, slots=2)
    if missing_library():
        with pytest.raises(ConfigError, match="apt-get install"):
            show(rollout[0, 1], task, distribution, slot=1)
        return
    first, last = show(rollout[0, 1], task, distribution, slot=1, every=99)
    assert last.step == int(rollout[0, 1].lengths)
    assert np.isclose(last.total, float(rollout[0, 1].returns), rtol=1e-5)
    assert first.frame.shape == last.frame.shape == (480, 480, 3)
    assert first.frame.std() > 20 and (first.frame != last.frame).any()
