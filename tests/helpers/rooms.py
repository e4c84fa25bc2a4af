"""A family of ordinary environments with every oddity of spaces: Dict observations, a start, float64 bounds, no bounds.

Observations are noise of the episode and what the last action did; episodes end early, by chance.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from metarl.tasks.distribution import TaskDistribution

HORIZON = 6


class Room(gym.Env[dict[str, Any], Any]):
    """Task: which action pays. Actions are 3 choices from 5 on, or a box whose second coordinate has no bounds."""

    def __init__(self, best: float, discrete: bool, most: float = 0.7) -> None:
        self.best = best
        self.observation_space = gym.spaces.Dict(
            {"noise": gym.spaces.Box(-5.0, 5.0, (2,), np.float64), "floor": gym.spaces.Discrete(3, start=1)}
        )
        self.action_space: Any = gym.spaces.Discrete(3, start=5)
        if not discrete:
            low, high = np.array([[0.1, -np.inf]]), np.array([[most, np.inf]])
            self.action_space = gym.spaces.Box(low, high, dtype=np.float64)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps += 1
        value = float(np.sum(action))
        terminated = bool(self.np_random.random() < 0.4)
        return self._observe(), -abs(value - self.best), terminated, False, {}

    def _observe(self) -> dict[str, Any]:
        return {
            "noise": np.clip(self.np_random.normal(size=2), -5.0, 5.0),
            "floor": np.int64(1 + self.np_random.integers(3)),
        }


def rooms(discrete: bool, most: float = 0.7) -> TaskDistribution:
    return TaskDistribution(
        id="test/rooms",
        sample=lambda rng: {"best": float(rng.integers(5, 8))},
        make_env=lambda task: Room(task["best"], discrete, most),
        horizon=HORIZON,
        shared_split=True,
    )


discrete_rooms, box_rooms, far_rooms = rooms(True), rooms(False), rooms(False, most=70.0)
