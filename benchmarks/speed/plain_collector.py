"""Collecting as one would write it down: the whole batch at once, every step in new tensors, stacked at the end.

What :mod:`metarl.benchmarks.speed.training` compares with, and what the collector's tests demand bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl.agent import Agent
from metarl.rollouts.actions import env_actions
from metarl.rollouts.collector import episode_seeds, exploration_seed
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Rollout, Task, Timestep


def plain_rollout(
    distribution: TaskDistribution,
    agent: Agent[Any],
    state: Any,
    tasks: list[Task],
    slots: int,
    seed: int,
    number: int = 0,
    first_task: int = 0,
    previous: Rollout | None = None,
    env: VectorEnv[Any, Any, Any] | None = None,
) -> tuple[Rollout, Any]:
    """Rollout ``number`` of a collector with ``seed``, of tasks that begin at place ``first_task`` of a meta-batch.

    Args:
        distribution: where environments come from, which tell in ``info`` of ``success`` and ``invalid``.
        agent: on the CPU.
        state: the agent's, for these tasks.
        tasks: one for each entry of the task axis.
        slots: episodes of each.
        seed: of the collector.
        number: of the rollout, from 0.
        first_task: place of the first task in the meta-batch.
        previous: the rollout before this one, with as many slots.
        env: open environments; default: some are made, and closed again.

    Returns:
        The rollout, and the agent's state after it.
    """
    spec, shape, own = distribution.spec, (len(tasks), slots), env is None
    env = distribution.make_vector_env(len(tasks) * slots) if env is None else env
    agent.noise.seed(exploration_seed(seed, number), first_task)
    seeds: Any = episode_seeds(seed, number, *shape, first_task).flatten().tolist()
    obs, _ = env.reset(seed=seeds, options={"tasks": [task for task in tasks for _ in range(slots)]})
    prev_action = torch.zeros(*shape, spec.action_dim)
    prev_reward, prev_done = torch.zeros(shape), torch.zeros(shape)
    if previous is not None:
        prev_done = torch.ones(shape)
        for task in range(len(tasks)):
            for slot in range(slots):
                end = int(previous.lengths[task, slot]) - 1
                prev_action[task, slot] = _encoded(previous.actions[task, slot, end], distribution)
                prev_reward[task, slot] = previous.rewards[task, slot, end]
    active = torch.ones(shape, dtype=torch.bool)
    last_obs = torch.zeros(*shape, spec.obs_dim)
    success, reported, invalid = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    steps: list[tuple[Tensor, ...]] = []
    while active.any():
        seen = torch.tensor(np.where(active.flatten()[:, None], obs, 0.0), dtype=torch.float32).view(*shape, -1)
        timestep = Timestep(seen, prev_action, prev_reward, prev_done, active)
        with torch.no_grad():
            action, state = agent.act(state, timestep)
        obs, *told, info = env.step(env_actions(env.single_action_space, action.value.flatten(0, 1)))
        rewards, terminated, truncated = (torch.tensor(array).view(shape) for array in told)
        diverged = active & torch.tensor(info["invalid"]).view(shape)
        invalid = invalid | diverged
        rewards = torch.where(active & ~diverged, rewards, 0.0).float()
        terminated = active & terminated & ~diverged
        truncated = active & (truncated | diverged | (len(steps) == spec.horizon - 1)) & ~terminated
        success = success | (active & (torch.tensor(info["success"]).view(shape) > 0))
        reported = reported | active
        after = torch.tensor(obs, dtype=torch.float32).view(*shape, -1)
        after = torch.where(diverged[..., None], seen, after)
        last_obs = torch.where((terminated | truncated)[..., None], after, last_obs)
        fields = (timestep.obs, prev_action, prev_reward, prev_done, active)
        steps.append((*fields, action.value, action.log_prob, rewards, terminated, truncated))
        prev_action, prev_reward, prev_done = _encoded(action.value, distribution), rewards, torch.zeros(shape)
        active = active & ~(terminated | truncated)
    if own:
        env.close()
    columns = [torch.stack(column, dim=2) for column in zip(*steps, strict=True)]
    actions, log_probs, all_rewards, all_terminated, all_truncated = columns[5:]
    rollout = Rollout(
        Timestep(*columns[:5]),
        *(actions, log_probs, all_rewards, all_terminated, all_truncated),
        *(last_obs, success & ~invalid, invalid, reported),
    )
    return rollout, state


def _encoded(action: Tensor, distribution: TaskDistribution) -> Tensor:
    if distribution.spec.discrete:
        return torch.eye(distribution.spec.action_dim)[action]
    clipped = action.clamp(-1.0, 1.0)
    free = distribution.spec.unbounded
    return torch.where(torch.tensor(free), action, clipped) if free else clipped
