"""Strategies play bandits: the environments that agents are trained on, many instances at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.benchmarks.bandits.strategies import Strategy
from metarl.errors import ConfigError
from metarl.seeding import derive, numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task

Array = NDArray[Any]

_BLOCK = 1000
"""Instances at once: their counts fit into a core's cache, and Ctrl-C waits for no more than them."""


@dataclass(frozen=True)
class Chosen:
    """A strategy with the best of its settings.

    Attributes:
        strategy: with these settings.
        means: what each of the candidates came to on the tasks that they were compared on.
    """

    strategy: Strategy
    means: tuple[float, ...]


def play(
    strategy: Strategy,
    distribution: TaskDistribution,
    tasks: Sequence[Task],
    seed: int,
    listener: Callable[[int], None] = lambda _: None,
) -> Array:
    """Total rewards of a trial on each task, ``[task]``.

    Args:
        strategy: what chooses.
        distribution: bandits.
        tasks: of the distribution.
        seed: seed for pulls, the same for all strategies, and for those that draw themselves.
        listener: told how many tasks are done.
    """
    totals = np.zeros(len(tasks))
    for first in range(0, len(tasks), _BLOCK):
        block = tasks[first : first + _BLOCK]
        rng = numpy_stream(seed, "strategy", first)
        env = distribution.make_vector_env(len(block))
        try:
            env.reset(seed=derive(seed, "pulls", first), options={"tasks": list(block)})
            shape = len(block), distribution.spec.action_dim
            successes, failures = np.ones(shape), np.ones(shape)
            rows = np.arange(len(block))
            for pull in range(distribution.spec.horizon):
                arms = strategy(successes, failures, pull, rng)
                _, rewards, *_ = env.step(arms)
                successes[rows, arms] += rewards
                failures[rows, arms] += 1.0 - rewards
                totals[first : first + len(block)] += rewards
        finally:
            env.close()
        listener(first + len(block))
    return totals


def choose(
    strategies: Sequence[Strategy],
    distribution: TaskDistribution,
    tasks: Sequence[Task],
    seed: int,
    listener: Callable[[int], None] = lambda _: None,
) -> Chosen:
    """The strategy with the highest mean of total rewards on some tasks, which must be others than those of the test.

    Args:
        strategies: candidates; the first of equals is taken.
        distribution: bandits.
        tasks: to compare them on, the same for all.
        seed: see :func:`play`.
        listener: told how many candidates are done.

    Raises:
        ConfigError: without candidates.
    """
    if not strategies:
        raise ConfigError("expected at least one strategy to choose from, got none.")
    if len(strategies) == 1:
        return Chosen(strategies[0], ())
    means = []
    for strategy in strategies:
        means.append(float(play(strategy, distribution, tasks, seed).mean()))
        listener(len(means))
    return Chosen(strategies[int(np.argmax(means))], tuple(means))
