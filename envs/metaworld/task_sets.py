"""Meta-World's goals: upstream's own for a seed, drawn once and kept on disk as plain numbers.

Importing this module imports neither metaworld nor MuJoCo: goals are made or read when a task is first drawn.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metarl.digest import task_digest
from metarl.envs.metaworld.cache import cache_folder, read_cached, write_cached
from metarl.envs.metaworld.upstream import TASK_NAMES, installed_version, upstream
from metarl.errors import ConfigError, unknown_name
from metarl.types import Task

BENCHMARKS = (*(f"ml1/{name}" for name in TASK_NAMES), "ml10", "ml25", "ml45")
"""The task sets that have a name."""

_TABLE_FORMAT = 1


@dataclass(frozen=True)
class GoalTable:
    """The tasks of both splits, in upstream's order: 50 goals for each task name."""

    train: tuple[Task, ...]
    test: tuple[Task, ...]


@dataclass(frozen=True)
class TaskSet:
    """Which goals: a benchmark, or a custom split, for one seed.

    Attributes:
        name: ``"ml1/<task>"``, ``"ml10"``, ``"ml25"``, ``"ml45"``, or ``"custom"``.
        seed: upstream's seed of the goals.
        train_names: training tasks of a custom set; empty for a benchmark.
        test_names: test tasks of a custom set; empty for a benchmark.
    """

    name: str
    seed: int = 0
    train_names: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32 - 1:
            raise ConfigError(f"the goals' seed must be an integer in [0, 2**32 - 2], got {self.seed!r}.")
        if self.name != "custom":
            if self.name not in BENCHMARKS:
                raise unknown_name("Meta-World benchmark", self.name, (*BENCHMARKS, "custom"))
            return
        for split, names in (("train", self.train_names), ("test", self.test_names)):
            if not names:
                raise ConfigError(f"a custom Meta-World set needs at least one {split} task.")
            if len(set(names)) != len(names):
                raise ConfigError(f"a custom Meta-World set names a {split} task twice: {', '.join(names)}.")
            for name in names:
                if name not in TASK_NAMES:
                    raise unknown_name("Meta-World task", name, TASK_NAMES)
        overlap = sorted(set(self.train_names) & set(self.test_names))
        if overlap:
            raise ConfigError(f"a custom Meta-World set trains and tests on the same tasks: {', '.join(overlap)}.")

    @cached_property
    def goals(self) -> GoalTable:
        """Upstream's goals, from the cache on disk or, the first time, drawn by upstream (0.8 s a task)."""
        path = self._path
        table = _read_table(path)
        if table is None:
            table = _draw(self)
            _write_table(path, table)
        return table

    @property
    def _path(self) -> Path:
        # A goal is independent of the reward version, so both versions share a table.
        versions = [installed_version(name) for name in ("metaworld", "mujoco", "numpy")]
        key = task_digest(asdict(self) | {"versions": versions})
        name = self.name.replace("/", "-")
        return cache_folder() / "metaworld" / f"{versions[0]}-{name}-seed{self.seed}-{key.hex()[:12]}.json"


@dataclass(frozen=True)
class SplitSampler:
    """Draws one (task name, goal) pair of a split, all being equally likely."""

    task_set: TaskSet
    split: Literal["train", "test"]

    def __call__(self, rng: np.random.Generator) -> Task:
        """One task."""
        tasks = getattr(self.task_set.goals, self.split)
        return tasks[int(rng.integers(len(tasks)))]


@dataclass(frozen=True)
class EvenSampler:
    """Draws as many training goals of every task name, no goal twice before all of its name were drawn.

    So does upstream's ``make_ml_envs``, whose ``meta_batch_size`` must be divisible by the number of names.
    """

    task_set: TaskSet

    def __call__(self, num_tasks: int, rng: np.random.Generator) -> list[Task]:
        """The tasks of one meta-update, by name in upstream's order.

        Raises:
            ConfigError: if the names cannot have equal shares.
        """
        goals = by_name(self.task_set.goals.train)
        each, rest = divmod(num_tasks, len(goals))
        if each < 1 or rest:
            raise ConfigError(
                f"{self.task_set.name} trains on as many goals of each of its {len(goals)} tasks, so the meta-batch "
                f"size must be a multiple of {len(goals)} above 0, got {num_tasks!r}; valid choices: "
                f"{', '.join(str(len(goals) * factor) for factor in range(1, 5))}, ..."
            )
        return [
            tasks[index] for tasks in goals.values() for index in np.resize(rng.permutation(len(tasks)), each).tolist()
        ]


def by_name(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """Tasks by the name of upstream's task, both in the order in which they come."""
    named: dict[str, list[Task]] = {}
    for task in tasks:
        named.setdefault(task["env_name"], []).append(task)
    return named


def _draw(task_set: TaskSet) -> GoalTable:
    """Upstream's task lists, each task's pickled settings reduced to the vector that defines it."""
    metaworld = upstream()
    if task_set.name == "custom":
        benchmark = metaworld.CustomML(list(task_set.train_names), list(task_set.test_names), seed=task_set.seed)
    elif task_set.name.startswith("ml1/"):
        benchmark = metaworld.ML1(task_set.name.removeprefix("ml1/"), seed=task_set.seed)
    else:
        benchmark = getattr(metaworld, task_set.name.upper())(seed=task_set.seed)

    def plain(task: Any) -> Task:
        return {"env_name": task.env_name, "rand_vec": pickle.loads(task.data)["rand_vec"]}

    return GoalTable(tuple(map(plain, benchmark.train_tasks)), tuple(map(plain, benchmark.test_tasks)))


def _read_table(path: Path) -> GoalTable | None:
    """The table in ``path``; None if there is none, or not a whole one (an old format, a damaged disk)."""
    content = read_cached(path, _TABLE_FORMAT)
    if content is None:
        return None
    try:
        splits = [
            tuple({"env_name": str(name), "rand_vec": np.array(vector, np.float64)} for name, vector in content[split])
            for split in ("train", "test")
        ]
    except (ValueError, KeyError, TypeError):
        return None
    return GoalTable(*splits)


def _write_table(path: Path, table: GoalTable) -> None:
    content = {
        split: [[task["env_name"], task["rand_vec"].tolist()] for task in getattr(table, split)]
        for split in ("train", "test")
    }
    write_cached(path, _TABLE_FORMAT, content, "the Meta-World goals")
