"""Meta-World to look at: upstream's own environments, seen by a camera that shows the arm, its object and the goal."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from metarl.envs.metaworld import RewardVersion, upstream_env
from metarl.types import Task

Array = NDArray[Any]

SIZE = 480
"""Height and width of a frame."""

_CAMERA = "corner4"
_SHADOW_SIZE = 1024
"""Texels; without a GPU, MuJoCo's 4096 double the time of a frame, and so does its anti-aliasing."""


class _Upright(gym.Wrapper[Array, Array, Array, Array]):
    """The camera hangs upside down."""

    def render(self) -> Any:
        """A frame, turned by 180 degrees."""
        return np.ascontiguousarray(np.asarray(self.env.render())[::-1, ::-1])


def render_env(task: Task, *, reward_version: RewardVersion = "v2") -> gym.Env[Array, Array]:
    """Upstream's own environment posing ``task``; ``render()`` returns uint8 ``[480, 480, 3]``, also without a display.

    Raises:
        ConfigError: if there is no library to render with, or for an unknown task or reward version.
    """
    env = upstream_env(
        task, reward_version=reward_version, render_mode="rgb_array", camera_name=_CAMERA, width=SIZE, height=SIZE
    )
    env.model.vis.quality.shadowsize, env.model.vis.quality.offsamples = _SHADOW_SIZE, 0
    return _Upright(env)


class Mirror:
    """Shows an instance that is simulated elsewhere, by taking its actions too: upstream's state is the same.

    Args:
        task: the instance's.
        reward_version: upstream's reward functions.
    """

    def __init__(self, task: Task, reward_version: RewardVersion) -> None:
        self._env = render_env(task, reward_version=reward_version)
        self._env.reset()
        self._num_steps = 0

    def frame(self, actions: Array) -> NDArray[np.uint8]:
        """The state after ``actions`` ``[step, 4]``, of which those of earlier calls are the beginning."""
        for action in actions[self._num_steps :]:
            self._env.step(action)
        self._num_steps = len(actions)
        frame: Any = self._env.render()
        assert isinstance(frame, np.ndarray)
        return frame

    def close(self) -> None:
        """Free the environment and its graphics."""
        self._env.close()
