"""What is kept of a trial's best moment: against a plain loop, step by step, and in the agent."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from helpers.arms import train
from torch import Tensor

from metarl import evaluate
from metarl.agents import AGENTS
from metarl.agents.rl2 import RL2Config
from metarl.networks.recall import Recall, kept_size, recall_best, shown_size
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.tasks.registry import make
from metarl.types import Rollout, Spec, Timestep, Trial

OBS, ACTION, SEQUENCES, STEPS = 3, 2, 4, 12
CPU = torch.device("cpu")


def inputs_of_trials() -> Tensor:
    """Observation, action, reward and done flag; rewards below zero, of which some are equal; three episodes each."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SEQUENCES, STEPS, OBS + ACTION + 2, generator=generator)
    inputs[..., -2] = -torch.randint(1, 5, (SEQUENCES, STEPS), generator=generator).float()
    inputs[..., -1] = 0.0
    inputs[:, 0, -2] = 0.0
    inputs[:, [4, 8], -1] = 1.0
    inputs[:, 8, -2] = 100.0  # Belongs to the episode before, whose last observation nobody saw.
    return inputs


def by_hand(sequence: np.ndarray) -> np.ndarray:
    """Row by row: the mean observation of the best reward so far, that reward, and whether there was one."""
    rows: list[list[float]] = []
    observed: dict[float, list[np.ndarray]] = {}
    for time, step in enumerate(sequence):
        obs, reward, new_episode = step[:OBS], step[-2], step[-1]
        if time and not new_episode:
            observed.setdefault(reward, []).append(obs)
        best = max(observed, default=None)
        rows.append([0.0] * shown_size(OBS) if best is None else [*np.mean(observed[best], axis=0), best, 1.0])
    return np.array(rows)


def test_it_shows_what_a_plain_loop_finds() -> None:
    inputs = inputs_of_trials()
    shown, kept = recall_best(inputs, torch.zeros(SEQUENCES, kept_size(OBS)), OBS)
    expected = np.stack([by_hand(sequence) for sequence in inputs.double().numpy()])
    np.testing.assert_allclose(shown.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert shown[:, 0].eq(0).all()  # Before the first reward, though a reward of zero would be the best of all.
    assert kept.shape == (SEQUENCES, kept_size(OBS))


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_pieces_go_on_from_what_was_kept(size: int) -> None:
    inputs, kept = inputs_of_trials(), torch.zeros(SEQUENCES, kept_size(OBS))
    whole, last = recall_best(inputs, kept, OBS)
    parts = []
    for piece in torch.split(inputs, size, dim=1):
        shown, kept = recall_best(piece, kept, OBS)
        parts.append(shown)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(kept, last, rtol=1e-6, atol=1e-6)


def test_the_way_there_is_shown_in_its_running_deviation() -> None:
    inputs, kept = inputs_of_trials(), torch.zeros(SEQUENCES, kept_size(OBS))
    inputs[..., 0] *= 1e-6  # As a joint that is held; a hundredth of the largest deviation is the least unit.
    recall = Recall(OBS)
    best, _ = recall_best(inputs, kept, OBS)
    way = torch.where(best[..., -1:] > 0, best[..., :OBS] - inputs[..., :OBS], 0.0).double().numpy()
    shown, _ = recall(inputs, kept)
    np.testing.assert_allclose(shown[..., :OBS].numpy(), way, rtol=1e-5, atol=1e-6)  # No deviation is known yet.
    valid = torch.ones(SEQUENCES, STEPS, dtype=torch.bool)
    valid[2, 5:] = False
    recall.update(inputs, kept, valid)
    deviation = way[valid.numpy()].std(axis=0)
    assert deviation[0] < 0.01 * deviation.max()
    shown, after = recall(inputs, kept)
    expected = np.clip(way / np.maximum(deviation, 0.01 * deviation.max()), -10.0, 10.0)
    np.testing.assert_allclose(shown[..., :OBS].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(shown[..., OBS:], best[..., OBS:]) and not shown[:, 0].any()
    # What is kept is the place itself, in the observation's own units.
    torch.testing.assert_close(after[:, :OBS], best[:, -1, :OBS], rtol=0, atol=0)


def test_the_deviation_is_of_what_was_played_and_part_of_a_checkpoint() -> None:
    tasks = make("navigation-2d")
    agent = RL2Config(hidden_size=8, recall_best=True, bptt_steps=30).build(tasks.spec, CPU, 0)
    trial = run_trial(agent, Collector(tasks, 2, CPU), tasks.train.sample(3, np.random.default_rng(0)), 1, 0)
    batch = agent.sequences(trial)
    agent.meta_update(trial)
    ways = []
    for task, slot in itertools.product(range(3), range(2)):
        best: list[tuple[float, np.ndarray]] = []
        for rollout in trial.rollouts:
            obs, reward = (
                rollout.timesteps.obs[task, slot].double().numpy(),
                rollout.rewards[task, slot].double().numpy(),
            )
            for time in np.flatnonzero(rollout.valid[task, slot].numpy()):
                if time and (not best or reward[time - 1] > best[0][0]):
                    best = [(reward[time - 1], obs[time])]
                ways.append(best[0][1] - obs[time] if best else np.zeros_like(obs[time]))
    assert len(ways) == int(batch.valid.sum())
    named = agent.named_tensors()
    variance = named["recall.way.squares"] / named["recall.way.count"]
    np.testing.assert_allclose(variance.numpy(), np.var(ways, axis=0), rtol=1e-4)


@pytest.mark.parametrize("memory", ["gru", "lstm", "transformer"])
@pytest.mark.parametrize("head", ["linear", "state"])
def test_what_is_recomputed_for_an_update_is_what_was_played(
    memory: Literal["gru", "lstm", "transformer"], head: Literal["linear", "state"]
) -> None:
    tasks = make("navigation-2d")
    config = RL2Config(
        memory=memory,
        hidden_size=16,
        head=head,
        head_sizes=(8,) if head == "state" else (),
        episodes_per_trial=3,
        bptt_steps=25,
        recall_best=True,
    )
    agent = config.build(tasks.spec, CPU, 0)
    trial = run_trial(agent, Collector(tasks, 2, CPU), tasks.train.sample(2, np.random.default_rng(0)), 2, 0)
    batch = agent.sequences(trial)
    with torch.no_grad():
        policy, _ = agent.evaluate(batch)
    log_probs = policy.log_prob(batch.actions)[batch.valid]
    torch.testing.assert_close(log_probs, batch.log_probs[batch.valid], rtol=1e-4, atol=1e-4)
    assert np.isfinite(agent.meta_update(trial)["policy_loss"])


def test_it_is_seen_by_the_policy_and_by_nothing_else() -> None:
    spec = Spec(obs_dim=OBS, action_dim=ACTION, discrete=False, horizon=4)
    inputs = inputs_of_trials()
    for recalls in (True, False):
        agent = RL2Config(hidden_size=8, recall_best=recalls).build(spec, CPU, 0)
        other = agent.no_memory(SEQUENCES)
        assert other.shape[1] == 8 + recalls * kept_size(OBS)
        other[:, : kept_size(OBS)] = 1.0 if recalls else 0.0
        with torch.no_grad():
            first, second = (
                agent.forward(inputs[:, :1], memory)[0].mode() for memory in (agent.no_memory(SEQUENCES), other)
            )
        assert torch.equal(first, second) is not recalls


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ([[0, 0, 1], [0, 1, None]], True),  # Reaching the goal ends an episode, and nothing else pays.
        ([[1, None, None], [0, None, None]], True),  # Episodes of one step.
        ([[-3, -2, -1], [-3, -1, None]], False),  # Better rewards on the way there.
        ([[0, 1, 0], [0, 0, 1]], False),
        ([[1, 1, 1], [1, 1, None]], False),
        ([[0, 0, 0], [0, 0, 0]], False),
    ],
)
def test_what_nobody_sees_and_alone_pays_is_told_of(
    rewards: list[list[int | None]], told: bool, recwarn: pytest.WarningsRecorder
) -> None:
    agent = RL2Config(hidden_size=8, recall_best=True).build(make("navigation-2d").spec, CPU, 0)
    paid = torch.tensor([[0.0 if r is None else float(r) for r in row] for row in rewards])[:, None, None]
    valid = torch.tensor([[r is not None for r in row] for row in rewards])[:, None, None]
    nothing = torch.zeros(1, 1, 3, 2)
    rollouts = []
    for reward, is_valid in zip(paid, valid, strict=True):
        timesteps = Timestep(nothing, nothing, reward, reward, is_valid)
        ended = torch.ones(1, 1, dtype=torch.bool)
        no = torch.zeros(1, 1, 3, dtype=torch.bool)
        rollouts.append(Rollout(timesteps, nothing, reward, reward, no, no, nothing[:, :, 0], ended, ~ended))
    for _ in range(2):
        agent._warn_of_unseen_goals(Trial([None], tuple(rollouts)))
    assert [str(warning.message)[:50] for warning in recwarn] == [
        "recall_best: in 1 of the 1 trials with different r"
    ] * told


def test_only_agents_that_recall_take_the_setting() -> None:
    assert "recall_best" in {field.name for field in dataclasses.fields(AGENTS["rl2"])}
    assert "recall_best" not in {field.name for field in dataclasses.fields(AGENTS["snail"])}


def test_a_goal_that_was_found_is_gone_back_to() -> None:
    """2-D navigation pays by distance: the second episode can begin where the first one ended."""
    tasks = make("navigation-2d")
    returns = {}
    for recalls in (True, False):
        config = RL2Config(
            hidden_size=32, head="state", head_sizes=(32,), meta_lr=3e-3, num_epochs=5, recall_best=recalls
        )
        agent = config.build(tasks.spec, CPU, 0)
        train(agent, tasks, num_iterations=10, num_tasks=40)
        found = evaluate(agent, tasks, num_tasks=40, seed=1)
        returns[recalls] = found.returns.mean(axis=0)
    first, second = returns[True]
    assert second > first + 2.0
    assert second > returns[False][1] + 10.0
