"""Steps per second of the array families against ``gymnasium.vector.SyncVectorEnv``, side by side in one run.

``OMP_NUM_THREADS=1 python -m metarl.benchmarks.speed.arrays``; ``--help`` lists the settings. Both sides step random
actions drawn beforehand, reset what has ended, and hand out float32 observations. Rounds of both alternate and the
fastest of each counts, since another process can only slow a round down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from rich.table import Table

import metarl.envs  # noqa: F401  registers the families
from metarl.config.settings import Count, check_settings
from metarl.errors import told_errors
from metarl.tasks.registry import make
from metarl.vector.array_env import Array

GYMNASIUM_IDS = {
    "cartpole-random": "CartPole-v1",
    "pendulum-random": "Pendulum-v1",
    "acrobot-random": "Acrobot-v1",
    "mountain-car-random": "MountainCar-v0",
}
"""Our family and Gymnasium's environment of the same dynamics."""


@dataclass(frozen=True)
class EnvSpeed:
    """Settings of the comparison."""

    num_envs: Count = 1000
    """Instances stepped together, on both sides."""
    rounds: Count = 3
    """Timed rounds of each side; the fastest counts."""
    array_steps: Count = 500
    """Vector steps in a round of the array family."""
    sync_steps: Count = 20
    """Vector steps in a round of ``SyncVectorEnv``."""
    seed: int = 0
    """Seed for tasks, initial states and actions."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Speed:
    """Environment steps per second of one family.

    Attributes:
        task_id: our task distribution.
        array: steps per second of its array environment, resets included.
        sync: steps per second of ``SyncVectorEnv`` over Gymnasium's environment, resets included.
    """

    task_id: str
    array: float
    sync: float

    @property
    def ratio(self) -> float:
        """How many times as fast the array environment is."""
        return self.array / self.sync


def measure(task_id: str, settings: EnvSpeed) -> Speed:
    """Time both sides of one family in alternating rounds."""
    array_round = _array_rounds(task_id, settings)
    sync_round = _sync_rounds(GYMNASIUM_IDS[task_id], settings)
    array, sync = 0.0, 0.0
    for _ in range(settings.rounds):
        array = max(array, settings.array_steps * settings.num_envs / _seconds(array_round))
        sync = max(sync, settings.sync_steps * settings.num_envs / _seconds(sync_round))
    return Speed(task_id, array, sync)


def _array_rounds(task_id: str, settings: EnvSpeed) -> Callable[[], None]:
    distribution = make(task_id)
    env = distribution.make_vector_env(settings.num_envs)
    tasks = distribution.train.sample(settings.num_envs, np.random.default_rng(settings.seed))
    env.reset(seed=settings.seed, options={"tasks": tasks})
    actions = _actions(env.action_space, settings.array_steps, settings.seed)

    def run() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            ended = terminated | truncated
            if ended.any():
                env.reset(options={"reset_mask": ended})

    return run


def _sync_rounds(gymnasium_id: str, settings: EnvSpeed) -> Callable[[], None]:
    # Without the environment checker and with resets in the same step: SyncVectorEnv at its best.
    make_one = partial(gym.make, gymnasium_id, disable_env_checker=True)
    env = SyncVectorEnv([make_one] * settings.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=settings.seed)
    actions = _actions(env.action_space, settings.sync_steps, settings.seed)

    def run() -> None:
        for action in actions:
            env.step(action)

    return run


def _actions(space: gym.Space[Array], num_steps: int, seed: int) -> list[Array]:
    space.seed(seed)
    return [space.sample() for _ in range(num_steps)]


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@told_errors()
def main() -> None:
    """Print the table."""
    settings = tyro.cli(EnvSpeed, description=__doc__)
    table = Table("tasks", "array, steps/s", "SyncVectorEnv, steps/s", "ratio", title=f"{settings.num_envs} instances")
    for task_id in GYMNASIUM_IDS:
        speed = measure(task_id, settings)
        table.add_row(task_id, f"{speed.array:,.0f}", f"{speed.sync:,.0f}", f"{speed.ratio:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
