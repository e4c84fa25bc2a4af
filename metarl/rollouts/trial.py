"""The one path of training and evaluation: collect, adapt, repeat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

from metarl.agent import Agent
from metarl.rollouts.collector import Collector
from metarl.seeding import derive
from metarl.types import Rollout, Task, Trial

State = TypeVar("State")


def run_trial(
    agent: Agent[State],
    collector: Collector,
    tasks: Sequence[Task],
    num_adaptations: int,
    seed: int,
    deterministic_last: bool = False,
    last_collector: Collector | None = None,
    first_task: int = 0,
    also_sampled: bool = False,
) -> Trial:
    """Let an agent meet new tasks: ``num_adaptations`` times collect and adapt, then collect once more.

    Args:
        agent: begins without knowledge of the tasks.
        collector: poses them.
        tasks: one per entry of the task axis.
        num_adaptations: calls of ``agent.adapt``; 0 or more.
        seed: seed for the agent's samples and the environments' streams; same seed, same trial.
        deterministic_last: act by the distribution's mode in the last rollout.
        last_collector: collects the last rollout instead, e.g. with another number of episodes for each task.
        first_task: index in the meta-batch of the first of ``tasks``, where a meta-batch is shared out over processes.
        also_sampled: collect the last rollout once more by sampled actions, from the same state; the trial is the same.
    """
    agent.seed(seed)
    collector.seed(seed, first_task)
    if last_collector is not None:
        last_collector.seed(derive(seed, "last"), first_task)
    parts = collector.divide(len(tasks))
    states = [agent.begin(part.stop - part.start) for part in parts]
    rollouts: list[Rollout] = []
    sampled: Rollout | None = None
    collect_seconds = adapt_seconds = 0.0
    for shot in range(num_adaptations + 1):
        started = time.perf_counter()
        is_last = shot == num_adaptations
        chosen = last_collector if is_last and last_collector is not None else collector
        before, previous = states, rollouts[-1] if rollouts else None
        rollout, states = chosen.collect_parts(agent, states, parts, tasks, previous, deterministic_last and is_last)
        rollouts.append(rollout)
        if also_sampled and is_last:
            sampled, _ = chosen.collect_parts(agent, before, parts, tasks, previous)
        collected = time.perf_counter()
        collect_seconds += collected - started
        if shot < num_adaptations:
            states = [agent.adapt(state, rollout[part]) for state, part in zip(states, parts, strict=True)]
        adapt_seconds += time.perf_counter() - collected
    return Trial(tasks, tuple(rollouts), collect_seconds, adapt_seconds, sampled)
