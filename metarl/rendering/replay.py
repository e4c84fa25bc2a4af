"""Frames of a recorded episode: its actions once more, in an environment that renders, and a check that it is the same.

Collecting stays the one path by which an agent acts; what is seen is compared with what was recorded, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from metarl.errors import ConfigError, ReplayError
from metarl.rollouts.actions import env_actions
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Rollout, Task
from metarl.vector.instances import own_copy
from metarl.vector.protocol import reported_success, step_result
from metarl.vector.spaces import flat_spaces, own_action

Frame = NDArray[np.uint8]
"""An image, ``[height, width, 3]``."""

_TOLERANCE = 1e-5
"""Relative: rewards were recorded as float32, and a batch may sum them in another order."""

_DEFAULT_FPS = 30


@dataclass(frozen=True)
class Moment:
    """What is seen, and what the episode has come to.

    Attributes:
        frame: the image.
        step: steps so far.
        total: return so far.
        success_step: step of the first success so far; None if there was none.
        invalid: the simulation has diverged here.
    """

    frame: Frame
    step: int
    total: float
    success_step: int | None
    invalid: bool


def make_render_env(distribution: TaskDistribution, task: Task) -> gym.Env[Any, Any]:
    """An environment that poses ``task`` and renders arrays, of a distribution that has such.

    Raises:
        ConfigError: if what it needs to render is missing, or if it is not what was asked for.
    """
    assert distribution.make_render_env is not None
    try:
        env = distribution.make_render_env(own_copy(task))
    except DependencyNotInstalled as error:
        raise ConfigError(f"{distribution.id} cannot be rendered: {error}") from error
    if env.render_mode != "rgb_array":
        env.close()
        raise ConfigError(
            f"{distribution.id}: make_render_env must build an environment with render_mode 'rgb_array', "
            f"got {env.render_mode!r}."
        )
    return env


def frames_per_second(env: gym.Env[Any, Any]) -> int:
    """Steps in a second of the simulated time, as far as the environment says."""
    return int(env.metadata.get("render_fps") or _DEFAULT_FPS)


def replay(
    distribution: TaskDistribution, task: Task, episode: Rollout, *, reset_seed: int, every: int
) -> Iterator[Moment]:
    """Replay one episode and look at it now and then.

    Args:
        distribution: tasks that have a ``make_render_env``.
        task: the episode's.
        episode: one slot of a rollout, without the axes of task and episode: ``rollout[0, slot]``.
        reset_seed: what the instance was seeded with when the episode began.
        every: steps between two moments; the first and the last step are always shown.

    Raises:
        ConfigError: if it cannot be rendered here.
        ReplayError: if a reward, the end or success differs from what was recorded.
    """
    env = make_render_env(distribution, task)
    try:
        actions = env_actions(flat_spaces(env)[1], episode.actions)
        env.reset(seed=reset_seed, options={"task": own_copy(task)} if distribution.task_on_reset else None)
        yield Moment(rendered_frame(distribution, env), 0, 0.0, None, False)
        length, invalid = int(episode.lengths), bool(episode.invalid)
        total, success_step = 0.0, None
        # The step that diverged is not played again: its result is not defined.
        for step in range(length - invalid):
            _, reward, terminated, truncated, info = step_result(env.step(own_action(env.action_space, actions[step])))
            recorded = float(episode.rewards[step])
            if not abs(reward - recorded) <= _TOLERANCE * max(1.0, abs(recorded)):
                raise _different(distribution, step, "reward", reward, recorded)
            if (terminated or truncated) and step + 1 < length:
                raise _different(distribution, step, "length", step + 1, length)
            total += recorded
            if success_step is None and reported_success(info) > 0:
                success_step = step + 1
            if (step + 1) % every == 0 and step + 1 < length:
                yield Moment(rendered_frame(distribution, env), step + 1, total, success_step, False)
        if not invalid and bool(episode.success) != (success_step is not None):
            raise _different(distribution, length - 1, "success", success_step is not None, bool(episode.success))
        yield Moment(rendered_frame(distribution, env), length, total, None if invalid else success_step, invalid)
    finally:
        env.close()


def rendered_frame(distribution: TaskDistribution, env: gym.Env[Any, Any]) -> Frame:
    """What the environment shows now.

    Raises:
        ConfigError: if it shows no array, or if what it needs to render is missing.
    """
    try:
        frame: Any = env.render()
    except DependencyNotInstalled as error:
        raise ConfigError(f"{distribution.id} cannot be rendered: {error}") from error
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        got = f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ConfigError(f"{distribution.id}: render must return uint8 [height, width, 3], got {got}.")
    return frame


def _different(distribution: TaskDistribution, step: int, what: str, got: Any, recorded: Any) -> ReplayError:
    return ReplayError(
        f"{distribution.id}: the replay is not the recorded episode: at step {step + 1} its {what} is {got}, recorded "
        f"is {recorded}. The environment of make_render_env must step exactly as those that were played."
    )
