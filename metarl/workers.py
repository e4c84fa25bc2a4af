"""Memory that environments and their worker processes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Buffers:
    """What goes in and out of a batch of instances, one row each.

    Attributes:
        actions: ``[instance]`` int64, or ``[instance, action_dim]`` float32.
        observations: ``[instance, obs_dim]`` float32.
        rewards: ``[instance]`` float64.
        terminated: ``[instance]`` bool.
        truncated: ``[instance]`` bool.
        success: ``[instance]`` float64.
        progress: ``[2]`` int64: the row at work, and how many calls have begun.
    """

    actions: NDArray[Any]
    observations: NDArray[np.float32]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.float64]
    progress: NDArray[np.int64]


def allocate(num: int, obs_dim: int, action_space: gym.spaces.Discrete | gym.spaces.Box) -> Buffers:
    discrete = isinstance(action_space, gym.spaces.Discrete)
    return Buffers(
        np.zeros(num, np.int64) if discrete else np.zeros((num, action_space.shape[0]), np.float32),
        np.zeros((num, obs_dim), np.float32),
        np.zeros(num),
        np.zeros(num, bool),
        np.zeros(num, bool),
        np.zeros(num),
        np.zeros(2, np.int64),
    )
