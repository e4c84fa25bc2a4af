"""What an environment returned, told apart from what Gymnasium's protocol asks it to return."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.errors import ConfigError

SUCCESS_KEYS = ("success", "is_success")
"""Where ``info`` tells success: Meta-World's key, then that of Gymnasium-Robotics and Stable-Baselines3."""

_OLD = "This is the interface of gym before 0.26"


def reset_result(returned: Any) -> tuple[Any, Mapping[str, Any]]:
    """Observation and info, as ``reset`` returned them.

    Raises:
        ConfigError: if it returned anything else, such as the observation alone.
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ConfigError(
            f"reset returned {_described(returned)}, expected the tuple (observation, info). {_OLD}: end reset with "
            "`return observation, {}`."
        )
    if not isinstance(returned[1], Mapping):
        raise ConfigError(
            f"reset returned {_described(returned[1])} as info, expected a dict: end reset with "
            "`return observation, {}`, or with `return np.array(observation), {}` if these are numbers of it."
        )
    return returned[0], returned[1]


def step_result(returned: Any) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
    """Observation, reward, terminated, truncated and info, as ``step`` returned them.

    Raises:
        ConfigError: for another number of values, or a value of a wrong kind, by its name.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 5:
        many = isinstance(returned, tuple | list)
        got = f"{len(returned)} values" if many else _described(returned)
        hint = (
            f" {_OLD}: in place of `done` return `terminated` (the task is over) and `truncated` (time ran out)."
            if many and len(returned) == 4
            else ""
        )
        raise ConfigError(
            f"step returned {got}, expected the 5 values (observation, reward, terminated, truncated, info).{hint}"
        )
    observation, reward, terminated, truncated, info = returned
    if not isinstance(info, Mapping):
        raise ConfigError(f"step returned {_described(info)} as info, expected a dict.")
    return observation, _number("reward", reward), _flag("terminated", terminated), _flag("truncated", truncated), info


def reported_success(info: Mapping[str, Any]) -> float:
    """What ``info`` says of success: above 0 for success, NaN if it says nothing.

    Raises:
        ConfigError: if it says something that is not a number.
    """
    for key in SUCCESS_KEYS:
        value = info.get(key)
        if value is not None:
            return _number(f"info[{key!r}]", value)
    return math.nan


def success_of_batch(info: Mapping[str, Any], num_envs: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What the info of a vector environment says of success, under either key and with Gymnasium's mask of who says it.

    Returns:
        Success, and whether it was reported at all, ``[num_envs]`` each.

    Raises:
        ConfigError: for values that are not one number for each instance.
    """
    success, reported = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
    for key in SUCCESS_KEYS:
        if key not in info:
            continue
        told = np.asarray(info.get(f"_{key}", np.ones(num_envs, bool)), bool) & ~reported
        try:
            values = np.asarray(info[key]).reshape(num_envs)[told].astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"info[{key!r}] must hold one number for each of {num_envs} instances: {error}."
            ) from error
        success[told] = values > 0
        reported[told] = ~np.isnan(values)
    return success, reported


def _number(name: str, value: Any) -> float:
    """One number, also as an array of one; an infinity or NaN is for others to judge."""
    if isinstance(value, float | int):
        return float(value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} is {_described(value)}, expected one number: {error}") from error
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ConfigError(f"{name} is {_described(value)}, expected one number.")
    return float(array.reshape(())[()])


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    try:
        number = _number(name, value)
    except ConfigError as error:
        raise ConfigError(f"{name} is {_described(value)}, expected True or False.") from error
    return bool(number)


def _described(value: Any) -> str:
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"{type(value).__name__} {reprlib.repr(value)}"
