"""A family and an agent whose every number is known beforehand, for the tests of collector, trial and evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from metarl.agent import Agent
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Action, Rollout, Spec, Timestep, Trial
from metarl.vector.array_env import ArrayVectorEnv

HORIZON = 5


class CountdownDynamics:
    """Task: ``name`` and ``length``. Observation: noise of the episode, steps so far; NaN once the episode has ended.

    The reward of a step is ``name + step / 10 + action / 100``, and success is reported in step 1 alone. With a
    ``jitter``, an episode whose noise is positive takes that many steps more. The step ``diverges_at`` is reported as
    invalid, and everything else that it returns is NaN or wrong.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, discrete: bool) -> None:
        self.action_space: Any = gym.spaces.Discrete(3)
        if not discrete:
            low, high = np.array([-2.0, -np.inf], np.float32), np.array([6.0, np.inf], np.float32)
            self.action_space = gym.spaces.Box(low, high)
        self.received: list[Any] = []

    def reset(self, params: Any, rng: np.random.Generator, num: int) -> Any:
        return np.stack([rng.normal(size=num), np.zeros(num)], axis=1)

    def step(self, state: Any, action: Any, params: Any, rng: np.random.Generator) -> Any:
        self.received.append(np.array(action))
        step = state[:, 1]
        value = action if action.ndim == 1 else action[:, 0]
        rewards = params["name"] + step / 10 + value / 100
        bad = params.get("bad_reward_at", np.full(len(state), -1))
        rewards = np.where(step == bad, np.nan, rewards)
        following = np.stack([state[:, 0], step + 1], axis=1)
        bad = params.get("bad_obs_at", np.full(len(state), -1))
        length = self._length(state, params)
        diverged = step == params.get("diverges_at", np.full(len(state), -1))
        following[(step > length) | (step == bad) | diverged] = np.nan
        rewards = np.where(diverged, np.nan, rewards)
        return following, rewards, diverged | (step + 1 >= length), {"success": step == 1, "invalid": diverged}

    def observe(self, state: Any, params: Any) -> Any:
        return np.where(state[:, 1:] > self._length(state, params)[:, None], np.nan, state)

    @staticmethod
    def _length(state: Any, params: Any) -> Any:
        return params["length"] + np.where(state[:, 0] > 0, params.get("jitter", 0.0), 0.0)


def countdown(discrete: bool = True, dynamics: CountdownDynamics | None = None) -> TaskDistribution:
    return TaskDistribution(
        id="test/countdown",
        sample=sample,
        make_vector=partial(ArrayVectorEnv, dynamics or CountdownDynamics(discrete), horizon=HORIZON),
        horizon=HORIZON,
    )


def sample(rng: np.random.Generator) -> dict[str, float]:
    """Episodes of 1 to 8 steps, where the horizon allows 5."""
    return {"name": float(rng.integers(1, 100)), "length": float(rng.integers(1, 9))}


class Counter(Agent[int]):
    """Counts its adaptations: deterministically it plays that number; otherwise it acts at random, and remembers."""

    def __init__(self, spec: Spec, num_adaptations: int = 2, rollouts_per_task: int = 2) -> None:
        super().__init__(
            spec, torch.device("cpu"), num_adaptations=num_adaptations, rollouts_per_task=rollouts_per_task
        )
        self.net = nn.Linear(1, 1)
        self.seen: list[Timestep] = []

    def begin(self, num_tasks: int) -> int:
        return 0

    def act(self, state: int, timestep: Timestep, deterministic: bool = False) -> tuple[Action, int]:
        self.seen.append(timestep)
        shape = timestep.valid.shape
        value = torch.randint(0, 3, shape, generator=self.generator)
        if deterministic:
            value = torch.full(shape, state)
        if not self.spec.discrete:
            value = torch.stack([value - 1.5, torch.full(shape, 9.0)], dim=-1)
        return Action(value, torch.full(shape, -1.0)), state

    def adapt(self, state: int, rollout: Rollout) -> int:
        return state + 1

    def meta_update(self, trial: Trial) -> dict[str, float]:
        return {}

    def components(self) -> Mapping[str, nn.Module]:
        return {"net": self.net}
