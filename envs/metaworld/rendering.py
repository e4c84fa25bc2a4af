"""Meta-World to look at: upstream's own environments, seen by a camera that shows the arm, its object and the goal."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorWrapper
from numpy.typing import NDArray

from metarl.envs.metaworld.upstream import HORIZON, RewardVersion, upstream_env
from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv
from metarl.envs.mujoco_graphics import OwnContext, choose_backend
from metarl.errors import ConfigError
from metarl.types import Task
from metarl.vector.options import parse_reset_options

Array = NDArray[Any]
Frame = NDArray[np.uint8]

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
    return _Upright(OwnContext(env))


class _Mirror:
    """Shows an instance that is simulated elsewhere, by taking its actions too: upstream's state is the same."""

    def __init__(self, task: Task, reward_version: RewardVersion) -> None:
        self._env = render_env(task, reward_version=reward_version)
        self._env.reset()
        self._num_steps = 0

    def frame(self, actions: Array) -> Frame:
        """The state after ``actions`` ``[step, 4]``, of which those of earlier calls are the beginning."""
        for action in actions[self._num_steps :]:
            self._env.step(action)
        self._num_steps = len(actions)
        frame: Any = self._env.render()
        assert isinstance(frame, np.ndarray)
        return frame

    def close(self) -> None:
        self._env.close()


class RenderedVectorEnv(VectorWrapper):
    """A pool whose instances can be looked at, also without a display.

    It keeps the actions of every running episode. To show an instance, upstream's own environment takes them in this
    process: a frame costs the steps since the last one, and 0.05 to 0.2 s to draw without a GPU; stepping costs
    nothing more. An instance whose simulation diverged is shown as it was before.

    Args:
        env: the pool.
        reward_version: the pool's.
    """

    def __init__(self, env: MetaWorldVectorEnv, reward_version: RewardVersion) -> None:
        choose_backend()
        super().__init__(env)
        self.metadata = {**env.metadata, "render_modes": ["rgb_array"]}
        self._pool = env
        self._reward_version = reward_version
        self._tasks: list[Task | None] = [None] * self.num_envs
        self._actions: Array = np.zeros((self.num_envs, HORIZON, 4), np.float32)
        self._num_steps: Array = np.zeros(self.num_envs, np.int64)
        self._ended: Array = np.ones(self.num_envs, bool)
        self._mirrors: dict[int, _Mirror] = {}

    @property
    def render_mode(self) -> str:  # type: ignore[override] # As in VectorWrapper, where it is read-only too.
        """``"rgb_array"``, the only one."""
        return "rgb_array"

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Reset the pool, and forget the episodes that have ended."""
        _, mask = parse_reset_options(options, self.num_envs)
        observations, info = self._pool.reset(seed=seed, options=options)
        self._num_steps[mask], self._ended[mask] = 0, False
        for index in np.flatnonzero(mask).tolist():
            self._tasks[index] = info["tasks"][index]
            self._forget(index)
        return observations, info

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step the pool, and keep the actions."""
        results = self.env.step(actions)
        _, _, terminated, truncated, info = results
        played = np.flatnonzero(~self._ended & ~info["invalid"])
        self._actions[played, self._num_steps[played]] = np.asarray(actions)[played]
        self._num_steps[played] += 1
        self._ended |= terminated | truncated
        return results

    def render(self) -> tuple[Frame, ...]:
        """A frame of every instance; :meth:`render_instance` shows one."""
        return tuple(self.render_instance(index) for index in range(self.num_envs))

    def render_instance(self, index: int) -> Frame:
        """What instance ``index`` looks like now, uint8 ``[480, 480, 3]``.

        Raises:
            ConfigError: for an instance that does not exist or was never reset.
        """
        if not 0 <= index < self.num_envs:
            raise ConfigError(f"there is no instance {index!r}: expected 0 to {self.num_envs - 1}.")
        task = self._tasks[index]
        if task is None:
            raise ConfigError("call reset before render.")
        if index not in self._mirrors:
            self._mirrors[index] = _Mirror(task, self._reward_version)
        return self._mirrors[index].frame(self._actions[index, : self._num_steps[index]])

    def close(self, **kwargs: Any) -> None:
        """Close the pool and everything that draws."""
        for index in list(self._mirrors):
            self._forget(index)
        super().close(**kwargs)

    def _forget(self, index: int) -> None:
        """A new episode begins in a new environment: upstream's resets leave traces of the episode before."""
        mirror = self._mirrors.pop(index, None)
        if mirror is not None:
            mirror.close()
