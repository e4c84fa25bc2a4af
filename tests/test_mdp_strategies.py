"""Strategies for finite MDPs do what their papers and the authors' code say, by plain loops and published numbers."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metarl.benchmarks.mdps.planning import action_values, best_actions, optimistic_values
from metarl.benchmarks.mdps.play import play
from metarl.benchmarks.mdps.source import MDPSource
from metarl.benchmarks.mdps.strategies import (
    UCRL2,
    EpsilonGreedy,
    ExplorationBonus,
    History,
    PosteriorSampling,
    Strategy,
    candidates,
)
from metarl.benchmarks.reproduce.agents import AgentSource
from metarl.benchmarks.tables import load_table
from metarl.envs.tabular_mdp import tabular_mdp
from metarl.errors import ConfigError
from metarl.types import Task

Array = NDArray[Any]
Table = list[list[list[float]]]
"""Values by time, state and action."""

HORIZON = 4


def _random_mdps(num: int, num_states: int, num_actions: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    shape = num, num_states, num_actions
    return rng.normal(size=shape), rng.dirichlet(np.ones(num_states), shape)


def _history(num: int = 3, num_states: int = 4, num_actions: int = 3) -> History:
    """Something that may have been seen, actions that were never tried among it."""
    rng = np.random.default_rng(1)
    moves = rng.integers(0, 3, (num, num_states, num_actions, num_states)) * rng.integers(
        0, 2, (num, num_states, num_actions, 1)
    )
    visits = moves.sum(-1) + rng.integers(0, 2, moves.shape[:3])
    rewards = rng.normal(1.0, 1.0, visits.shape) * visits
    return History(rewards, visits.astype(float), moves.astype(float), 7, HORIZON)


def _plain_values(rewards: Array, transitions: Array, bonuses: Array | None = None) -> Table:
    """Backward induction of one instance, number by number."""
    num_states, num_actions = rewards.shape
    after = [0.0] * num_states
    table: Table = []
    for steps_left in range(HORIZON):
        values = [
            [
                float(rewards[s, a])
                + sum(float(transitions[s, a, k]) * after[k] for k in range(num_states))
                + (0.0 if bonuses is None else float(bonuses[s, a]) * steps_left)
                for a in range(num_actions)
            ]
            for s in range(num_states)
        ]
        after = [max(row) for row in values]
        table.insert(0, values)
    return table


def _plain_optimistic_values(rewards: Array, transitions: Array, slack: Array) -> Table:
    """Extended value iteration of one instance as the authors' code does it, transitions changed along the way."""
    num_states, num_actions = rewards.shape
    current = transitions.copy()
    after = np.zeros(num_states)
    table: Table = []
    for _ in range(HORIZON):
        values = [[0.0] * num_actions for _ in range(num_states)]
        ascending = sorted(range(num_states), key=lambda k: after[k])
        for s in range(num_states):
            for a in range(num_actions):
                shifted = list(current[s, a])
                best = ascending[-1]
                whole = shifted[best] + slack[s, a] / 2 > 1
                if whole:
                    shifted = [0.0] * num_states
                    shifted[best] = 1.0
                else:
                    shifted[best] += slack[s, a] / 2
                for worst in ascending:
                    excess = sum(shifted) - 1
                    if excess <= 0:
                        break
                    shifted[worst] = max(0.0, shifted[worst] - excess)
                if not whole:
                    current[s, a] = shifted
                values[s][a] = float(rewards[s, a]) + sum(p * float(v) for p, v in zip(shifted, after, strict=True))
        after = np.array([max(row) for row in values])
        table.insert(0, values)
    return table


def test_values_are_those_of_backward_induction() -> None:
    rewards, transitions = _random_mdps(3, 4, 2)
    bonuses = np.random.default_rng(2).random(rewards.shape)
    found = action_values(rewards, transitions, HORIZON)
    favoured = action_values(rewards, transitions, HORIZON, bonuses)
    assert found.shape == (HORIZON, 3, 4, 2)
    for i in range(3):
        np.testing.assert_allclose(found[:, i], _plain_values(rewards[i], transitions[i]))
        np.testing.assert_allclose(favoured[:, i], _plain_values(rewards[i], transitions[i], bonuses[i]))
    np.testing.assert_array_equal(found[-1], rewards)


@pytest.mark.parametrize("width", [0.0, 0.1, 0.5, 1.5, 5.0])
def test_optimistic_values_are_those_of_extended_value_iteration(width: float) -> None:
    rewards, transitions = _random_mdps(5, 4, 2)
    before = transitions.copy()
    slack = width * np.random.default_rng(3).uniform(0.5, 1.0, rewards.shape)
    found = optimistic_values(rewards, transitions, slack, HORIZON)
    for i in range(5):
        np.testing.assert_allclose(found[:, i], _plain_optimistic_values(rewards[i], transitions[i], slack[i]))
    np.testing.assert_array_equal(transitions, before)
    if width == 0.0:
        np.testing.assert_allclose(found, action_values(rewards, transitions, HORIZON))
    elif width == 5.0:  # Where anything is likely, the best state follows on every action.
        np.testing.assert_allclose(found[-2], rewards + rewards.max((1, 2))[:, None, None])


def _posterior(history: History, i: int, s: int, a: int, weight: float) -> tuple[float, list[float]]:
    """Mean of rewards with ``weight`` visits that paid 0, and next states with as many of each."""
    counts = [float(history.moves[i, s, a, k]) + weight for k in range(history.moves.shape[3])]
    mean = float(history.rewards[i, s, a]) / (float(history.visits[i, s, a]) + weight)
    return mean, [count / sum(counts) for count in counts]


def _plain_actions(strategy: Strategy, history: History, i: int) -> list[list[int]]:
    """What a strategy without chance does on one instance, by time and state."""
    num_states, num_actions = history.visits.shape[1:]
    rewards, bounds = np.zeros((num_states, num_actions)), np.zeros((num_states, num_actions))
    transitions = np.zeros((num_states, num_actions, num_states))
    for s in range(num_states):
        for a in range(num_actions):
            visits, moves = float(history.visits[i, s, a]), float(history.moves[i, s, a].sum())
            match strategy:
                case EpsilonGreedy():
                    rewards[s, a], transitions[s, a] = _posterior(history, i, s, a, 1e-4)
                case ExplorationBonus(scale):
                    rewards[s, a], transitions[s, a] = _posterior(history, i, s, a, 1.0)
                    rewards[s, a] += 1 / (visits + 2)
                    bounds[s, a] = 2 * HORIZON**2 * scale * HORIZON / (1 + num_states + moves)
                case UCRL2(scale):
                    rewards[s, a], _ = _posterior(history, i, s, a, 1e-4)
                    _, transitions[s, a] = _posterior(history, i, s, a, 1e-5)
                    log = math.log(2 * num_states * num_actions * 8 / 0.05)
                    rewards[s, a] += scale * math.sqrt(4 * log / max(visits, 1))
                    bounds[s, a] = scale * math.sqrt(4 * num_states * log / max(moves, 1))
    if isinstance(strategy, UCRL2):
        table = _plain_optimistic_values(rewards, transitions, bounds)
    else:
        table = _plain_values(rewards, transitions, bounds)
    return [[row.index(max(row)) for row in values] for values in table]


@pytest.mark.parametrize(
    "strategy",
    [EpsilonGreedy(), ExplorationBonus(0.0016), ExplorationBonus(0.1), UCRL2(0.03), UCRL2(0.3), UCRL2(1.0)],
    ids=repr,
)
def test_strategies_without_chance_act_as_a_plain_loop(strategy: Strategy) -> None:
    history = _history()
    actions = strategy(history, np.random.default_rng(0))
    assert actions.shape == (HORIZON, 3, 4)
    for i in range(3):
        untried = (history.visits[i] == 0).sum(1) > 1  # There ties may be broken otherwise.
        expected = np.array(_plain_actions(strategy, history, i))
        np.testing.assert_array_equal(actions[:, i, ~untried], expected[:, ~untried])


@pytest.mark.parametrize("num_samples", [1, 3])
def test_posterior_sampling_acts_as_a_plain_loop_on_the_same_draws(num_samples: int) -> None:
    history = _history()
    actions = PosteriorSampling(num_samples)(history, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    tables = [[] for _ in range(3)]  # type: list[list[Table]]
    for _ in range(num_samples):
        normal, gamma = rng.standard_normal((3, 4, 3)), rng.standard_gamma(1.0 + history.moves)
        for i in range(3):
            rewards, transitions = np.zeros((4, 3)), np.zeros((4, 3, 4))
            for s in range(4):
                for a in range(3):
                    precision = 1.0 + history.visits[i, s, a]
                    rewards[s, a] = history.rewards[i, s, a] / precision + normal[i, s, a] / math.sqrt(precision)
                    transitions[s, a] = gamma[i, s, a] / gamma[i, s, a].sum()
            tables[i].append(_plain_values(rewards, transitions))
    for i in range(3):
        np.testing.assert_array_equal(actions[:, i], np.max(tables[i], axis=0).argmax(-1))


def test_posterior_samples_have_the_moments_of_the_posterior() -> None:
    """In the last step the best of two actions is the one whose mean is drawn higher: P = Phi(difference / error)."""
    num = 20_000
    visits, zeros = np.tile([[8.0, 3.0]], (num, 1, 1)), np.zeros((num, 1, 2, 1))
    rewards = visits * np.array([0.5, 1.0])
    share = PosteriorSampling()(History(rewards, visits, zeros, 1, 1), np.random.default_rng(0)).mean()
    difference, error = 3.0 / 4.0 - 4.0 / 9.0, math.sqrt(1 / 4 + 1 / 9)
    assert share == pytest.approx(0.5 * (1 + math.erf(difference / error / math.sqrt(2))), abs=0.012)


def test_epsilon_is_the_chance_of_any_action_and_ties_are_broken_at_random() -> None:
    num = 10_000
    visits = np.ones((num, 1, 4))
    rewards = visits * np.array([0.0, 2.0, 1.0, 1.0])
    history = History(rewards, visits, visits[..., None], 1, 1)
    shares = np.bincount(EpsilonGreedy(0.4)(history, np.random.default_rng(0)).ravel(), minlength=4) / num
    np.testing.assert_allclose(shares, [0.1, 0.7, 0.1, 0.1], atol=0.015)
    shares = np.bincount(EpsilonGreedy(1.0)(history, np.random.default_rng(0)).ravel(), minlength=4) / num
    np.testing.assert_allclose(shares, 0.25, atol=0.015)
    ties = best_actions(np.tile([-1.0, -3.0, -1.0], (num, 1)), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(ties, minlength=3) / num, [0.5, 0.0, 0.5], atol=0.015)


def test_play_is_a_loop_over_episodes_and_tells_what_was_seen() -> None:
    """Fixed plans of actions; rewards and counts are those of the same environment, stepped alone."""
    distribution = tabular_mdp(num_states=3, num_actions=2, horizon=4)
    tasks = distribution.train.sample(2, np.random.default_rng(0))
    histories: list[History] = []

    def remembered(history: History, rng: np.random.Generator) -> Array:
        copies = history.rewards.copy(), history.visits.copy(), history.moves.copy()
        histories.append(History(*copies, history.episode, history.horizon))
        return np.random.default_rng(history.episode).integers(2, size=(4, 2, 3))

    rewards = play(remembered, distribution, tasks, 3, seed=5)
    assert rewards.shape == (2, 3) and [history.episode for history in histories] == [1, 2, 3]
    np.testing.assert_array_equal(play(remembered, distribution, tasks, 2, seed=5), rewards[:, :2])
    last = histories[2]
    assert not histories[0].visits.any()
    for i in range(2):
        assert last.visits[i].sum() == 2 * 4 and last.moves[i].sum() == 2 * 3  # None behind an episode's end.
        np.testing.assert_allclose(last.rewards[i].sum(), rewards[i, :2].sum())
        # Every episode begins in state 0, which is left as often as it is entered but for ends.
        assert last.visits[i, 0].sum() == 2 + last.moves[i, :, :, 0].sum()
    np.testing.assert_array_equal(last.visits[:, 1:].sum(2), last.moves[..., 1:].sum((1, 2)))


@cache
def _authors_tasks() -> list[Task]:
    """The instances of the authors' script: a seed each of NumPy's old generator."""
    tasks = []
    for seed in range(1000):
        rng = np.random.RandomState(seed)
        tasks.append(
            {"reward_means": 1.0 + rng.normal(size=(10, 5)), "transitions": rng.dirichlet([1.0] * 10, (10, 5))}
        )
    return tasks


@pytest.mark.parametrize(
    ("strategy", "published"),
    [
        (EpsilonGreedy(1.0), 100.1),
        (EpsilonGreedy(), 134.8),
        (EpsilonGreedy(0.2), 132.8),
        (PosteriorSampling(), 138.1),
        (PosteriorSampling(14), 144.1),
        (ExplorationBonus(0.001585), 150.2),
    ],
    ids=repr,
)
def test_the_numbers_of_the_paper_come_out_on_the_instances_of_its_authors(
    strategy: Strategy, published: float
) -> None:
    """Table 2 of RL² at n = 10. Of 1,000 means of trials the noise of rewards and moves alone has an error of 0.5."""
    rewards = play(strategy, tabular_mdp(), _authors_tasks(), 10, seed=0)
    assert rewards.sum(1).mean() == pytest.approx(published, abs=3 * math.hypot(0.5, 0.5))


def test_candidates_are_the_authors_grids() -> None:
    found = candidates()
    assert [len(strategies) for strategies in found.values()] == [1, 1, 20, 21, 21, 10, 1]
    assert found["BEB"][0] == ExplorationBonus(0.0001) and found["BEB"][-1] == ExplorationBonus(1.0)
    assert found["UCRL2"][5] == UCRL2(0.001) and found["eps-Greedy"][0] == EpsilonGreedy(0.1)


def test_settings_are_chosen_for_each_length_on_training_tasks() -> None:
    source = MDPSource("eps-Greedy", "tabular-mdp", (1, 6), num_tasks=40, num_tuning=30)
    assert source.steps(1.0) == (40 + 10 * 30) * 6 * 10
    content = source.run(1, 1.0, Path(), lambda *_: None)
    for length in ("1", "6"):
        means = content["candidates"][length]
        assert len(means) == 10 and content["trials"][length]["strategy"] == max(means, key=means.__getitem__)
        assert source.remark(content, length) == f"`{content['trials'][length]['strategy']}`"
        assert source.values(content, length).shape == (40,)
    assert 5 < source.values(content, "1").mean() < 20 < source.values(content, "6").mean() < 130
    sure = MDPSource("Greedy", "tabular-mdp", (1, 6), num_tasks=40)
    assert sure.remark(sure.run(1, 0.1, Path(), lambda *_: None), "6") == ""
    assert 10 < sure.speed(0.05) < 1e9
    with pytest.raises(ConfigError, match=r"unknown strategy 'UCRL'\. Did you mean 'UCRL2'"):
        MDPSource("UCRL", "tabular-mdp", (1,))


def test_table_two_of_rl2_is_whole() -> None:
    table = load_table("rl2-mdps")
    assert len(table.cells) == 7 * 5 + 3 and all(cell.published is not None for cell in table.cells)
    assert len(table.runs([cell for cell in table.cells if not cell.on_request], "full")) == 7
    values = {cell.key: cell.published.value for cell in table.cells if cell.published is not None}
    assert values["UCRL2/n=75"] == 1427.6 and values["RL2/n=25"] == 445.7 and values["SNAIL/n=10"] == 0.766


def test_a_trial_may_count_as_a_whole(tmp_path: Path) -> None:
    """The sum of what each of its episodes paid, of which there are as many as in training."""
    small: dict[str, Any] = {"num_iterations": 1, "meta_batch_size": 2, "eval_every": 100, "device": "cpu"}
    settings = {"hidden_size": 4, "episodes_per_trial": 3}
    source = AgentSource("rl2", "tabular-mdp", None, small, settings, num_tasks=5, whole_trial=True)
    content = source.run(1, 1.0, tmp_path, lambda *_: None)
    assert content is not None
    returns = np.array(content["returns"])
    assert returns.shape == (5, 3)
    np.testing.assert_allclose(source.values(content, ""), returns.sum(1))
