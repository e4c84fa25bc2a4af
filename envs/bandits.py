"""Multi-armed bandits: one state, ``num_arms`` actions, one trial of ``num_pulls`` pulls as one episode.

The generator is that of RL² (Duan et al. 2016, arXiv 1611.02779, section 3.1 and Table 1): arm ``i`` pays 1 with
probability ``p_i ~ U[0, 1]`` and 0 otherwise. The Gaussian bandit draws ``means_i ~ N(0, 1)`` and adds ``N(0, 1)``
noise to every pull. The nine settings of Table 1 are ``bandit-k{5,10,50}-n{10,100,500}``; ``bandit`` is k=5, n=10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import numpy as np

from metarl.errors import ConfigError, unknown_name
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task
from metarl.vector.array_env import Array, ArrayVectorEnv, TaskParams
from metarl.vector.streams import RowStreams

_KINDS = ("bernoulli", "gaussian")


@dataclass(frozen=True)
class BanditDynamics:
    """Pulls of independent arms; the state is empty and the observation a constant zero.

    Parameters of an instance: ``means``, ``[instance, arm]``: success probabilities, or means of unit-variance rewards.

    Attributes:
        num_arms: number of arms, k.
        kind: ``"bernoulli"`` or ``"gaussian"``.
    """

    num_arms: int
    kind: str

    @property
    def observation_space(self) -> gym.spaces.Box:
        """One number that is always 0: recurrent agents need an input, and there is nothing to see."""
        return gym.spaces.Box(0.0, 0.0, (1,), np.float32)

    @property
    def action_space(self) -> gym.spaces.Discrete:
        """The arm to pull."""
        return gym.spaces.Discrete(self.num_arms)

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        """The constant state, ``[num, 1]``."""
        return np.zeros((num, 1))

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        """Pull one arm per instance. One call draws one number per instance, uniform or normal by ``kind``."""
        num = len(action)
        means = params["means"][np.arange(num), action]
        if self.kind == "bernoulli":
            rewards = (rng.random(num) < means).astype(np.float64)
        else:
            rewards = means + rng.standard_normal(num)
        return state, rewards, np.zeros(num, bool), {}

    def observe(self, state: Array, params: TaskParams) -> Array:
        """Zeros ``[num, 1]``."""
        return state


def bandit(num_arms: int = 5, num_pulls: int = 10, kind: str = "bernoulli") -> TaskDistribution:
    """Bandits with ``num_arms`` arms; a trial is one episode of ``num_pulls`` pulls.

    Args:
        num_arms: k, 2 or more.
        num_pulls: n, 1 or more; also the horizon.
        kind: ``"bernoulli"`` (RL²'s) or ``"gaussian"``.

    Raises:
        ConfigError: naming the argument that is wrong and what is expected.
    """
    if isinstance(num_arms, bool) or not isinstance(num_arms, int) or num_arms < 2:
        raise ConfigError(f"bandit.num_arms must be an integer of 2 or more, got {num_arms!r}.")
    if isinstance(num_pulls, bool) or not isinstance(num_pulls, int) or num_pulls < 1:
        raise ConfigError(f"bandit.num_pulls must be an integer of 1 or more, got {num_pulls!r}.")
    if kind not in _KINDS:
        raise unknown_name("bandit.kind", str(kind), _KINDS)
    family = "bandit" if kind == "bernoulli" else "bandit-gaussian"
    prior = "p ~ U[0,1] (RL², Table 1)" if kind == "bernoulli" else "means ~ N(0,1), noise N(0,1)"
    return TaskDistribution(
        id=f"{family}-k{num_arms}-n{num_pulls}",
        sample=partial(_sample, num_arms, kind),
        make_vector=partial(ArrayVectorEnv, BanditDynamics(num_arms, kind), horizon=num_pulls),
        horizon=num_pulls,
        description=f"{kind.capitalize()} bandit, {num_arms} arms, {num_pulls} pulls, {prior}",
    )


def _sample(num_arms: int, kind: str, rng: np.random.Generator) -> Task:
    means = rng.random(num_arms) if kind == "bernoulli" else rng.standard_normal(num_arms)
    return {"means": means}


DISTRIBUTIONS: tuple[TaskDistribution, ...] = (
    dataclasses.replace(bandit(), id="bandit"),
    dataclasses.replace(bandit(kind="gaussian"), id="bandit-gaussian"),
    *(bandit(num_arms, num_pulls) for num_arms in (5, 10, 50) for num_pulls in (10, 100, 500)),
)
