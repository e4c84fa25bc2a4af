"""Meta-World's meta-learning task sets: ML1, ML10, ML25, ML45 and custom splits.

A task is ``{"env_name": "reach-v3", "rand_vec": array}``: one of upstream's 50 manipulation tasks and the vector that
places its objects and goal. The vectors are upstream's own for a seed, drawn once by ``metaworld.ML1(...)``,
``metaworld.ML10(...)`` and so on, and kept on disk as plain numbers.

Observations are upstream's 39 numbers with the goal hidden (zeros); an episode lasts 500 steps and never ends early;
``info["success"]`` is upstream's. Source: Yu et al. 2019 (arXiv 1910.10897); reward versions: McLean et al. 2025
(Meta-World+, arXiv 2505.11289).

Importing this module imports neither metaworld nor MuJoCo: goals are made or read when a task is first drawn.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gymnasium.vector import VectorEnv

from metarl.digest import task_digest
from metarl.errors import ConfigError, unknown_name
from metarl.tasks import TaskDistribution
from metarl.types import Task

if TYPE_CHECKING:
    from metarl.envs.metaworld_pool import MetaWorldVectorEnv

RewardVersion = Literal["v1", "v2"]

HORIZON = 500
"""Steps in an episode."""

_SHORT_NAMES = (
    "assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall button-press "
    "button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open "
    "door-unlock hand-insert drawer-close drawer-open faucet-open faucet-close hammer handle-press-side "
    "handle-press handle-pull-side handle-pull lever-pull pick-place-wall pick-out-of-hole reach push-back push "
    "pick-place plate-slide plate-slide-side plate-slide-back plate-slide-back-side peg-insert-side "
    "peg-unplug-side soccer stick-push stick-pull push-wall reach-wall shelf-place sweep-into sweep window-open "
    "window-close"
)

TASK_NAMES = tuple(f"{name}-v3" for name in _SHORT_NAMES.split())
"""Upstream's 50 tasks."""

BENCHMARKS = (*(f"ml1/{name}" for name in TASK_NAMES), "ml10", "ml25", "ml45")
"""The task sets that have a name."""

_REWARD_VERSIONS = ("v1", "v2")
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
        train_names: of a custom set.
        test_names: of a custom set.
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
        key = task_digest(asdict(self) | {"versions": [version(name) for name in ("metaworld", "mujoco", "numpy")]})
        name = self.name.replace("/", "-")
        return cache_folder() / "metaworld" / f"{version('metaworld')}-{name}-seed{self.seed}-{key.hex()[:12]}.json"


@dataclass(frozen=True)
class _SplitSampler:
    """Draws one (task name, goal) pair of a split, all being equally likely."""

    task_set: TaskSet
    split: Literal["train", "test"]

    def __call__(self, rng: np.random.Generator) -> Task:
        tasks = getattr(self.task_set.goals, self.split)
        return tasks[int(rng.integers(len(tasks)))]


@dataclass(frozen=True)
class _EvenSampler:
    """Draws as many training goals of every task name, no goal twice before all of its name were drawn.

    So does upstream's ``make_ml_envs``, whose ``meta_batch_size`` must be divisible by the number of names.
    """

    task_set: TaskSet

    def __call__(self, num_tasks: int, rng: np.random.Generator) -> list[Task]:
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


@dataclass(frozen=True)
class _PoolMaker:
    """Builds the fast pool; metaworld is imported only in the pool's workers."""

    reward_version: RewardVersion
    num_workers: int | None = None

    def __call__(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        from metarl.envs.metaworld_pool import MetaWorldVectorEnv

        return MetaWorldVectorEnv(num_envs, reward_version=self.reward_version, num_workers=self.num_workers)


def task_distribution(name: str, *, seed: int = 0, reward_version: RewardVersion = "v2") -> TaskDistribution:
    """A benchmark as a distribution of tasks.

    Args:
        name: ``"ml1/<task>"``, ``"ml10"``, ``"ml25"`` or ``"ml45"``.
        seed: upstream's seed of the goals.
        reward_version: upstream's reward functions; its default is v2.

    Raises:
        ConfigError: for an unknown name or reward version.
    """
    return _distribution(TaskSet(name, seed), name, reward_version)


def custom(
    train_names: Sequence[str],
    test_names: Sequence[str],
    *,
    id: str = "custom",
    seed: int = 0,
    reward_version: RewardVersion = "v2",
) -> TaskDistribution:
    """A train/test split of your own over upstream's tasks; upstream calls it ``CustomML``.

    Raises:
        ConfigError: for an unknown task name, an empty split, or a task in both.
    """
    return _distribution(TaskSet("custom", seed, tuple(train_names), tuple(test_names)), id, reward_version)


def make_vec(
    name: str,
    num_envs: int,
    *,
    seed: int = 0,
    split: Literal["train", "test"] = "train",
    reward_version: RewardVersion = "v2",
    num_workers: int | None = None,
) -> MetaWorldVectorEnv:
    """The pool alone, as a ``gymnasium.vector.VectorEnv`` that draws its own tasks.

    Every reset of an instance draws it a new task of the split, unless ``reset(options={"tasks": [...]})`` says which.
    Autoreset is disabled: reset ended instances with ``reset(options={"reset_mask": terminated | truncated})``.

    Args:
        name: a benchmark.
        num_envs: number of instances.
        seed: upstream's seed of the goals.
        split: which tasks to draw from.
        reward_version: upstream's reward functions.
        num_workers: worker processes; default: one for each core that this process may use.

    Raises:
        ConfigError: for an unknown name, split or reward version.
    """
    from metarl.envs.metaworld_pool import MetaWorldVectorEnv

    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    return MetaWorldVectorEnv(
        num_envs,
        reward_version=_checked(reward_version),
        num_workers=num_workers,
        sample=_SplitSampler(TaskSet(name, seed), split),
        seed=seed,
    )


def by_name(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """Tasks by the name of upstream's task, both in the order in which they come."""
    named: dict[str, list[Task]] = {}
    for task in tasks:
        named.setdefault(task["env_name"], []).append(task)
    return named


def with_workers(distribution: TaskDistribution, num_workers: int | None) -> TaskDistribution:
    """The same tasks, stepped by so many worker processes; default: one for each core that this process may use.

    Raises:
        ConfigError: if they are not Meta-World's.
    """
    if not isinstance(distribution.make_vector, _PoolMaker):
        raise ConfigError(f"{distribution.id} is no task set of Meta-World, which num_workers is for.")
    return replace(distribution, make_vector=replace(distribution.make_vector, num_workers=num_workers))


def upstream_task(task: Task) -> Any:
    """``task`` as the ``metaworld.Task`` that upstream's ``env.set_task`` takes."""
    metaworld = _metaworld()
    data = {
        "rand_vec": np.asarray(task["rand_vec"]),
        "env_cls": metaworld.ALL_V3_ENVIRONMENTS[task["env_name"]],
        "partially_observable": True,
    }
    return metaworld.Task(task["env_name"], pickle.dumps(data))


def upstream_env(task: Task, *, reward_version: RewardVersion = "v2", **settings: Any) -> Any:
    """Upstream's own environment posing ``task``, e.g. to render it: ``render_mode="rgb_array"``."""
    metaworld = _metaworld()
    if task["env_name"] not in TASK_NAMES:
        raise unknown_name("Meta-World task", task["env_name"], TASK_NAMES)
    env = metaworld.ALL_V3_ENVIRONMENTS[task["env_name"]](reward_function_version=_checked(reward_version), **settings)
    env.set_task(upstream_task(task))
    return env


def cache_folder() -> Path:
    """``$METARL_CACHE``, or ``~/.cache/metarl``."""
    return Path(os.environ.get("METARL_CACHE") or Path.home() / ".cache" / "metarl")


def _metaworld() -> Any:
    """Upstream, imported when it is needed: that takes 0.4 s."""
    return importlib.import_module("metaworld")


def _checked(reward_version: str) -> RewardVersion:
    if reward_version not in _REWARD_VERSIONS:
        raise unknown_name("reward version", reward_version, _REWARD_VERSIONS)
    return "v1" if reward_version == "v1" else "v2"


def _distribution(task_set: TaskSet, id: str, reward_version: str) -> TaskDistribution:
    return TaskDistribution(
        id=id,
        sample=_SplitSampler(task_set, "train"),
        sample_test=_SplitSampler(task_set, "test"),
        meta_batch=_EvenSampler(task_set),
        make_vector=_PoolMaker(_checked(reward_version)),
        horizon=HORIZON,
        description=_describe(task_set, reward_version),
    )


def _describe(task_set: TaskSet, reward_version: str) -> str:
    what = {
        "ml10": "10 train and 5 test tasks",
        "ml25": "25 train and 5 test tasks",
        "ml45": "45 train and 5 test tasks",
        "custom": f"{len(task_set.train_names)} train and {len(task_set.test_names)} test tasks",
    }.get(task_set.name, "one task, other goals in test")
    return f"Meta-World {task_set.name.split('/')[0].upper()}: {what}, 50 goals each, reward {reward_version}"


def _draw(task_set: TaskSet) -> GoalTable:
    """Upstream's task lists, each task's pickled settings reduced to the vector that defines it."""
    metaworld = _metaworld()
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
    try:
        content = json.loads(path.read_text())
        if content["format"] != _TABLE_FORMAT:
            return None
        splits = [
            tuple({"env_name": str(name), "rand_vec": np.array(vector, np.float64)} for name, vector in content[split])
            for split in ("train", "test")
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return GoalTable(*splits)


def _write_table(path: Path, table: GoalTable) -> None:
    """Write atomically: a reader sees a whole file or none. Python's floats survive JSON exactly."""
    content = {"format": _TABLE_FORMAT} | {
        split: [[task["env_name"], task["rand_vec"].tolist()] for task in getattr(table, split)]
        for split in ("train", "test")
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(content, file)
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(
            f"the Meta-World goals could not be kept in {path.parent} ({error}), so they will be drawn again next "
            "time; METARL_CACHE names another folder.",
            stacklevel=2,
        )


DISTRIBUTIONS: tuple[TaskDistribution, ...] = tuple(task_distribution(name) for name in BENCHMARKS)
