"""One environment's spaces and values, as agents and batches see them: flat, float32, choices counted from 0."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from metarl.errors import ConfigError
from metarl.types import Spec
from metarl.vector.products import FlatProduct, as_float32, flat_actions, in_box, own_parts

Array = NDArray[Any]

ActionSpace = gym.spaces.Discrete | gym.spaces.Box

_UNBOUNDED = float(np.finfo(np.float32).max) / 2
"""What environments write for a bound that they do not have is float32's largest number, where it is not infinite; and
between bounds from half of that on lies more than float32 has a number for."""


def require_env(built: object) -> None:
    """Refuse what ``make_env`` returned if it is no environment.

    Raises:
        ConfigError: naming its class.
    """
    if not isinstance(built, gym.Env):
        raise ConfigError(
            f"make_env returned {'None' if built is None else f'an instance of {type(built).__name__}'}, expected a "
            "gymnasium.Env: derive its class from gymnasium.Env or from gymnasium.Wrapper."
        )


def flat_spaces(env: gym.Env[Any, Any]) -> tuple[gym.spaces.Box, ActionSpace]:
    """The spaces that an agent sees: a flat float32 observation, and actions ``0..n-1``, a flat float32 box or both.

    Raises:
        ConfigError: naming a space that has no such form, or what is no environment.
    """
    require_env(env)
    return flattened(env.observation_space, env.action_space)


def flattened(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> tuple[gym.spaces.Box, ActionSpace]:
    """:func:`flat_spaces` of an environment that has these spaces."""
    refused = _not_flat(observation_space)
    if refused:
        raise ConfigError(
            f"observation space {observation_space} has no flat form of fixed size, because of {', '.join(refused)}. "
            "Accepted are Box, Discrete, MultiDiscrete, MultiBinary, and Tuple or Dict of these: leave all else out by "
            "a wrapper, e.g. gymnasium.wrappers.FilterObservation, or turn it into numbers."
        )
    flat = gym.spaces.flatten_space(observation_space)
    assert isinstance(flat, gym.spaces.Box)
    observation_space = gym.spaces.Box(as_float32(flat.low), as_float32(flat.high), dtype=np.float32)
    return observation_space, flat_actions(action_space)


def _not_flat(space: gym.Space[Any], path: str = "") -> list[str]:
    """Parts of ``space`` without a flat form of fixed size, by class and place, e.g. ``Sequence at ['mission']``."""
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        parts = space.items() if isinstance(space, gym.spaces.Dict) else enumerate(space)
        if len(space):
            return [each for key, part in parts for each in _not_flat(part, f"{path}[{key!r}]")]
        return [f"a {type(space).__name__} without parts" + (f" at {path}" if path else "")]
    try:
        # Gymnasium flattens text into the codes of its characters, which are no measure of anything.
        flat = None if isinstance(space, gym.spaces.Text) else gym.spaces.flatten_space(space)
    except NotImplementedError:
        flat = None  # A class that Gymnasium does not know.
    if isinstance(flat, gym.spaces.Box):
        return []
    return [f"{type(space).__name__} at {path}" if path else f"its class {type(space).__name__}"]


def spec_of(observation_space: gym.spaces.Box, action_space: ActionSpace, horizon: int) -> Spec:
    """What an agent must know of flat spaces and of the longest episode."""
    obs_dim = observation_space.shape[0]
    if isinstance(action_space, gym.spaces.Discrete):
        return Spec(obs_dim, int(action_space.n), True, horizon)
    if isinstance(action_space, FlatProduct):
        choices = action_space.choices
        size, free = sum(choices) + action_space.shape[0] - len(choices), ~bounded(action_space)[len(choices) :]
        return Spec(obs_dim, size, False, horizon, choices, unbounded=_if_any(free))
    return Spec(obs_dim, action_space.shape[0], False, horizon, unbounded=_if_any(~bounded(action_space)))


def bounded(space: gym.spaces.Box) -> NDArray[np.bool_]:
    """By coordinate, whether a flat box of actions has both bounds; one without has no box to be mapped onto."""
    return np.asarray((np.abs(space.low) < _UNBOUNDED) & (np.abs(space.high) < _UNBOUNDED))


def _if_any(flags: NDArray[np.bool_]) -> tuple[bool, ...]:
    return tuple(flags.tolist()) if flags.any() else ()


def is_measured(space: gym.Space[Any]) -> bool:
    """Whether an environment's own observation space holds measured numbers, not codes or pixels (uint8) alone."""
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        return any(is_measured(part) for part in (space.values() if isinstance(space, gym.spaces.Dict) else space))
    return isinstance(space, gym.spaces.Box) and space.dtype != np.uint8


def flat_observation(space: gym.Space[Any], observation: Any, obs_dim: int) -> NDArray[np.float32]:
    """An environment's own observation as agents see it, ``[obs_dim]``.

    Args:
        space: the environment's own observation space, which :func:`flat_spaces` accepts.
        observation: what ``reset`` or ``step`` returned.
        obs_dim: size of the flat observation.

    Raises:
        ConfigError: for another number of numbers, or a choice that ``space`` does not have, which would be encoded as
            another one. What is no observation of ``space`` at all may raise anything.
    """
    if not isinstance(space, gym.spaces.Box):
        _require_choices(space, observation)
        observation = gym.spaces.flatten(space, observation)
    flat = np.asarray(observation, np.float32).reshape(-1)
    # Without this a single number would be broadcast over a whole row.
    if len(flat) != obs_dim:
        raise ConfigError(f"observation of {len(flat)} numbers, expected {obs_dim} by observation_space.")
    return flat


def _require_choices(space: gym.Space[Any], observation: Any) -> None:
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.items():
            _require_choices(part, observation[key])
    elif isinstance(space, gym.spaces.Tuple):
        for part, inside in zip(space, observation, strict=True):
            _require_choices(part, inside)
    elif isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        low: Any = 0 if isinstance(space, gym.spaces.MultiBinary) else space.start
        count: Any = 2 if isinstance(space, gym.spaces.MultiBinary) else getattr(space, "nvec", getattr(space, "n", 0))
        numbers, high = np.asarray(observation), low + count - 1
        if ((numbers < low) | (numbers > high)).any():
            raise ConfigError(f"observation {observation!r} is not in observation_space, whose part is {space}.")


def own_action(space: gym.Space[Any], flat: Any) -> Any:
    """A flat action as its environment takes it: counted from the space's start, or of its shape, dtype and bounds.

    Args:
        space: the environment's own action space, which :func:`flat_spaces` accepts.
        flat: an integer from 0, or floats: coordinates of a box, or as :mod:`metarl.vector.products` lays them out.
    """
    if isinstance(space, gym.spaces.Discrete):
        return int(flat) + int(space.start)
    if isinstance(space, gym.spaces.Box):
        return in_box(space, flat)
    return own_parts(space, flat)
