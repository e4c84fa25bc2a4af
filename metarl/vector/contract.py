"""What callers of a vector environment must keep to, and what metarl asks of a vector environment."""

from __future__ import annotations

import reprlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from metarl.errors import ConfigError, WorkerError
from metarl.vector.products import FlatProduct

Array = NDArray[Any]


class ClosedError(WorkerError, gym.error.ClosedEnvironmentError):
    """A vector environment was used after it was closed."""


class KindError(ConfigError, TypeError):
    """An argument of a kind for which Gymnasium's own vector environments raise ``TypeError``."""


class ResetNeededError(ConfigError, gym.error.ResetNeeded):
    """A vector environment was stepped before its first reset."""


def require_open(env: VectorEnv[Any, Any, Any]) -> None:
    """Refuse to go on with an environment that was closed.

    Raises:
        ClosedError: naming the class.
    """
    if env.closed:
        raise ClosedError(f"this {type(env).__name__} is closed; make a new one.")


def require_reset(env: VectorEnv[Any, Any, Any], was_reset: bool) -> None:
    """Refuse a step before the first reset.

    Raises:
        ResetNeededError: naming the class.
    """
    if not was_reset:
        raise ResetNeededError(f"this {type(env).__name__} was never reset: call reset before step.")


def as_actions(actions: Any, space: gym.spaces.Discrete | gym.spaces.Box, num_envs: int) -> Array:
    """Actions for a batch of instances as one array.

    Args:
        actions: an array, or a list or tuple with an entry for each instance.
        space: the flat action space of one instance. Bounds of a box are not asked for: agents may overshoot.
        num_envs: number of instances.

    Returns:
        ``[num_envs]`` int64, or ``[num_envs, number]`` finite floats.

    Raises:
        ConfigError: for another shape, no such choice, or a number that is not finite.
        KindError: for one action in place of a batch, or another kind of numbers.
    """
    expected = (num_envs, *(space.shape or ()))
    try:
        array = np.asarray(actions)
    except ValueError as error:
        raise ConfigError(f"actions cannot be made one array ({error}), expected shape {expected}.") from error
    if array.ndim == 0:
        raise KindError(f"actions are {reprlib.repr(actions)}, expected an array or list with one for each instance.")
    if array.shape != expected:
        raise ConfigError(f"actions have shape {array.shape}, expected {expected}.")
    if isinstance(space, gym.spaces.Discrete):
        if array.dtype.kind not in "iu":
            raise KindError(f"actions have dtype {array.dtype}, expected integers from 0 to {space.n - 1}.")
        wrong = (array < 0) | (array >= space.n)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ConfigError(f"the action of instance {row} is {array[row]}, expected 0 to {space.n - 1}.")
        return array.astype(np.int64, copy=False)
    if array.dtype.kind not in "iuf":
        raise KindError(f"actions have dtype {array.dtype}, expected floating-point numbers.")
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        raise ConfigError(f"the action of instance {row} is {array[row].tolist()}, expected finite numbers.")
    if isinstance(space, FlatProduct):
        chosen = array[:, : len(space.choices)]
        wrong = ((chosen < 0) | (chosen >= space.choices) | (chosen % 1 != 0)).any(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ConfigError(
                f"the action of instance {row} begins with {chosen[row].tolist()}, expected whole numbers from 0 and "
                f"below {list(space.choices)}."
            )
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def contract_problems(env: VectorEnv[Any, Any, Any]) -> list[str]:
    """What an environment's metadata and spaces say against using it; nothing is reset or stepped."""
    problems = []
    space, actions = env.single_observation_space, env.single_action_space
    flat = isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)
    if not flat:
        problems.append(
            f"make_vector's single observation space is {space}; expected a flat Box of floating-point numbers, such "
            "as gymnasium.wrappers.FlattenObservation makes."
        )
    discrete = isinstance(actions, gym.spaces.Discrete) and actions.start == 0
    box = isinstance(actions, gym.spaces.Box) and len(actions.shape) == 1 and np.issubdtype(actions.dtype, np.floating)
    if not discrete and not box:
        problems.append(
            f"make_vector's single action space is {actions}; expected Discrete from 0, a flat Box of floating-point "
            "numbers, or for actions of several parts metarl.vector.products.FlatProduct; make_env's environments may "
            "have any of these spaces as they are."
        )
    mode = (env.metadata or {}).get("autoreset_mode")
    if mode is not AutoresetMode.DISABLED:
        problems.append(
            f"make_vector's metadata['autoreset_mode'] is {mode}; expected AutoresetMode.DISABLED, since metarl resets "
            "explicitly."
        )
    return problems
