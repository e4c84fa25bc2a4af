"""Actions that are made of several parts (MultiDiscrete, MultiBinary, Dict, Tuple), as flat vectors and back.

Agents see one vector of float32 for an action: first the numbers of all choices, each counted from 0, then all
coordinates of boxes. Within either, parts come in the order in which the space names them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from metarl.errors import ConfigError

Array = NDArray[Any]

ACCEPTED = "Discrete, MultiDiscrete, MultiBinary, Box of floating-point numbers, and Tuple or Dict of these"
"""Action spaces that agents can act in."""

_MOST_CHOICES = 2**24
"""Float32 holds every whole number up to here."""


class FlatProduct(gym.spaces.Box):
    """Actions of one or more choices, and coordinates in a box: ``[choice + coordinate]`` float32.

    A box for whoever asks for shape, dtype and bounds; its first numbers are whole ones. A sample of a batch of them
    (``gymnasium.vector.utils.batch_space``) is none, since Gymnasium knows of no whole numbers inside a box.

    Args:
        choices: how many there are to choose from, for each choice.
        low: lower bounds of the coordinates, ``[coordinate]``; none by default.
        high: upper bounds.
    """

    def __init__(self, choices: Sequence[int], low: Array | None = None, high: Array | None = None) -> None:
        self.choices = tuple(int(number) for number in choices)
        nothing = np.zeros(0, np.float32)
        super().__init__(
            np.concatenate([np.zeros(len(self.choices), np.float32), nothing if low is None else low]),
            np.concatenate([np.array(self.choices, np.float32) - 1.0, nothing if high is None else high]),
            dtype=np.float32,
        )

    def sample(self, mask: None = None, probability: None = None) -> NDArray[Any]:
        """A uniform choice of each, and coordinates as of a box."""
        found: NDArray[Any] = super().sample(mask, probability)
        found[: len(self.choices)] = [self.np_random.integers(number) for number in self.choices]
        return found

    def contains(self, x: Any) -> bool:
        """Whether ``x`` lies in the box and its choices are whole numbers."""
        return super().contains(x) and not np.any(np.mod(np.asarray(x)[: len(self.choices)], 1.0))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlatProduct) and self.choices == other.choices and super().__eq__(other)

    def __repr__(self) -> str:
        first = len(self.choices)
        return f"FlatProduct({self.choices}, {self.low[first:]}, {self.high[first:]})"


def flat_actions(space: gym.Space[Any]) -> gym.spaces.Discrete | gym.spaces.Box:
    """The flat form of an action space: a box of all its boxes, its only choice, or a product.

    Raises:
        ConfigError: naming a space that has none, and those that have.
    """
    if isinstance(space, FlatProduct):
        return space
    choices: list[int] = []
    lows: list[Array] = []
    highs: list[Array] = []
    for part in _parts(space, space):
        if isinstance(part, gym.spaces.Box):
            lows.append(as_float32(part.low).reshape(-1))
            highs.append(as_float32(part.high).reshape(-1))
        else:
            choices += _choices(part)
    if any(number > _MOST_CHOICES for number in choices) and len(choices) + len(lows) > 1:
        raise ConfigError(f"action space {space} has more than {_MOST_CHOICES} choices in a part, too many.")
    low, high = (np.concatenate([np.zeros(0, np.float32), *bounds]) for bounds in (lows, highs))
    if len(choices) + len(low) == 0:
        raise ConfigError(f"action space {space} is empty: there is nothing to choose. Accepted are {ACCEPTED}.")
    if not choices:
        return gym.spaces.Box(low, high, dtype=np.float32)
    if len(choices) == 1 and not lows:
        return gym.spaces.Discrete(choices[0])
    return FlatProduct(choices, low, high)


def own_parts(space: gym.Space[Any], flat: Any) -> Any:
    """A flat action in the environment's own space of several parts.

    Args:
        space: one that :func:`flat_actions` accepts.
        flat: an integer from 0, or ``[choice + coordinate]`` floats, as the flat form has it.
    """
    numbers = np.atleast_1d(np.asarray(flat))
    first = len(starts(space))
    return _assembled(space, iter(numbers[:first].tolist()), iter(numbers[first:]))


def starts(space: gym.Space[Any]) -> NDArray[np.int64]:
    """What each choice of an environment's own action space is counted from, ``[choice]``."""
    if isinstance(space, FlatProduct):
        return np.zeros(len(space.choices), np.int64)
    found: list[int] = []
    for part in _parts(space, space):
        if isinstance(part, gym.spaces.Discrete):
            found.append(int(part.start))
        elif isinstance(part, gym.spaces.MultiDiscrete):
            found += part.start.reshape(-1).tolist()
        elif isinstance(part, gym.spaces.MultiBinary):
            found += [0] * len(_choices(part))
    return np.array(found, np.int64)


def in_box(space: gym.spaces.Box, numbers: Any) -> Array:
    """Floats as an action of a box: in its shape, dtype and bounds."""
    with np.errstate(over="ignore"):
        action = np.asarray(numbers).reshape(space.shape).astype(space.dtype, copy=False)
    # Last, in the space's own type: what lies inside the bounds in float32 may lie outside them in float64.
    return np.minimum(np.maximum(action, space.low), space.high)


def as_float32(bound: Array) -> Array:
    """Bounds beyond float32 (such as Box's default for float64) become infinite, quietly."""
    with np.errstate(over="ignore"):
        return bound.astype(np.float32)


def _parts(space: gym.Space[Any], whole: gym.Space[Any]) -> Iterator[gym.Space[Any]]:
    """The spaces that hold numbers, in order; ``whole`` is what they are part of, for the message."""
    if isinstance(space, gym.spaces.Tuple):
        for part in space.spaces:
            yield from _parts(part, whole)
    elif isinstance(space, gym.spaces.Dict):
        for part in space.spaces.values():
            yield from _parts(part, whole)
    elif isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary) or (
        isinstance(space, gym.spaces.Box)
        and np.issubdtype(space.dtype, np.floating)
        and not isinstance(space, FlatProduct)  # Flat already, and whole; inside of another space it has no place.
    ):
        yield space
    else:
        because = "" if space is whole else f" because of its part {space}"
        raise ConfigError(f"action space {whole} is not accepted{because}: use {ACCEPTED}.")


def _choices(part: gym.Space[Any]) -> list[int]:
    if isinstance(part, gym.spaces.Discrete):
        return [int(part.n)]
    if isinstance(part, gym.spaces.MultiDiscrete):
        found: list[int] = part.nvec.reshape(-1).tolist()
        return found
    assert isinstance(part, gym.spaces.MultiBinary)
    return [2] * int(np.prod(part.shape))


def _assembled(space: gym.Space[Any], choices: Iterator[float], coordinates: Iterator[Any]) -> Any:
    """Take what ``space`` holds from the front of both."""
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_assembled(part, choices, coordinates) for part in space.spaces)
    if isinstance(space, gym.spaces.Dict):
        return {name: _assembled(part, choices, coordinates) for name, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Discrete):
        return int(next(choices)) + int(space.start)
    if isinstance(space, gym.spaces.Box):
        size = int(np.prod(space.shape))
        return in_box(space, np.array(list(itertools.islice(coordinates, size)), np.float32))
    chosen = np.array(list(itertools.islice(choices, len(_choices(space)))), np.int64).reshape(space.shape)
    if isinstance(space, gym.spaces.MultiDiscrete):
        chosen = chosen + space.start
    return chosen.astype(space.dtype)
