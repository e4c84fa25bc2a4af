"""Strategies play finite MDPs: the environments that agents are trained on, many instances at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.benchmarks.mdps.strategies import History, Strategy
from metarl.seeding import derive, numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task

Array = NDArray[Any]

_BLOCK = 500
"""Instances at once: their tables fit into a core's cache, and Ctrl-C waits for no more than them."""


def play(
    strategy: Strategy,
    distribution: TaskDistribution,
    tasks: Sequence[Task],
    num_episodes: int,
    seed: int,
    listener: Callable[[int], None] = lambda _: None,
) -> Array:
    """Rewards of each episode on each task, ``[task, episode]``; the first episodes do not depend on their number.

    Args:
        strategy: what plans.
        distribution: finite MDPs whose observation is the state, one-hot.
        tasks: of the distribution.
        num_episodes: to play on each.
        seed: seed for rewards and next states, and for strategies that draw.
        listener: told how many tasks are done.
    """
    rewards = np.zeros((len(tasks), num_episodes))
    for first in range(0, len(tasks), _BLOCK):
        block = tasks[first : first + _BLOCK]
        _play_block(strategy, distribution, block, derive(seed, "block", first), rewards[first : first + len(block)])
        listener(first + len(block))
    return rewards


def _play_block(
    strategy: Strategy, distribution: TaskDistribution, tasks: Sequence[Task], seed: int, rewards: Array
) -> None:
    """Play some tasks together, and add what they pay to ``rewards`` ``[task, episode]``."""
    spec, rng, rows = distribution.spec, numpy_stream(seed, "strategy"), np.arange(len(tasks))
    shape = len(tasks), spec.obs_dim, spec.action_dim
    sums, visits, moves = np.zeros(shape), np.zeros(shape), np.zeros((*shape, spec.obs_dim))
    env = distribution.make_vector_env(len(tasks))
    try:
        obs, _ = env.reset(seed=derive(seed, "environment"), options={"tasks": list(tasks)})
        for episode in range(rewards.shape[1]):
            actions = strategy(History(sums, visits, moves, episode + 1, spec.horizon), rng)
            state = obs.argmax(1)
            for time in range(spec.horizon):
                action = actions[time, rows, state]
                obs, paid, *_ = env.step(action)
                following = obs.argmax(1)
                sums[rows, state, action] += paid
                visits[rows, state, action] += 1.0
                if time + 1 < spec.horizon:
                    moves[rows, state, action, following] += 1.0
                rewards[:, episode] += paid
                state = following
            obs, _ = env.reset()
    finally:
        env.close()
