"""An environment that paints its state, for the tests of replays and videos: no graphics library is needed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from metarl.tasks.distribution import TaskDistribution

HORIZON = 7


class Painted(gym.Env[Any, Any]):
    """Noise of the episode and steps so far; the reward is ``scale * (noise + action)``, success comes in step 3.

    A frame is grey, as bright as the number of steps.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, task: dict[str, float], render_mode: str | None = None) -> None:
        self.task, self.render_mode = task, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.noise, self.steps = self.np_random.normal(), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = self.task["scale"] * (self.noise + float(action[0]))
        return self._observe(), reward, self.steps >= self.task["length"], False, {"success": self.steps == 3}

    def render(self) -> Any:
        return np.full((41, 61, 3), 10 * self.steps, np.uint8)

    def _observe(self) -> Any:
        return np.array([self.noise, self.steps], np.float32)


def sample(rng: np.random.Generator) -> dict[str, float]:
    return {"scale": float(rng.uniform(1, 2)), "length": float(rng.integers(4, 10))}


def make_render_env(task: dict[str, float]) -> Painted:
    return Painted(task, "rgb_array")


painted = TaskDistribution(
    id="test/painted", sample=sample, make_env=Painted, horizon=HORIZON, make_render_env=make_render_env
)
unpainted = TaskDistribution(id="test/unpainted", sample=sample, make_env=Painted, horizon=HORIZON)
