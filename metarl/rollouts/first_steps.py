"""What an environment does, by the first steps of one task: a change that no space and no sampler shows."""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from metarl.errors import MetarlError
from metarl.rollouts.actions import random_action
from metarl.rollouts.episodes import Episodes
from metarl.seeding import numpy_stream
from metarl.tasks.distribution import TaskDistribution

_STEPS = 8
_TOLERANCE = 1e-3
"""Of itself; other processors and versions of a simulator round otherwise, so soon after a reset by far less."""
_SMALLEST = {"reward": 1e-6, "observation": 1e-4}
"""A smaller difference is rounding; that of an observation is a sum over coordinates, which may cancel out."""


def first_steps(distribution: TaskDistribution) -> list[list[float]] | None:
    """Rewards and observations of the first steps of one task, by seed and actions that never change.

    Returns:
        For each moment the reward that led to it, 0 at first, and a weighted sum of the observation; eight steps or
        as many as the episode lasts. None if they are others when played again, so that they say nothing, or if they
        cannot be played, of which whoever collects rollouts is told.
    """
    try:
        task = distribution.call("sample", numpy_stream(0, "draws"))
        env = distribution.make_vector_env(1)
        try:
            played, again = (_play(Episodes(distribution.id, distribution.spec, env, [task])) for _ in range(2))
        finally:
            distribution.close_vector_env(env)
    except MetarlError:
        return None
    if played == again:
        return played
    warnings.warn(
        f"{distribution.id} does not follow its seed: by the same one and the same actions its first steps are others, "
        "so that no run on it can be repeated. Draw from the environment's np_random, which reset(seed=...) sets.",
        RuntimeWarning,
        stacklevel=4,
    )
    return None


def _play(episodes: Episodes) -> list[list[float]]:
    rng = numpy_stream(0, "first steps")
    episodes.reset([0])
    moments = [[0.0, weighted(episodes.seen[0])]]
    for step in range(_STEPS):
        episodes.begin_step(random_action(episodes.action_space, rng)[None])
        rewards, terminated, truncated = episodes.end_step(step)
        ended = bool(terminated[0] or truncated[0])
        moments.append([float(rewards[0]), weighted((episodes.last_obs if ended else episodes.seen)[0])])
        if ended:
            break
    return moments


def weighted(obs: NDArray[np.float32]) -> float:
    """Every coordinate has another weight, so that two that change places are seen, and none is near 0."""
    return float(obs.astype(np.float64) @ (1.5 + np.cos(np.arange(len(obs)))))


def difference(then: list[list[float]], now: list[list[float]]) -> str | None:
    """What has changed between two results of :func:`first_steps`, or None."""
    for step, ((reward, seen), (reward_now, seen_now)) in enumerate(zip(then, now, strict=False)):
        if not math.isclose(reward, reward_now, rel_tol=_TOLERANCE, abs_tol=_SMALLEST["reward"]):
            return f"the reward of step {step} was {reward:.6g} and is {reward_now:.6g}"
        if not math.isclose(seen, seen_now, rel_tol=_TOLERANCE, abs_tol=_SMALLEST["observation"]):
            return f"what is observed after step {step} is something else" if step else "episodes begin elsewhere"
    if len(then) != len(now):
        return f"an episode that lasted {_lasts(then)} lasts {_lasts(now)}"
    return None


def _lasts(moments: list[list[float]]) -> str:
    return f"{len(moments) - 1} steps{' or more' if len(moments) > _STEPS else ''}"
