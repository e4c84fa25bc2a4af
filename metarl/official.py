"""Meta-World's evaluation protocol, exact: every goal of a split gets the same number of episodes.

For each (task, goal): ten adaptation episodes that do not end early, then three evaluation episodes acting by the mode
of the policy. An episode is a success if any of its steps is. Success is averaged over the goals of each task, then
over tasks. Source: Meta-World+ (arXiv 2505.11289) and its code, which uses 40 of the 50 test goals of each task.

A gradient-based agent takes one step on ten episodes that it plays side by side; a memory plays them one after the
other. Every evaluation episode begins from what was known after adaptation, none from another one: so do Meta-World+'s
agents, whose memory is put back before each. All of it runs through :func:`metarl.trial.run_trial`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metarl.agent import Agent
from metarl.agents import AGENTS
from metarl.collector import Collector
from metarl.envs.metaworld import reward_version_of, task_set_of, with_workers
from metarl.envs.metaworld_goals import by_name
from metarl.envs.metaworld_official import upstream_evaluation
from metarl.errors import ConfigError, unknown_name
from metarl.evaluator import require_same_spaces
from metarl.official_scores import OfficialScores, TaskScores, read, save
from metarl.seeding import derive
from metarl.session import Session, load_distribution
from metarl.tasks import TaskDistribution
from metarl.trial import run_trial
from metarl.types import Task

ADAPTATION_EPISODES = 10
EVALUATION_EPISODES = 3

_MOST_INSTANCES = 50
"""Simulations that are alive for one collector; goals are scored in chunks of so many."""

_PACKAGES = ("metarl", "metaworld", "mujoco", "numpy", "gymnasium", "torch")


def protocol_settings(
    distribution: TaskDistribution, split: Literal["train", "test"], goals: int | None, num_rounds: int
) -> dict[str, Any]:
    """What is scored and how, with the protocol's name: official only if it is.

    Args:
        distribution: a task set of Meta-World.
        split: ``"train"`` or ``"test"``.
        goals: the first so many goals of each task; default: all.
        num_rounds: times that the agent adapts, each time on ten episodes.

    Raises:
        ConfigError: for tasks that are not Meta-World's, an unknown split, or more goals than there are.
    """
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    task_set = task_set_of(distribution)
    available = min(len(tasks) for tasks in by_name(getattr(task_set.goals, split)).values())
    if goals is not None and not 1 <= goals <= available:
        raise ConfigError(f"goals must be 1 to {available}, those that each task of {task_set.name} has, got {goals}.")
    chosen = goals or available
    deviations = [
        *([f"{chosen} of {available} goals of each task"] if chosen < available else []),
        *([f"{num_rounds} x {ADAPTATION_EPISODES} adaptation episodes"] if num_rounds != 1 else []),
    ]
    return {
        "protocol": f"NOT the official protocol: {', '.join(deviations)}" if deviations else "the official protocol",
        "task_set": task_set.name,
        "goals_seed": task_set.seed,
        "train_names": list(task_set.train_names),
        "test_names": list(task_set.test_names),
        "split": split,
        "goals_per_task": chosen,
        "adaptation_episodes": num_rounds * ADAPTATION_EPISODES,
        "evaluation_episodes": EVALUATION_EPISODES,
        "reward_version": reward_version_of(distribution),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def evaluate_official(
    agent: Agent[Any],
    distribution: TaskDistribution,
    *,
    shot: Literal["gradient step", "episode"],
    seed: int,
    split: Literal["train", "test"] = "test",
    goals: int | None = None,
    deterministic: bool = True,
    source: TaskDistribution | None = None,
    store: Path | None = None,
    about: Mapping[str, Any] | None = None,
    listener: Callable[[int, int], None] = lambda done, total: None,
) -> OfficialScores:
    """Score ``agent`` on every goal of a split; its meta-parameters stay as they are.

    Goals of a task are scored in chunks, with random streams of their own: what a task scores depends on nothing but
    ``seed``, the agent and the task, and not on the other tasks.

    Args:
        agent: trained or not.
        distribution: a task set of Meta-World, or one made from it that shows more.
        shot: what the agent adapts by.
        seed: of everything that is random.
        split: ``"test"`` or ``"train"``.
        goals: the first so many goals of each task; default: all, which alone is official.
        deterministic: act by the mode of the policy in evaluation episodes; a random policy has no other one.
        source: the task set that ``distribution`` was made from.
        store: a file that is written after each task, and read at the start: tasks that it holds with the same
            settings are not scored again.
        about: what else scores depend on, e.g. a run's iteration; stored among the settings.
        listener: is told how many tasks of how many are done.

    Raises:
        ConfigError: see :func:`protocol_settings`; if the agent was built for other spaces.
    """
    source = source or distribution
    require_same_spaces(agent, distribution)
    num_rounds = 1 if shot == "episode" else max(1, agent.num_adaptations)
    slots, num_adaptations = (1, ADAPTATION_EPISODES) if shot == "episode" else (ADAPTATION_EPISODES, num_rounds)
    settings = protocol_settings(source, split, goals, num_rounds)
    settings |= {"seed": seed, "deterministic": deterministic, **(about or {})}
    tasks = by_name(getattr(task_set_of(source).goals, split))
    known = read(store, settings) if store is not None else None
    upstream = None if known is None else known.upstream
    scores = {} if known is None else dict(known.by_task)
    adapting = Collector(distribution, slots, agent.device)
    evaluating = Collector(distribution, EVALUATION_EPISODES, agent.device)
    try:
        for number, (name, of_task) in enumerate(tasks.items()):
            listener(number, len(tasks))
            if name in scores:
                continue
            chosen = of_task[: settings["goals_per_task"]]
            num_chunks = -(-len(chosen) * max(slots, EVALUATION_EPISODES) // _MOST_INSTANCES)
            parts = []
            for chunk, rows in enumerate(np.array_split(np.arange(len(chosen)), num_chunks)):
                chunk_tasks = [chosen[row] for row in rows]
                chunk_seed = derive(seed, "official", split, name, chunk)
                parts.append(
                    _score(agent, adapting, evaluating, chunk_tasks, num_adaptations, chunk_seed, deterministic)
                )
            scores[name] = TaskScores(
                tuple(value for part in parts for value in part.success),
                tuple(value for part in parts for value in part.returns),
                sum(part.num_env_steps for part in parts),
                sum(part.num_invalid for part in parts),
            )
            if store is not None:
                save(OfficialScores(settings, scores, upstream), store)
    finally:
        adapting.close()
        evaluating.close()
    listener(len(tasks), len(tasks))
    return OfficialScores(settings, {name: scores[name] for name in tasks}, upstream)


def evaluate_session(
    session: Session,
    agent: Agent[Any],
    iteration: int,
    *,
    seed: int,
    split: Literal["train", "test"] = "test",
    goals: int | None = None,
    tasks: str | None = None,
    upstream: bool = False,
    num_workers: int | None = None,
    listener: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[OfficialScores, Path]:
    """Score a run's agent; scores stay in the run's folder, where an interrupted evaluation goes on.

    Args:
        session: of the agent.
        agent: of a checkpoint.
        iteration: iterations behind it.
        seed: of everything that is random in the evaluation.
        split: ``"test"`` or ``"train"``.
        goals: the first so many goals of each task; default: all, which alone is official.
        tasks: another task set of Meta-World than the one that was trained on.
        upstream: also run metaworld's own function, on its own environments, which takes several times as long.
        num_workers: processes that step the simulations; default: one for each core that this process may use.
        listener: is told how many tasks of how many are done.

    Returns:
        The scores, and the JSON file that holds them.

    Raises:
        ConfigError: see :func:`evaluate_official`; for ``upstream`` and an agent that is told its task.
    """
    entry = AGENTS[session.name]
    if upstream and entry.told_task:
        raise ConfigError(f"metaworld's own evaluation cannot tell {session.name} its task; leave upstream out.")
    source = with_workers(load_distribution(tasks or session.task_name), num_workers)
    about = {"agent": session.name, "training_seed": session.train_config.seed, "iteration": iteration}
    name = f"official-{source.id}-{split}-iteration{iteration}-{f'{goals}goals-' if goals else ''}seed{seed}.json"
    store = session.run.path / name.replace("/", "-")
    scores = evaluate_official(
        agent,
        session.seen(source),
        shot=entry.shot,
        seed=seed,
        split=split,
        goals=goals,
        source=source,
        store=store,
        about=about,
        listener=listener,
    )
    if upstream and scores.upstream is None:
        mean, by_task = upstream_evaluation(
            agent,
            task_set_of(source),
            split,
            scores.settings["goals_per_task"],
            shot=entry.shot,
            seed=seed,
            reward_version=scores.settings["reward_version"],
        )
        scores = replace(scores, upstream={**by_task, "mean": mean})
        save(scores, store)
    return scores, store


def _score(
    agent: Agent[Any],
    adapting: Collector,
    evaluating: Collector,
    tasks: list[Task],
    num_adaptations: int,
    seed: int,
    deterministic: bool,
) -> TaskScores:
    trial = run_trial(agent, adapting, tasks, num_adaptations, seed, deterministic, evaluating)
    last = trial.rollouts[-1]
    return TaskScores(
        tuple(last.success.double().mean(1).tolist()),
        tuple(last.returns.double().mean(1).tolist()),
        trial.num_env_steps,
        trial.num_invalid,
    )
