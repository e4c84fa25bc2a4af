"""A trial: collect, adapt, repeat."""

from __future__ import annotations

import pytest
import torch
from helpers.countdown import Counter, countdown

from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.seeding import numpy_stream
from metarl.types import Trial

CPU = torch.device("cpu")


def play(num_adaptations: int, seed: int = 0, deterministic_last: bool = False) -> tuple[Trial, Counter]:
    distribution = countdown()
    agent = Counter(distribution.spec)
    tasks = distribution.train.sample(8, numpy_stream(0, "tasks"))
    trial = run_trial(agent, Collector(distribution, 2, CPU), tasks, num_adaptations, seed, deterministic_last)
    return trial, agent


@pytest.mark.parametrize("num_adaptations", [0, 1, 2])
def test_rollout_k_was_collected_after_k_adaptations(num_adaptations: int) -> None:
    """The counter plays its number of adaptations when it acts by the mode, as it is told to in the last rollout."""
    trial, _ = play(num_adaptations, deterministic_last=True)
    assert len(trial.rollouts) == num_adaptations + 1
    assert (trial.rollouts[-1].actions == num_adaptations).all()
    for rollout in trial.rollouts[:-1]:
        assert rollout.actions[rollout.valid].unique().numel() > 1


def test_episodes_of_a_trial_follow_each_other() -> None:
    trial, _ = play(2)
    assert not trial.rollouts[0].timesteps.prev_done.any()
    for rollout in trial.rollouts[1:]:
        assert (rollout.timesteps.prev_done[:, :, 0] == 1).all()


def test_steps_are_counted_without_padding_and_adaptation_included() -> None:
    trial, _ = play(2)
    lengths = [min(5, int(task["length"])) for task in trial.tasks]
    assert trial.num_env_steps == 3 * 2 * sum(lengths)
    assert len(set(lengths)) > 1


def test_same_seed_same_trial_whatever_came_before() -> None:
    distribution = countdown()
    agent, collector = Counter(distribution.spec), Collector(distribution, 2, CPU)
    tasks = distribution.train.sample(8, numpy_stream(0, "tasks"))
    trials = [run_trial(agent, collector, tasks, 1, seed) for seed in (4, 5, 4)]
    for first, again in zip(trials[0].rollouts, trials[2].rollouts, strict=True):
        assert torch.equal(first.obs, again.obs) and torch.equal(first.actions, again.actions)
    assert not torch.equal(trials[0].rollouts[0].obs, trials[1].rollouts[0].obs)


@pytest.mark.parametrize(("before", "last"), [(1, 3), (5, 3)])
def test_the_last_rollout_may_have_another_number_of_episodes_which_follow_the_former_ones(
    before: int, last: int
) -> None:
    """Slot k follows slot k modulo the number of slots before: it is shown that slot's last action and reward."""
    distribution = countdown()
    tasks = distribution.train.sample(4, numpy_stream(0, "tasks"))
    trial = run_trial(
        Counter(distribution.spec),
        Collector(distribution, before, CPU),
        tasks,
        num_adaptations=2,
        seed=0,
        deterministic_last=True,
        last_collector=Collector(distribution, last, CPU),
    )
    *_, former, final = trial.rollouts
    assert former.success.shape == (4, before) and final.success.shape == (4, last)
    assert (final.actions == 2).all()
    ends = former.lengths - 1
    for slot in range(last):
        source = slot % before
        for task in range(4):
            end = ends[task, source]
            shown = final.timesteps.prev_reward[task, slot, 0]
            assert shown == former.rewards[task, source, end] and shown != 0
            assert final.timesteps.prev_action[task, slot, 0].argmax() == former.actions[task, source, end]
    assert (final.timesteps.prev_done[:, :, 0] == 1).all()


@pytest.mark.parametrize("num_adaptations", [0, 2])
def test_the_last_rollout_can_be_sampled_besides_from_the_same_state(num_adaptations: int) -> None:
    """The trial is that without it, bit for bit, and the sampled rollout follows the same episodes."""
    distribution = countdown()
    tasks = distribution.train.sample(8, numpy_stream(0, "tasks"))

    def play_with(also_sampled: bool) -> Trial:
        agent, last = Counter(distribution.spec), Collector(distribution, 3, CPU)
        collector = Collector(distribution, 2, CPU)
        return run_trial(agent, collector, tasks, num_adaptations, 0, True, last, also_sampled=also_sampled)

    without, trial = play_with(False), play_with(True)
    assert without.sampled is None and trial.sampled is not None
    for one, other in zip(without.rollouts, trial.rollouts, strict=True):
        assert torch.equal(one.obs, other.obs) and torch.equal(one.actions, other.actions)
    assert trial.num_env_steps == without.num_env_steps
    assert trial.sampled.actions[trial.sampled.valid].unique().numel() > 1
    assert trial.sampled.success.shape == trial.rollouts[-1].success.shape
    first, again = (rollout.timesteps[:, :, 0] for rollout in (trial.rollouts[-1], trial.sampled))
    assert torch.equal(first.prev_action, again.prev_action) and torch.equal(first.prev_reward, again.prev_reward)
