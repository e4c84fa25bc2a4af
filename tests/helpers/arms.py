"""The probe task of gradient-based agents: a two-armed bandit where arm identity is the task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from metarl.agent import Agent
from metarl.envs.bandits import BanditDynamics
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.seeding import numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.vector.array_env import ArrayVectorEnv


def arms(num_pulls: int) -> TaskDistribution:
    """Two arms; the task is which of them pays 1, the other paying 0."""

    def sample(rng: np.random.Generator) -> dict[str, Any]:
        best = rng.integers(2)
        return {"means": np.array([1.0 - best, float(best)])}

    return TaskDistribution(
        id="test/arms",
        sample=sample,
        make_vector=lambda num: ArrayVectorEnv(BanditDynamics(2, "bernoulli"), num, num_pulls),
        horizon=num_pulls,
        shared_split=True,
    )


def train(agent: Agent[Any], distribution: TaskDistribution, num_iterations: int, num_tasks: int) -> None:
    collector = Collector(distribution, agent.rollouts_per_task, torch.device("cpu"))
    for iteration in range(num_iterations):
        tasks = distribution.train.sample(num_tasks, numpy_stream(0, "tasks", iteration))
        agent.meta_update(run_trial(agent, collector, tasks, agent.num_adaptations, seed=iteration))
