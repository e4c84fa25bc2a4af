"""A probe whose actions have several parts: a lever, a dial and two switches, all of which have a right position."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from metarl.tasks.distribution import TaskDistribution

HORIZON = 5


class Panel(gym.Env[Any, Any]):
    """Pays for each part that stands where the task says; 3 for all, 1.5 for what is best without knowing the task.

    Attributes:
        taken: the last action, as it came.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, right: int, ends: bool = False, render_mode: str | None = None) -> None:
        self.right, self.ends, self.render_mode = right, ends, render_mode
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        # Gymnasium sorts the names: dial, lever, switches.
        self.action_space = gym.spaces.Dict(
            {
                "lever": gym.spaces.Discrete(3, start=1),
                "switches": gym.spaces.Tuple([gym.spaces.MultiDiscrete([2]), gym.spaces.MultiBinary(1)]),
                "dial": gym.spaces.Box(0.0, 4.0, (1, 1), np.float64),
            }
        )
        self.taken: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.taken = action
        first, second = (int(part[0]) for part in action["switches"])
        reward = float(action["lever"] == 1 + self.right)
        reward += 0.5 * (first == self.right) + 0.5 * (second == 1 - self.right)
        reward += 1.0 - abs(float(action["dial"][0, 0]) - (1.0 + 2.0 * self.right)) / 2.0
        terminated = self.ends and bool(self.np_random.random() < 0.3)
        return self._observe(), reward, terminated, False, {"success": reward > 2.5}

    def render(self) -> Any:
        return np.zeros((16, 16, 3), np.uint8)

    def _observe(self) -> Any:
        return np.array([1.0, self.np_random.uniform(-1.0, 1.0)], np.float32)


def panels(ends: bool = False, num_workers: int = 0) -> TaskDistribution:
    """Two tasks; with ``ends`` episodes end by chance."""
    return TaskDistribution(
        id="test/panels",
        sample=lambda rng: {"right": int(rng.integers(2))},
        make_env=lambda task: Panel(task["right"], ends),
        make_render_env=lambda task: Panel(task["right"], ends, "rgb_array"),
        horizon=HORIZON,
        shared_split=True,
        num_workers=num_workers,
    )
