"""What an agent's action costs beside the Meta-World step that follows it.

The part ``acting`` of :mod:`metarl.benchmarks.speed`. One batched action for 20 tasks x 10 episodes, each task with its
own fast weights, and one for 100 trials of a GRU. The pool is measured in the same run with 20 instances of ML10, whose
cost is scaled to the batch's number of instances.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from metarl.agent import Agent
from metarl.agents.maml import MAMLTRPOConfig
from metarl.agents.rl2 import RL2Config
from metarl.benchmarks.speed.measure import Clock, measure, synthetic_timesteps, synthetic_trial
from metarl.benchmarks.speed.metaworld import choose_tasks, cpu_seconds, open_pool
from metarl.types import Spec

SPEC = Spec(39, 4, False, 500)
NUM_ENVS = 20
LIMIT = 0.15
"""Largest share of a Meta-World step that acting may take."""


@dataclass(frozen=True)
class Case:
    """One batched action."""

    name: str
    num_instances: int
    act: Callable[[], Any]


def cases(device: torch.device) -> list[Case]:
    """Fast weights that differ between tasks, and a GRU in the middle of its trials."""
    maml = MAMLTRPOConfig(hidden_sizes=(100, 100), rollouts_per_task=10).build(SPEC, device, 0)
    trial = synthetic_trial(maml, 20, 10, 5, 0, seed=0)
    weights = maml.adapt(maml.begin(20), trial.rollouts[0])
    rl2 = RL2Config(hidden_size=256).build(SPEC, device, 0)
    return [
        Case("fast weights 2x100, 20 tasks x 10 episodes", 200, _acting(maml, weights, (20, 10), device)),
        Case("GRU of 256, 100 trials", 100, _acting(rl2, rl2.begin(100), (100, 1), device)),
    ]


def _acting(agent: Agent[Any], state: Any, shape: tuple[int, int], device: torch.device) -> Callable[[], Any]:
    timestep = synthetic_timesteps(SPEC, shape, torch.Generator().manual_seed(0), device)
    _, state = agent.act(state, timestep)
    return lambda: agent.act(state, timestep)


def seconds_per_env_step(clock: Clock, num_steps: int) -> float:
    """What one step of one instance costs in the pool: wall time on all cores, or CPU time of all its processes."""
    tasks = choose_tasks("ml10", NUM_ENVS, 0)
    actions = np.random.default_rng(0).uniform(-1, 1, (num_steps, NUM_ENVS, 4)).astype(np.float32)
    pool = open_pool(tasks)
    try:
        pool.step(actions[0])
        best = float("inf")
        for part in np.array_split(actions, 4):
            start = cpu_seconds() if clock == "cpu" else None
            begin = time.perf_counter()
            for action in part:
                pool.step(action)
            seconds = time.perf_counter() - begin if start is None else cpu_seconds() - start
            best = min(best, seconds / (len(part) * NUM_ENVS))
    finally:
        pool.close()
    return best


def run(console: Console, clock: Clock, device: torch.device, quick: bool) -> None:
    """Measure and print the table."""
    step = seconds_per_env_step(clock, 8 if quick else 160)
    table = Table(
        *("one action for", "us", "host, us", "of a Meta-World step of that batch", f"at most {LIMIT:.0%}"),
        title=f"Acting; a Meta-World step is {1e6 * step:.0f} us an instance, measured with {NUM_ENVS}",
    )
    calls = 5 if quick else 200
    for case in cases(device):

        def act(case: Case = case) -> None:
            for _ in range(calls):
                case.act()

        act()
        spent = measure(act, clock, device, repeats=1 if quick else 5)
        share = spent.device / calls / (step * case.num_instances)
        micro = (f"{1e6 * value / calls:.0f}" for value in (spent.device, spent.host))
        table.add_row(case.name, *micro, f"{share:.1%}", "yes" if share <= LIMIT else "no")
    console.print(table)
