"""Random finite MDPs of RL² (Duan et al. 2016, arXiv 1611.02779, section 3.2 and Table 2).

Ten states, five actions, episodes of ten steps from state 0. Each task draws reward means ``~ N(1, 1)`` and
transition rows ``~ Dirichlet(1, ..., 1)`` per (state, action). Every step adds ``N(0, 1)`` noise to the reward: the
paper leaves open whether that noise is drawn per step or once per task; the author's environment
(``random_tabular_mdp_env.py`` in ``florensacc/rllab-curriculum``) draws it per step. The paper's ``n`` episodes of a
task are the episodes of one trial, chosen by the trial runner, not by this family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import numpy as np

from metarl.errors import ConfigError
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task
from metarl.vector.array_env import Array, ArrayVectorEnv, TaskParams
from metarl.vector.streams import RowStreams


@dataclass(frozen=True)
class TabularDynamics:
    """Finite MDPs, one per instance; the state is an integer, the observation its one-hot code.

    Parameters of an instance: ``transitions``, ``[instance, state, action, next state]``, rows that sum to 1, and
    ``reward_means``, ``[instance, state, action]``.

    Attributes:
        num_states: number of states, S.
        num_actions: number of actions, A.
    """

    num_states: int
    num_actions: int

    @property
    def observation_space(self) -> gym.spaces.Box:
        """One-hot state, ``[num_states]``."""
        return gym.spaces.Box(0.0, 1.0, (self.num_states,), np.float32)

    @property
    def action_space(self) -> gym.spaces.Discrete:
        """One of ``num_actions`` actions."""
        return gym.spaces.Discrete(self.num_actions)

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        """State 0 everywhere, int64 ``[num]``."""
        return np.zeros(num, np.int64)

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        """One transition per instance.

        Next states invert the cumulative distribution. One call draws ``num`` uniforms, then ``num`` normals.
        """
        num = len(action)
        rows = np.arange(num)
        cumulative = params["transitions"][rows, state, action].cumsum(-1)
        passed = rng.random(num)[:, None] >= cumulative
        # The last cumulative probability may round to just below 1, so its column must not count.
        next_state = passed[:, :-1].sum(-1)
        rewards = params["reward_means"][rows, state, action] + rng.standard_normal(num)
        return next_state, rewards, np.zeros(num, bool), {}

    def observe(self, state: Array, params: TaskParams) -> Array:
        """One-hot states ``[num, num_states]``."""
        return np.eye(self.num_states)[state]


def tabular_mdp(num_states: int = 10, num_actions: int = 5, horizon: int = 10) -> TaskDistribution:
    """Random MDPs by RL²'s generator; the defaults are the paper's S=10, A=5, T=10.

    Raises:
        ConfigError: naming the argument that is wrong and what is expected.
    """
    for name, value, least in (("num_states", num_states, 2), ("num_actions", num_actions, 2), ("horizon", horizon, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"tabular_mdp.{name} must be an integer of {least} or more, got {value!r}.")
    return TaskDistribution(
        id=f"tabular-mdp-s{num_states}-a{num_actions}-t{horizon}",
        sample=partial(_sample, num_states, num_actions),
        make_vector=partial(ArrayVectorEnv, TabularDynamics(num_states, num_actions), horizon=horizon),
        horizon=horizon,
        description=f"Random MDPs, {num_states} states, {num_actions} actions, episodes of {horizon} (RL², Table 2)",
    )


def _sample(num_states: int, num_actions: int, rng: np.random.Generator) -> Task:
    shape = (num_states, num_actions)
    return {
        "reward_means": rng.normal(1.0, 1.0, shape),
        "transitions": rng.dirichlet(np.ones(num_states), shape),
    }


DISTRIBUTIONS: tuple[TaskDistribution, ...] = (dataclasses.replace(tabular_mdp(), id="tabular-mdp"),)
