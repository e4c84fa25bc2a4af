"""Meta-World's evaluation protocol, exact: every goal of a split gets the same number of episodes.

For each (task, goal): ten adaptation episodes that do not end early, then three evaluation episodes acting by the mode
of the policy. An episode is a success if any of its steps is. Success is averaged over the goals of each task, then
over tasks. Source: Meta-World+ (arXiv 2505.11289) and its code, which uses 40 of the 50 test goals of each task.

A gradient-based agent takes one step on ten episodes that it plays side by side; a memory plays them one after the
other. Every evaluation episode begins from what was known after adaptation, none from another one: so do Meta-World+'s
agents, whose memory is put back before each. All of it runs through :func:`metarl.rollouts.trial.run_trial`.

The mode and sampled actions answer different questions: a policy may search by its own noise, which the mode takes
away. So three more episodes of each goal can be sampled, from the same state; the protocol's figures do not depend on
them. Meta-World+'s MAML acts by the mode (``eval_action`` in ``rainx0r/metaworld-algorithms``); garage's
``MetaEvaluator``, which older figures come from, hands the adapted policy to a sampler that samples its actions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metarl.agent import Agent, AgentConfig
from metarl.envs.metaworld.distributions import meta_world
from metarl.envs.metaworld.task_sets import by_name
from metarl.envs.metaworld.upstream import HORIZON
from metarl.errors import ConfigError, NonFiniteError, unknown_name
from metarl.evaluation.evaluator import require_same_spaces
from metarl.evaluation.metaworld_scores import OfficialScores, SampledScores, TaskScores, joined, read, save
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.runs.checkpoint import state_digest
from metarl.seeding import derive
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Rollout, Trial
from metarl.version import version_of

ADAPTATION_EPISODES = 10
EVALUATION_EPISODES = 3

_MOST_INSTANCES = 50
"""Simulations that are alive for one collector; goals are scored in chunks of so many."""

_PACKAGES = ("metarl", "metaworld", "mujoco", "numpy", "gymnasium", "torch")


def protocol_settings(
    distribution: TaskDistribution,
    split: Literal["train", "test"],
    goals: int | None,
    num_rounds: int,
    *,
    horizon: int | None = None,
    deterministic: bool = True,
) -> dict[str, Any]:
    """What is scored and how, with the protocol's name: official only if it is.

    Args:
        distribution: a task set of Meta-World.
        split: ``"train"`` or ``"test"``.
        goals: the first so many goals of each task; default: all.
        num_rounds: times that the agent adapts, each time on ten episodes.
        horizon: steps of an episode; default: those of ``distribution``.
        deterministic: whether evaluation episodes are acted by the mode.

    Raises:
        ConfigError: for tasks that are not Meta-World's, an unknown split, or more goals than there are.
    """
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    tasks = meta_world(distribution)
    task_set = tasks.task_set
    available = min(len(tasks) for tasks in by_name(getattr(task_set.goals, split)).values())
    if goals is not None and not 1 <= goals <= available:
        raise ConfigError(f"goals must be 1 to {available}, those that each task of {task_set.name} has, got {goals}.")
    chosen = goals or available
    horizon = horizon or distribution.spec.horizon
    deviations = [
        *([f"{chosen} of {available} goals of each task"] if chosen < available else []),
        *([f"{num_rounds} x {ADAPTATION_EPISODES} adaptation episodes"] if num_rounds != 1 else []),
        *([f"episodes of {horizon} steps in place of {HORIZON}"] if horizon != HORIZON else []),
        *([] if deterministic else ["sampled actions in evaluation episodes"]),
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
        "horizon": horizon,
        "reward_version": tasks.reward_version,
        "versions": {name: version_of(name) for name in _PACKAGES},
    }


def evaluate_official(
    agent: Agent[Any],
    distribution: TaskDistribution,
    *,
    adapts_by: Literal["gradient step", "episode"],
    seed: int,
    split: Literal["train", "test"] = "test",
    goals: int | None = None,
    deterministic: bool = True,
    also_sampled: bool = False,
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
        adapts_by: what the agent adapts by.
        seed: seed for everything that is random.
        split: ``"test"`` or ``"train"``.
        goals: the first so many goals of each task; default: all, which alone is official.
        deterministic: act by the mode of the policy in evaluation episodes, which alone is official; an agent without
            a mode acts as it can.
        also_sampled: score three sampled episodes of each goal too, from the same state; without ``deterministic`` the
            protocol's own are.
        source: the task set that ``distribution`` was made from.
        store: a file that is written after each task, and read at the start: tasks that it holds with the same
            settings, of the same agent, are not scored again.
        about: what else is told of the agent, e.g. a run's iteration; stored among the settings. What it is and what
            it has learned stands there anyway.
        listener: is told how many tasks of how many are done.

    Raises:
        ConfigError: see :func:`protocol_settings`; if the agent was built for other spaces.
    """
    source = source or distribution
    require_same_spaces(agent, distribution)
    num_rounds = 1 if adapts_by == "episode" else max(1, agent.num_adaptations)
    slots, num_adaptations = (1, ADAPTATION_EPISODES) if adapts_by == "episode" else (ADAPTATION_EPISODES, num_rounds)
    settings = protocol_settings(
        source, split, goals, num_rounds, horizon=distribution.spec.horizon, deterministic=deterministic
    )
    also_sampled = also_sampled and deterministic
    settings |= {"seed": seed, "deterministic": deterministic, **({"also_sampled": True} if also_sampled else {})}
    settings |= {**_whose(agent), "adapts_by": adapts_by, **(about or {})}
    tasks = by_name(getattr(meta_world(source).task_set.goals, split))
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
                trial = run_trial(
                    agent,
                    adapting,
                    chunk_tasks,
                    num_adaptations,
                    chunk_seed,
                    deterministic,
                    evaluating,
                    also_sampled=also_sampled,
                )
                parts.append(_score(trial))
            scores[name] = joined(parts)
            if store is not None:
                save(OfficialScores(settings, scores, upstream), store)
    finally:
        adapting.close()
        evaluating.close()
    listener(len(tasks), len(tasks))
    return OfficialScores(settings, {name: scores[name] for name in tasks}, upstream)


def _whose(agent: Agent[Any]) -> dict[str, Any]:
    """What tells the scores of one agent from those of any other: equal parameters alone do not."""
    config = dataclasses.asdict(agent.config) if isinstance(agent.config, AgentConfig) else None
    return {
        "agent_class": type(agent).__qualname__,
        "agent_settings": json.loads(json.dumps(config, default=str)),  # As a file gives them back.
        "agent_sha256": state_digest(agent.state_dict()),
    }


def _score(trial: Trial) -> TaskScores:
    last, sampled = trial.rollouts[-1], trial.sampled
    return TaskScores(
        *_by_goal(last),
        trial.num_env_steps,
        trial.num_invalid + (0 if sampled is None else int(sampled.invalid.sum())),
        None if sampled is None else SampledScores(*_by_goal(sampled), int(sampled.valid.sum())),
    )


def _by_goal(rollout: Rollout) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Success and return of each goal, mean over its episodes."""
    if not rollout.returns.isfinite().all():
        raise NonFiniteError(
            "the return of an evaluation episode is not finite: its rewards leave the range of numbers."
        )
    return tuple(rollout.success.double().mean(1).tolist()), tuple(rollout.returns.double().mean(1).tolist())
