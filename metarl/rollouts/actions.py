"""An agent's actions as an environment takes them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_UNBOUNDED = float(np.finfo(np.float32).max)
"""What environments write for a bound that they do not have, where it is not infinite."""


class ActionMap:
    """Integers as they are, and [-1, 1] mapped onto a box.

    A coordinate without a lower or an upper bound has no box to be mapped onto: it is passed on as it is. All are
    clipped last, so that each lies inside its bounds.

    Args:
        space: the flat action space of one instance.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        self._discrete = isinstance(space, gym.spaces.Discrete)
        if self._discrete:
            return
        assert isinstance(space, gym.spaces.Box)
        self._low, self._high = space.low, space.high
        self._bounded = (np.abs(space.low) < _UNBOUNDED) & (np.abs(space.high) < _UNBOUNDED)
        self._start = np.where(self._bounded, space.low, -1.0)
        self._width = np.where(self._bounded, space.high, 1.0) - self._start

    def __call__(self, actions: Tensor) -> NDArray[Any]:
        """``actions`` are ``[...]`` int64, or ``[..., action_dim]`` float32, and so is what is returned."""
        values: NDArray[Any] = actions.cpu().numpy()
        if self._discrete:
            return values
        # Not np.clip, which takes as long for a few numbers as all the rest.
        scaled = self._start + (np.minimum(np.maximum(values, -1.0), 1.0) + 1.0) * 0.5 * self._width
        chosen = np.where(self._bounded, scaled, values).astype(np.float32)
        return np.asarray(np.minimum(np.maximum(chosen, self._low), self._high))


def env_actions(space: gym.Space[Any], actions: Tensor) -> NDArray[Any]:
    """:class:`ActionMap` of a space that is asked once."""
    return ActionMap(space)(actions)
