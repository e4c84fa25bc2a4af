"""Tasks of a distribution, as a command names them."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from metarl.envs.metaworld.distributions import MetaWorldTasks
from metarl.envs.metaworld.task_sets import by_name
from metarl.errors import ConfigError, unknown_name
from metarl.seeding import numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task

SplitName = Literal["test", "train"]

_SPLITS: tuple[SplitName, ...] = ("test", "train")

_OF_JSON = (dict, list, tuple, str, int, float, type(None), np.ndarray, np.generic)
"""Types of tasks that JSON can give, or what comes to the same in an environment."""

_DRAWN = 20
"""Tasks that are drawn to see which keys they have; some may leave out what others have."""


def choose_task(
    distribution: TaskDistribution, *, name: str | None, split: SplitName | None, goal: int, seed: int, stream: str
) -> tuple[Task, str]:
    """A task, and what to call it.

    Args:
        distribution: the tasks.
        name: name of a Meta-World task; the only one if None. Others have no names.
        split: held-out or training goals; default: test, or train for a task that is trained on alone.
        goal: number of the goal, from 0: in upstream's order, or elsewhere in that of the tasks that are drawn.
        seed: seed for drawing them.
        stream: what they are drawn for.

    Raises:
        ConfigError: for an unknown name or goal, or where a name is missing.
    """
    if not isinstance(distribution, MetaWorldTasks):
        if name is not None:
            raise ConfigError(
                f"the tasks of {distribution.id} have no names, got --task {name!r}. Leave it out; --goal and "
                "--seed choose the task."
            )
        split = split or "test"
        drawn = getattr(distribution, split).sample(goal + 1, numpy_stream(seed, stream))
        return drawn[goal], f"{distribution.id} {split} task {goal}"
    table = distribution.task_set.goals
    splits = {part: by_name(getattr(table, part)) for part in ((split,) if split else _SPLITS)}
    names = {known for goals in splits.values() for known in goals}
    if name is None and len(names) > 1:
        raise ConfigError(
            f"{distribution.id} has {len(names)} tasks; choose one by --task: {', '.join(sorted(names))}."
        )
    name = name or next(iter(names))
    if name not in names:
        raise unknown_name(f"{split or ''} task of {distribution.id}".lstrip(), name, names)
    chosen = next(part for part, goals in splits.items() if name in goals)
    goals = splits[chosen][name]
    if goal >= len(goals):
        raise ConfigError(f"{name} has {len(goals)} {chosen} goals: --goal must be below that, got {goal}.")
    return goals[goal], f"{name} {chosen} goal {goal}"


def chosen_tasks(distribution: TaskDistribution, words: Sequence[str], num_tasks: int) -> list[Task]:
    """The tasks that some words name.

    Args:
        distribution: the tasks.
        words: names of Meta-World tasks, each of which stands for its goals, held-out ones if it has any; elsewhere
            tasks themselves, in JSON.
        num_tasks: most tasks in all, shared out evenly among the names.

    Raises:
        ConfigError: for an unknown name, text that is no JSON, a task whose keys are not those of the tasks that are
            drawn, or more names than tasks.
    """
    if not isinstance(distribution, MetaWorldTasks):
        found = []
        for word in words:
            try:
                found.append(json.loads(word))
            except ValueError as error:
                raise ConfigError(
                    f"the tasks of {distribution.id} have no names: --task takes one in JSON, such as "
                    f"'{{\"goal\": 0.5}}', got {word!r} ({error})."
                ) from error
        _require_keys(distribution, found)
        return found
    if len(words) > num_tasks:
        raise ConfigError(f"--task names {len(words)} tasks, more than --num-tasks {num_tasks}.")
    goals = distribution.task_set.goals
    by_split = [by_name(goals.test), by_name(goals.train)]
    known = {name for split in by_split for name in split}
    for word in words:
        if word not in known:
            raise unknown_name(f"task of {distribution.id}", word, known)
    each = num_tasks // len(words)
    return [goal for word in words for goal in next(s[word] for s in by_split if word in s)[:each]]


def _require_keys(distribution: TaskDistribution, tasks: Sequence[Task]) -> None:
    """Refuse tasks with other keys than those that are drawn, which an environment would meet in its own way or not."""
    drawn = distribution.test.sample(_DRAWN, numpy_stream(0, "task keys"))
    if not all(isinstance(task, dict) for task in drawn):
        if others := [task for task in drawn if not isinstance(task, _OF_JSON)]:
            raise ConfigError(
                f"a task of {distribution.id} is a {type(others[0]).__name__}, such as {reprlib.repr(others[0])}, "
                "which JSON has no word for. Leave --task out."
            )
        return
    known, needed = set().union(*drawn), set(drawn[0]).intersection(*drawn)
    for task in tasks:
        if not isinstance(task, dict) or not needed <= task.keys() <= known:
            got = ", ".join(map(repr, task)) if isinstance(task, dict) else f"{json.dumps(task)}, which has no keys"
            raise ConfigError(
                f"a task of {distribution.id} has the keys {', '.join(map(repr, sorted(known, key=str)))}, "
                f"such as {drawn[0]}; --task gave {got or 'none'}."
            )


def require_sound(*, goal: int, seed: int, num_adaptations: int | None, checkpoint: Path | None, best: bool) -> None:
    """Refuse options of a command that adapts a run's agent to one task.

    Raises:
        ConfigError: for a number below 0, a seed that is too large, or two checkpoints.
    """
    for name, value in (("goal", goal), ("seed", seed), ("num-adaptations", num_adaptations)):
        if value is not None and value < 0:
            raise ConfigError(f"--{name} must be 0 or more, got {value}.")
    if seed >= 2**63:
        raise ConfigError(f"--seed must be 0 or more and below 2^63, got {seed}.")
    if best and checkpoint is not None:
        raise ConfigError(f"--best and --checkpoint {checkpoint} name two checkpoints; give one of them.")
