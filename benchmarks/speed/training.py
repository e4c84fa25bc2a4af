"""How fast agents train on Meta-World: collecting beside the pool alone, and what an iteration consists of.

The part ``training`` of :mod:`metarl.benchmarks.speed`. Each number of cores is measured in a process that may use no
others, with one torch thread. Within it the sides alternate, and the fastest round of each counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from metarl.agent import Agent
from metarl.agents.common.gradient_agent import GradientAgent
from metarl.benchmarks.speed.plain_collector import plain_rollout
from metarl.envs.metaworld.distributions import MetaWorldTasks, meta_world
from metarl.experiments import resolve
from metarl.rollouts.actions import env_actions
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.seeding import numpy_stream
from metarl.types import Rollout, Task

CPU = torch.device("cpu")
CORES = (1, 2)
STRIDE = 5
"""``fisher_stride`` that is compared with 1."""

_WARM_UP = 10
"""Steps of the episodes that libraries are loaded in."""


@dataclass(frozen=True)
class Case:
    """An agent with its preset for some tasks of Meta-World.

    Attributes:
        agent: name.
        tasks: name.
        num_tasks: in one meta-batch.
        steps: of an episode that is collected; iterations play whole ones.
        rounds: of collecting.
    """

    agent: str
    tasks: str
    num_tasks: int
    steps: int = 250
    rounds: int = 4

    @property
    def name(self) -> str:
        """As the tables show it."""
        return f"{self.agent}, {self.tasks}"


CASES = (Case("rl2", "ml10", 20), Case("maml-trpo", "ml1/reach-v3", 10))
QUICK = (Case("rl2", "ml1/reach-v3", 2, steps=3, rounds=1), Case("maml-trpo", "ml1/reach-v3", 2, steps=3, rounds=1))


def report_collecting(case: Case) -> None:
    """Print as JSON how many environment steps per second the plain loop, the collector and the pool alone make."""
    agent, distribution, tasks = _prepared(case, case.steps)
    slots = agent.rollouts_per_task
    collector = Collector(distribution, slots, CPU)
    pool = distribution.make_vector_env(len(tasks) * slots)
    parts = collector.divide(len(tasks))
    states = [agent.begin(part.stop - part.start) for part in parts]
    state = agent.begin(len(tasks))
    if isinstance(agent, GradientAgent):
        # Weights of its own for each task, as they are after the first adaptation.
        first, _ = plain_rollout(distribution, agent, state, tasks, slots, 0, env=pool)
        state = agent.adapt(state, first)
        states = [agent.adapt(own, first[part]) for own, part in zip(states, parts, strict=True)]
    played: list[Rollout] = []

    def collect() -> None:
        collector.seed(0)
        played[:] = [collector.collect_parts(agent, states, parts, tasks)[0]]

    def step_pool() -> None:
        actions = played[0].actions.flatten(0, 1)
        pool.reset(options={"tasks": [task for task in tasks for _ in range(slots)]})
        for step in range(actions.shape[1]):
            pool.step(env_actions(pool.single_action_space, actions[:, step]))

    sides: dict[str, Callable[[], object]] = {
        "plain": lambda: plain_rollout(distribution, agent, state, tasks, slots, 0, env=pool),
        "collector": collect,
        "pool": step_pool,
    }
    try:
        found = _fastest(sides, case.rounds)
    finally:
        collector.close()
        pool.close()
    print(json.dumps({name: len(tasks) * slots * case.steps / seconds for name, seconds in found.items()}))


def _fastest(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each side; the first round warms the caches."""
    seconds = dict.fromkeys(sides, float("inf"))
    for number, (name, run) in itertools.product(range(rounds + 1), sides.items()):
        started = time.perf_counter()
        run()
        if number:
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def report_iteration(case: Case, steps: int | None) -> None:
    """Print as JSON the seconds of an iteration's parts, after a short one that warms up; episodes of ``steps``."""
    found: dict[str, float] = {}
    for length in (_WARM_UP, steps):
        agent, distribution, tasks = _prepared(case, length)
        collector = Collector(distribution, agent.rollouts_per_task, CPU)
        try:
            trial = run_trial(agent, collector, tasks, agent.num_adaptations, 0)
        finally:
            collector.close()
        found = {"collecting": trial.collect_seconds, "adapting": trial.adapt_seconds}
        for stride in (STRIDE, 1) if isinstance(agent, GradientAgent) else (0,):
            updated = _with_stride(case, agent, stride, distribution.spec.horizon)
            started = time.perf_counter()
            updated.meta_update(trial)
            found[f"update {stride}"] = time.perf_counter() - started
    print(json.dumps(found))


def _with_stride(case: Case, agent: Agent[Any], stride: int, horizon: int) -> Agent[Any]:
    """A fresh agent, of the same parameters, with this ``fisher_stride``; without one, the agent itself."""
    if not stride:
        return agent
    return resolve(case.agent, case.tasks, settings={"fisher_stride": min(stride, horizon)}).build()


def _prepared(case: Case, steps: int | None) -> tuple[Agent[Any], MetaWorldTasks, list[Task]]:
    torch.set_num_threads(1)
    setup = resolve(case.agent, case.tasks, train={"device": "cpu"})
    distribution = meta_world(setup.distribution)
    if steps is not None:
        distribution = dataclasses.replace(distribution, horizon=steps)
    agent = setup.build()
    agent.seed(0)
    return agent, distribution, distribution.sample_meta_batch(case.num_tasks, numpy_stream(0, "tasks", 0))


def _ask(function: str, cores: int, *arguments: object) -> dict[str, float]:
    """What a function of this module prints, in a fresh process on the first cores that this one may use."""
    here = __name__
    code = (
        f"import os; os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[:cores]}); "
        f"from {here} import *; {function}({', '.join(map(repr, arguments))})"
    )
    answer = subprocess.run([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def run(console: Console, quick: bool) -> None:
    """Measure and print the tables."""
    usable = len(os.sched_getaffinity(0))
    collecting = Table(
        *("agent, tasks", "cores", "plain loop, steps/s", "collector", "pool alone", "x plain loop", "of the pool"),
        title="Collecting; the plain loop plays the whole batch at once",
    )
    iterations = Table(
        *("agent, tasks", "cores", "collecting, s", "adapting", "update", f"update, fisher_stride {STRIDE}"),
        *("whole", f"whole, fisher_stride {STRIDE}"),
        title="One iteration",
    )
    cases = QUICK if quick else CASES
    for case, cores in itertools.product(cases, CORES[:usable]):
        speed = _ask("report_collecting", cores, case)
        plain, ours, pool = (speed[name] for name in ("plain", "collector", "pool"))
        figures = (f"{plain:,.0f}", f"{ours:,.0f}", f"{pool:,.0f}", f"{ours / plain:.2f}", f"{ours / pool:.2f}")
        collecting.add_row(case.name, str(cores), *figures)
    console.print(collecting)
    for case, cores in itertools.product(cases, CORES[:usable]):
        found = _ask("report_iteration", cores, case, case.steps if quick else None)
        rest = found["collecting"] + found["adapting"]
        updates = [found.get(f"update {stride}") for stride in (1, STRIDE)]
        if "update 0" in found:
            updates = [found["update 0"], None]
        seconds = [found["collecting"], found["adapting"], *updates, *(u and rest + u for u in updates)]
        iterations.add_row(case.name, str(cores), *("" if value is None else f"{value:.3g}" for value in seconds))
    console.print(iterations)
