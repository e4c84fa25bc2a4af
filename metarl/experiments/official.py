"""Meta-World's protocol on the agent of a run; scores stay in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from metarl.agent import Agent
from metarl.envs.metaworld.distributions import meta_world
from metarl.errors import ConfigError
from metarl.evaluation.metaworld_protocol import evaluate_official
from metarl.evaluation.metaworld_scores import OfficialScores, save
from metarl.evaluation.metaworld_upstream import upstream_evaluation
from metarl.experiments.experiment import Experiment
from metarl.runs.checkpoint import state_digest
from metarl.runs.files import safe_name
from metarl.tasks.registry import load_distribution


def evaluate_experiment(
    experiment: Experiment,
    agent: Agent[Any],
    iteration: int,
    *,
    seed: int,
    split: Literal["train", "test"] = "test",
    goals: int | None = None,
    tasks: str | None = None,
    upstream: bool = False,
    num_workers: int | None = None,
    folder: Path | None = None,
    listener: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[OfficialScores, Path]:
    """Score a run's agent by the mode and by samples; scores stay in a folder, where an interrupted evaluation goes on.

    Args:
        experiment: the agent's experiment.
        agent: the agent of a checkpoint.
        iteration: iterations behind it.
        seed: seed for everything that is random in the evaluation.
        split: ``"test"`` or ``"train"``.
        goals: the first so many goals of each task; default: all, which alone is official.
        tasks: another task set of Meta-World than the one that was trained on.
        upstream: also run metaworld's own function, on its own environments, which takes several times as long.
        folder: where the scores stay; default: the run's folder.
        num_workers: processes that step the simulations; default: one for each core that this process may use.
        listener: is told how many tasks of how many are done.

    Returns:
        The scores, and the JSON file that holds them.

    Raises:
        ConfigError: see :func:`evaluate_official`; for ``upstream`` and an agent that is told its task.
    """
    config = experiment.agent_config
    if upstream and config.told_task:
        raise ConfigError(f"metaworld's own evaluation cannot tell {experiment.name} its task; leave upstream out.")
    source = replace(meta_world(load_distribution(tasks or experiment.task_name)), pool_workers=num_workers)
    about = {"agent": experiment.name, "training_seed": experiment.train_config.seed, "iteration": iteration}
    # Checkpoints of different runs have iterations in common; what was learned tells them apart.
    digest = state_digest(agent.state_dict())
    few = f"{goals}goals-" if goals else ""
    name = f"official-{source.id}-{split}-iteration{iteration}-{digest[:8]}-{few}seed{seed}.json"
    store = (folder or experiment.run.path) / safe_name(name)
    scores = evaluate_official(
        agent,
        experiment.seen(source),
        adapts_by=config.adapts_by,
        seed=seed,
        split=split,
        goals=goals,
        also_sampled=True,
        source=source,
        store=store,
        about=about,
        listener=listener,
    )
    if upstream and scores.upstream is None:
        mean, by_task = upstream_evaluation(
            agent,
            source.task_set,
            split,
            scores.settings["goals_per_task"],
            adapts_by=config.adapts_by,
            seed=seed,
            reward_version=scores.settings["reward_version"],
        )
        scores = replace(scores, upstream={**by_task, "mean": mean})
        save(scores, store)
    return scores, store
