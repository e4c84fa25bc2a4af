"""What stands beside every Meta-World result: upstream's scripted experts and the random policy, on the same goals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metarl.envs.metaworld.distributions import meta_world
from metarl.envs.metaworld.task_sets import by_name
from metarl.envs.metaworld.upstream import upstream_env
from metarl.evaluation.metaworld_protocol import EVALUATION_EPISODES, protocol_settings
from metarl.evaluation.metaworld_scores import OfficialScores, TaskScores, read, save
from metarl.seeding import numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task

Array = NDArray[Any]
Policy = Callable[[Array], Array]
"""Observations ``[instance, 39]`` -> actions ``[instance, 4]``."""

_GOALS_AT_ONCE = 16

REFERENCES = ("scripted expert", "random policy")


def reference_scores(
    name: str,
    distribution: TaskDistribution,
    split: Literal["train", "test"],
    store: Path,
    *,
    goals: int | None = None,
    seed: int = 0,
) -> OfficialScores:
    """Scores of a policy that does not adapt, on the protocol's evaluation episodes; read from ``store`` if there.

    Args:
        name: one of :data:`REFERENCES`. The expert alone is shown the goal.
        distribution: a task set of Meta-World.
        split: ``"train"`` or ``"test"``.
        store: JSON file of the scores.
        goals: the first so many goals of each task; default: all.
        seed: seed for random actions.
    """
    settings = protocol_settings(distribution, split, goals, 1)
    settings |= {"agent": name, "adaptation_episodes": 0, "deterministic": name == REFERENCES[0], "seed": seed}
    known = read(store, settings)
    if known is not None:
        return known
    by_task = {}
    for task_name, tasks in by_name(getattr(meta_world(distribution).task_set.goals, split)).items():
        chosen = tasks[: settings["goals_per_task"]]
        parts = []
        for first in range(0, len(chosen), _GOALS_AT_ONCE):
            episodes = [task for task in chosen[first : first + _GOALS_AT_ONCE] for _ in range(EVALUATION_EPISODES)]
            rng = numpy_stream(seed, "reference", split, task_name, first)
            policy = _expert(episodes) if name == REFERENCES[0] else _random(len(episodes), rng)
            parts.append(_play(policy, distribution, episodes))
        success, returns, invalid = (np.concatenate(column) for column in zip(*parts, strict=True))
        by_task[task_name] = TaskScores(
            tuple(success.reshape(-1, EVALUATION_EPISODES).mean(1).tolist()),
            tuple(returns.reshape(-1, EVALUATION_EPISODES).mean(1).tolist()),
            len(chosen) * EVALUATION_EPISODES * distribution.spec.horizon,
            int(invalid.sum()),
        )
    scores = OfficialScores(settings, by_task)
    save(scores, store)
    return scores


def _play(policy: Policy, distribution: TaskDistribution, tasks: Sequence[Task]) -> tuple[Array, Array, Array]:
    """One episode of each task; success, return and whether the simulation diverged."""
    env = distribution.make_vector_env(len(tasks))
    success, invalid, returns = np.zeros(len(tasks), bool), np.zeros(len(tasks), bool), np.zeros(len(tasks))
    try:
        obs, _ = env.reset(options={"tasks": list(tasks)})
        for _ in range(distribution.spec.horizon):
            obs, rewards, _, _, info = env.step(policy(obs).astype(np.float32))
            invalid |= np.asarray(info["invalid"], bool)
            returns += np.where(invalid, 0.0, rewards)
            success |= np.asarray(info["success"]) > 0
    finally:
        env.close()
    return success & ~invalid, returns, invalid


def _expert(tasks: Sequence[Task]) -> Policy:
    """Upstream's scripted policies, which are shown the goal that observations hide."""
    from metaworld.policies import ENV_POLICY_MAP

    makers: dict[str, Any] = ENV_POLICY_MAP  # Its declared type is the abstract class.
    experts = [makers[task["env_name"]]() for task in tasks]
    goals: dict[bytes, Array] = {}
    for task in tasks:
        key = task["rand_vec"].tobytes()
        if key not in goals:
            env = upstream_env(task)
            env.reset()
            goals[key] = np.array(env._target_pos)
            env.close()
    shown = np.stack([goals[task["rand_vec"].tobytes()] for task in tasks])

    def act(obs: Array) -> Array:
        complete = np.concatenate([obs[:, :-3], shown], axis=1)
        with warnings.catch_warnings():
            # They ask for moves beyond the box, which the environment clips, and say so.
            warnings.filterwarnings("ignore", message="Constant")
            actions = [expert.get_action(row) for expert, row in zip(experts, complete, strict=True)]
        return np.asarray(np.clip(np.stack(actions), -1.0, 1.0))

    return act


def _random(num: int, rng: np.random.Generator) -> Policy:
    return lambda obs: rng.uniform(-1.0, 1.0, (num, 4))
