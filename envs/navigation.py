"""A point in the plane that has to find a goal it cannot see.

``navigation-2d`` is MAML's (Finn et al. 2017, arXiv 1703.03400, section 5.3), settled by the authors' code
(``point_env_randgoal.py`` in ``cbfinn/maml_rl``) where it and the paper disagree:

* goals ``~ U[-0.5, 0.5]^2``, start at the origin, episodes of at most 100 steps, observation = position, unbounded;
* the reward is minus the plain Euclidean distance *after* the move; the paper says squared, but its own figures
  (about -40 before adaptation) fit the plain distance only;
* an episode ends when both coordinates are within 0.01 of the goal after the move, a square, not a disc; that last
  step is still rewarded;
* actions are displacements within 0.1 per coordinate. The code does not clip them itself: rllab's ``normalize``
  wrapper maps the policy's [-1, 1] onto the bounds and clips there, which is the collector's part here. The clip in
  :meth:`PointDynamics.step` makes the bound hold for other callers too.

``navigation-2d-sparse`` is PEARL's sparse point robot (Rakelly et al. 2019, arXiv 1903.08254, section 6.3;
``point_robot.py`` in ``katerakelly/oyster``): goals on the unit half-circle (angle ``~ U[0, pi]``; PEARL takes 100
evenly spaced ones), reward ``1 - distance`` within 0.2 of the goal and 0 elsewhere, 20 steps, no early end. The goal
is then at least 6 steps away and most directions pay nothing, so exploration has to be learned. PEARL meta-trains on
the dense reward; here both splits have the sparse one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import numpy as np

from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task
from metarl.vector.array_env import Array, ArrayVectorEnv, TaskParams
from metarl.vector.streams import RowStreams

_MAX_STEP = 0.1
"""Largest displacement per step and coordinate."""


@dataclass(frozen=True)
class PointDynamics:
    """A point moved by bounded displacements.

    Parameters of an instance: ``goal``, ``[instance, 2]``. ``info["success"]`` says whether the point is at the goal:
    in MAML's terminal square, or in the rewarded disc.

    Attributes:
        sparse_radius: reward ``1 - distance`` within this radius only, and no early end; None: MAML's dense reward.
        tolerance: half the side of the dense variant's terminal square.
    """

    sparse_radius: float | None = None
    tolerance: float = 0.01

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Position, ``[2]``."""
        return gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    @property
    def action_space(self) -> gym.spaces.Box:
        """Displacement, ``[2]``."""
        return gym.spaces.Box(-_MAX_STEP, _MAX_STEP, (2,), np.float32)

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        """The origin, ``[num, 2]``."""
        return np.zeros((num, 2))

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        """Move, then judge the new position; draws no random number."""
        position = state + np.clip(action.astype(np.float64), -_MAX_STEP, _MAX_STEP)
        offset = position - params["goal"]
        distance = np.sqrt((offset**2).sum(-1))
        if self.sparse_radius is None:
            at_goal = (np.abs(offset) < self.tolerance).all(-1)
            return position, -distance, at_goal, {"success": at_goal}
        at_goal = distance <= self.sparse_radius
        return position, np.where(at_goal, 1.0 - distance, 0.0), np.zeros(len(action), bool), {"success": at_goal}

    def observe(self, state: Array, params: TaskParams) -> Array:
        """Positions ``[num, 2]``."""
        return state


def _sample_square(rng: np.random.Generator) -> Task:
    return {"goal": rng.uniform(-0.5, 0.5, 2)}


def _sample_half_circle(rng: np.random.Generator) -> Task:
    angle = rng.uniform(0.0, np.pi)
    return {"goal": np.array([np.cos(angle), np.sin(angle)])}


DISTRIBUTIONS: tuple[TaskDistribution, ...] = (
    TaskDistribution(
        id="navigation-2d",
        sample=_sample_square,
        make_vector=partial(ArrayVectorEnv, PointDynamics(), horizon=100),
        horizon=100,
        description="Point robot, hidden goal in a square, reward -distance, at most 100 steps (MAML)",
    ),
    TaskDistribution(
        id="navigation-2d-sparse",
        sample=_sample_half_circle,
        make_vector=partial(ArrayVectorEnv, PointDynamics(sparse_radius=0.2), horizon=20),
        horizon=20,
        description="Point robot, hidden goal on a half-circle, rewarded within 0.2 of it only, 20 steps (PEARL)",
    ),
)
