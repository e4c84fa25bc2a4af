"""HalfCheetah and Ant with a hidden direction, velocity or goal, on Gymnasium's v5 bodies.

Rewards and ranges are those of the authors' code: MAML (``cbfinn/maml_rl``), ProMP (``jonasrothfuss/ProMP``), PEARL
(``katerakelly/oyster``) and VariBAD (``lmzintgraf/varibad``). ``v`` is the forward velocity and ``a`` the action.

================================== ========================================== =================== ======= ===========
id                                 reward                                     task                horizon source
================================== ========================================== =================== ======= ===========
``locomotion/cheetah-direction``   d v - .05 |a|^2                            d in {-1, 1}        200     MAML, PEARL,
                                                                                                          VariBAD
``...-promp``                      the same                                   the same            100     ProMP
``locomotion/cheetah-velocity``    -|v - g| - .05 |a|^2                       g ~ U[0, 3]         200     PEARL,
                                                                                                          VariBAD
``...-maml``                       the same                                   g ~ U[0, 2]         200     MAML
``...-promp``                      the same                                   g ~ U[0, 3]         200     ProMP
``locomotion/ant-direction``       d v - .5 |a|^2 - contact + 1               d in {-1, 1}        200     PEARL
``...-maml``                       d v - .005 |a|^2 - contact + .05           d in {-1, 1}        200     MAML
``locomotion/ant-velocity``        1 - |v - g| - .005 |a|^2 - contact + .05   g ~ U[0, 3]         200     MAML
``locomotion/ant-goal``            -|x - g|_1 - .1 |a|^2 - contact            g: disc of radius 3 200     ProMP, PEARL,
                                                                                                          VariBAD
================================== ========================================== =================== ======= ===========

Choices, and where they come from:

* PEARL's and VariBAD's docstrings say U[0, 2] for the cheetah; their code samples U[0, 3]. MAML's post-ICML test
  script samples U[0, 2] (the 0.1-0.8 in its environment is marked pre-ICML). Everywhere the action is in [-1, 1].
* ``contact`` is ``5e-4 |clip(cfrc_ext, -1, 1)|^2`` in all four. Gymnasium's notes on Ant report that ``mujoco-py``
  above 2.0 returned contact forces that were always zero, so published runs may lack this cost; v5 computes it.
* The ant falls out of an episode when its height leaves [0.2, 1], except in ``ant-goal``, which never ends early.
* ``ant-goal`` draws the radius as ``3 sqrt(u)``, uniform over the disc, and measures the L1 distance of the torso
  after the step. As in the papers its observation holds the x and y position (29 numbers).
* Elsewhere the absolute position is left out, v5's default. MAML's observation added the torso's centre of mass.
* The ant's 78 contact forces are left out of the observation, which keeps 27 numbers: PEARL's and VariBAD's ants show
  the same 27. Those of MAML and ProMP showed the forces, as did everyone's ``ant-goal``.
* Velocity is v5's ``x_velocity``, displacement over the control step of 0.05 s, as in ProMP, PEARL and VariBAD. MAML
  took the velocity of the torso's centre of mass, on rllab's own bodies: only the shape of its curves transfers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from metarl.envs.mujoco_graphics import OwnContext, choose_backend, import_mujoco
from metarl.tasks.distribution import Sampler, TaskDistribution
from metarl.types import Task

Observation = NDArray[np.float64]
Action = NDArray[np.float32]
Reward = Callable[[Task, Mapping[str, Any]], float]
"""Reward of one step as a function of the task and of what the v5 body reports in ``info``."""

MakeBody = Callable[..., gym.Env[Observation, Action]]
"""Builds a body; takes ``render_mode``."""

NUM_WORKERS = 2
"""Measured on 2 idle cores, random actions, steps per second as a multiple of stepping in one process: two worker
processes 0.85-1.2 at 20 HalfCheetahs, 1.1-1.3 at 40 and 1.3 at 200, and 1.7-1.8 for Ant; two threads 0.9-1.0, 0.9-1.2,
1.0 and 1.7-1.9. A meta-batch has hundreds of instances, so processes."""


class TaskReward(gym.Wrapper[Observation, Action, Observation, Action]):
    """A body whose reward, and nothing else, depends on the task.

    ``reset(options={"task": task})`` changes the task; without it the old one stays.

    Args:
        body: a v5 MuJoCo environment.
        reward: computes the reward from the task and the body's ``info``.
        task: the first task.
    """

    def __init__(self, body: gym.Env[Observation, Action], reward: Reward, task: Task) -> None:
        super().__init__(body)
        self._reward = reward
        self._task = task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, of the task in ``options["task"]`` if there is one."""
        if options is not None and "task" in options:
            self._task = options["task"]
        return self.env.reset(seed=seed)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step the body and replace its reward by the task's."""
        obs, _, terminated, truncated, info = self.env.step(action)
        return obs, self._reward(self._task, info), terminated, truncated, info


def _body_terms(info: Mapping[str, Any]) -> float:
    """The terms of the body that no task changes: control and contact costs and survival, as weighted in its making."""
    return float(info["reward_ctrl"] + info.get("reward_contact", 0.0) + info.get("reward_survive", 0.0))


def direction_reward(task: Task, info: Mapping[str, Any]) -> float:
    """``direction * velocity`` and the body's terms."""
    return float(task["direction"] * info["x_velocity"]) + _body_terms(info)


def velocity_reward(task: Task, info: Mapping[str, Any], bonus: float = 0.0) -> float:
    """``bonus - |velocity - goal|`` and the body's terms; velocities in m/s."""
    return bonus - float(abs(info["x_velocity"] - task["velocity"])) + _body_terms(info)


def goal_reward(task: Task, info: Mapping[str, Any]) -> float:
    """``-|position - goal|_1`` in metres and the body's terms."""
    goal_x, goal_y = task["goal"]
    return -float(abs(info["x_position"] - goal_x) + abs(info["y_position"] - goal_y)) + _body_terms(info)


def _sample_direction(rng: np.random.Generator) -> Task:
    return {"direction": float(rng.choice((-1.0, 1.0)))}


def _sample_velocity(fastest: float, rng: np.random.Generator) -> Task:
    return {"velocity": float(rng.uniform(0.0, fastest))}


def _sample_disc(rng: np.random.Generator) -> Task:
    angle, radius = 2 * np.pi * rng.random(), 3 * np.sqrt(rng.random())
    return {"goal": np.array([radius * np.cos(angle), radius * np.sin(angle)])}


def _cheetah(render_mode: str | None = None) -> gym.Env[Observation, Action]:
    # MuJoCo loads a graphics library when it is imported: only who needs a body needs that library.
    import_mujoco()
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    return HalfCheetahEnv(ctrl_cost_weight=0.05, render_mode=render_mode)


def _ant(render_mode: str | None = None, **settings: Any) -> gym.Env[Observation, Action]:
    import_mujoco()
    from gymnasium.envs.mujoco.ant_v5 import AntEnv

    return AntEnv(include_cfrc_ext_in_observation=False, contact_cost_weight=5e-4, render_mode=render_mode, **settings)


def _make(make_body: MakeBody, reward: Reward, horizon: int, task: Task) -> gym.Env[Observation, Action]:
    return TimeLimit(TaskReward(make_body(), reward, task), max_episode_steps=horizon)


def _make_rendering(make_body: MakeBody, reward: Reward, horizon: int, task: Task) -> gym.Env[Observation, Action]:
    choose_backend()
    body = OwnContext(make_body(render_mode="rgb_array"))
    return TimeLimit(TaskReward(body, reward, task), max_episode_steps=horizon)


def _distribution(
    name: str,
    make_body: MakeBody,
    reward: Reward,
    sample: Sampler,
    description: str,
    horizon: int = 200,
    shared_split: bool = False,
) -> TaskDistribution:
    return TaskDistribution(
        id=f"locomotion/{name}",
        sample=sample,
        make_env=partial(_make, make_body, reward, horizon),
        make_render_env=partial(_make_rendering, make_body, reward, horizon),
        horizon=horizon,
        shared_split=shared_split,
        task_on_reset=True,
        num_workers=NUM_WORKERS,
        description=description,
    )


_pearl_ant = partial(_ant, ctrl_cost_weight=0.5, healthy_reward=1.0)
_maml_ant = partial(_ant, ctrl_cost_weight=0.005, healthy_reward=0.05)
_goal_ant = partial(
    _ant,
    ctrl_cost_weight=0.1,
    healthy_reward=0.0,
    terminate_when_unhealthy=False,
    exclude_current_positions_from_observation=False,
)

DISTRIBUTIONS: tuple[TaskDistribution, ...] = (
    _distribution(
        "cheetah-direction",
        _cheetah,
        direction_reward,
        _sample_direction,
        "HalfCheetah, run forward or backward, 200 steps (MAML, PEARL, VariBAD)",
        shared_split=True,
    ),
    _distribution(
        "cheetah-direction-promp",
        _cheetah,
        direction_reward,
        _sample_direction,
        "HalfCheetah, run forward or backward, 100 steps (ProMP)",
        horizon=100,
        shared_split=True,
    ),
    _distribution(
        "cheetah-velocity",
        _cheetah,
        velocity_reward,
        partial(_sample_velocity, 3.0),
        "HalfCheetah, hold a velocity ~ U[0,3] (PEARL, VariBAD)",
    ),
    _distribution(
        "cheetah-velocity-maml",
        _cheetah,
        velocity_reward,
        partial(_sample_velocity, 2.0),
        "HalfCheetah, hold a velocity ~ U[0,2] (MAML)",
    ),
    _distribution(
        "cheetah-velocity-promp",
        _cheetah,
        velocity_reward,
        partial(_sample_velocity, 3.0),
        "HalfCheetah, hold a velocity ~ U[0,3] (ProMP; the same tasks as cheetah-velocity)",
    ),
    _distribution(
        "ant-direction",
        _pearl_ant,
        direction_reward,
        _sample_direction,
        "Ant, walk forward or backward (PEARL)",
        shared_split=True,
    ),
    _distribution(
        "ant-direction-maml",
        _maml_ant,
        direction_reward,
        _sample_direction,
        "Ant, walk forward or backward, small control cost and survival bonus (MAML)",
        shared_split=True,
    ),
    _distribution(
        "ant-velocity",
        _maml_ant,
        partial(velocity_reward, bonus=1.0),
        partial(_sample_velocity, 3.0),
        "Ant, hold a velocity ~ U[0,3] (MAML)",
    ),
    _distribution(
        "ant-goal",
        _goal_ant,
        goal_reward,
        _sample_disc,
        "Ant, walk to a goal in a disc of radius 3, position observed (ProMP, PEARL, VariBAD)",
    ),
)
