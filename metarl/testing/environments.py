"""What one environment of a task distribution shows of itself before an episode is played."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import NormalizeObservation, NormalizeReward

from metarl.digest import task_digest
from metarl.rollouts.actions import env_actions
from metarl.seeding import numpy_stream
from metarl.types import Task
from metarl.vector.instances import digest_or_none, own_copy
from metarl.vector.products import FlatProduct
from metarl.vector.protocol import reset_result
from metarl.vector.spaces import flat_spaces, own_action

Add = Callable[[str], None]
"""Notes one problem."""


def check_environment(env: gym.Env[Any, Any], task: Task, *, task_on_reset: bool, seed: int, add: Add) -> None:
    """Reset one environment, and check its observation, what becomes of actions, and its wrappers.

    Args:
        env: just built for ``task``.
        task: what it poses.
        task_on_reset: whether it takes its task with every reset.
        seed: for the actions.
        add: gets a sentence for each problem.

    Raises:
        ConfigError: for spaces without a flat form, or a reset of the old interface.
    """
    _, actions = flat_spaces(env)
    _reset(env, task, task_on_reset, add)
    _actions(env, actions, seed, add)
    _wrappers(env, add)


def check_unchanged(who: str, task: Task, handed: Task, add: Add) -> None:
    """Whether ``who`` left the copy ``handed`` of a task as it was.

    Episodes get a copy, so that nothing is lost here; but whoever else builds this environment is not safe.
    """
    if digest_or_none(handed) != task_digest(task):
        add(
            f"{who} changes the task it is given: {reprlib.repr(task)} became {reprlib.repr(handed)}; copy what it "
            "changes, as in task = dict(task) before task.pop(...)."
        )


def _reset(env: gym.Env[Any, Any], task: Task, task_on_reset: bool, add: Add) -> None:
    handed = own_copy(task)
    options = {"task": handed} if task_on_reset else None
    observation, _ = reset_result(env.reset(seed=0, options=options))
    check_unchanged("reset", task, handed, add)
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box):
        return
    array = np.asarray(observation)
    if array.shape != space.shape or not np.can_cast(array.dtype, space.dtype, "same_kind"):
        add(
            f"reset returns an observation of shape {array.shape} and dtype {array.dtype}, but "
            f"observation_space says shape {space.shape} and dtype {space.dtype}."
        )


def _actions(env: gym.Env[Any, Any], flat: gym.Space[Any], seed: int, add: Add) -> None:
    """What agents send must lie in the environment's own space, at its corners as well."""
    rng = numpy_stream(seed, "corners")
    for size in (0.0, 1.0, 1e6, *[2.0] * 20):
        for agent in _agent_actions(flat, size, rng):
            action = own_action(env.action_space, env_actions(flat, agent))
            if not env.action_space.contains(action):
                add(
                    f"the action space {env.action_space} does not contain {action!r}, which is what becomes of "
                    "an agent's action: give it bounds that its dtype can hold."
                )
                return


def _wrappers(env: gym.Env[Any, Any], add: Add) -> None:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, NormalizeObservation | NormalizeReward):
            add(
                f"{type(env).__name__} keeps running statistics, which start anew in every environment that is "
                "built (whenever the task changes), and differ between instances: the same state looks different "
                "to an agent each time. Scale by constants, as TransformObservation and TransformReward do."
            )
        env = env.env


def _agent_actions(flat: gym.Space[Any], size: float, rng: np.random.Generator) -> list[torch.Tensor]:
    """Some of the actions that an agent may take: all choices; or the corners and a point of a box of that ``size``.

    Of several parts, the first and last choices and some at random go with these.
    """
    if isinstance(flat, gym.spaces.Discrete):
        return list(torch.arange(int(flat.n)))
    if isinstance(flat, FlatProduct):
        sizes = np.array(flat.choices)
        chosen = [np.zeros(len(sizes)), sizes - 1, rng.integers(sizes)]
        box = gym.spaces.Box(flat.low[len(sizes) :], flat.high[len(sizes) :])
        pairs = zip(chosen, _agent_actions(box, size, rng), strict=True)
        return [torch.cat([torch.as_tensor(index, dtype=torch.float32), place]) for index, place in pairs]
    signs = [np.full(flat.shape or (), sign) for sign in (-1.0, 1.0)]
    points = [size * point for point in (*signs, rng.uniform(-1.0, 1.0, flat.shape or ()))]
    return [torch.from_numpy(point.astype(np.float32)) for point in points]
