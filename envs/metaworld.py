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

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from metarl.envs.metaworld_goals import BENCHMARKS, TASK_NAMES, EvenSampler, GoalTable, SplitSampler, TaskSet, upstream
from metarl.errors import ConfigError, unknown_name
from metarl.opengl import choose_backend
from metarl.tasks import TaskDistribution
from metarl.types import Task

if TYPE_CHECKING:
    from metarl.envs.metaworld_official import OfficialAgent
    from metarl.envs.metaworld_pool import MetaWorldVectorEnv
    from metarl.envs.metaworld_render import RenderedVectorEnv

__all__ = [
    "BENCHMARKS",
    "DISTRIBUTIONS",
    "HORIZON",
    "TASK_NAMES",
    "GoalTable",
    "OfficialAgent",
    "RewardVersion",
    "TaskSet",
    "custom",
    "make_vec",
    "reward_version_of",
    "task_distribution",
    "task_set_of",
    "upstream_env",
    "upstream_task",
    "with_workers",
]

RewardVersion = Literal["v1", "v2"]

HORIZON = 500
"""Steps in an episode."""

_REWARD_VERSIONS = ("v1", "v2")


@dataclass(frozen=True)
class _PoolMaker:
    """Builds the fast pool; metaworld is imported only in the pool's workers."""

    reward_version: RewardVersion
    num_workers: int | None = None

    def __call__(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        from metarl.envs.metaworld_pool import MetaWorldVectorEnv

        return MetaWorldVectorEnv(num_envs, reward_version=self.reward_version, num_workers=self.num_workers)


@dataclass(frozen=True)
class _RenderEnvMaker:
    """Builds what ``metarl render`` looks at."""

    reward_version: RewardVersion

    def __call__(self, task: Task) -> gym.Env[Any, Any]:
        from metarl.envs.metaworld_render import render_env

        return render_env(task, reward_version=self.reward_version)


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
    render_mode: Literal["rgb_array"] | None = None,
) -> MetaWorldVectorEnv | RenderedVectorEnv:
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
        render_mode: ``"rgb_array"`` gives ``render()``, frames of all instances, and ``render_instance(index)``.

    Raises:
        ConfigError: for an unknown name, split, reward version or render mode, or if nothing here can render.
    """
    from metarl.envs.metaworld_pool import MetaWorldVectorEnv

    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    if render_mode not in (None, "rgb_array"):
        raise unknown_name("render mode", render_mode, ("rgb_array",))
    pool = MetaWorldVectorEnv(
        num_envs,
        reward_version=_checked(reward_version),
        num_workers=num_workers,
        sample=SplitSampler(TaskSet(name, seed), split),
        seed=seed,
    )
    if render_mode is None:
        return pool
    from metarl.envs.metaworld_render import RenderedVectorEnv

    return RenderedVectorEnv(pool, _checked(reward_version))


def task_set_of(distribution: TaskDistribution) -> TaskSet:
    """The task set behind a distribution of this module.

    Raises:
        ConfigError: if it is no task set of Meta-World.
    """
    if not isinstance(distribution.sample, SplitSampler):
        raise ConfigError(
            f"{distribution.id} is no task set of Meta-World. Those are ml1/<task>, ml10, ml25, ml45, and what "
            "metarl.envs.metaworld.custom and task_distribution return."
        )
    return distribution.sample.task_set


def reward_version_of(distribution: TaskDistribution) -> RewardVersion:
    """The version of upstream's reward functions behind a distribution of this module.

    Raises:
        ConfigError: if it is no task set of Meta-World.
    """
    return _pool_maker(distribution).reward_version


def with_workers(distribution: TaskDistribution, num_workers: int | None) -> TaskDistribution:
    """The same tasks, stepped by so many worker processes; default: one for each core that this process may use.

    Raises:
        ConfigError: if they are not Meta-World's.
    """
    return replace(distribution, make_vector=replace(_pool_maker(distribution), num_workers=num_workers))


def upstream_task(task: Task) -> Any:
    """``task`` as the ``metaworld.Task`` that upstream's ``env.set_task`` takes."""
    metaworld = upstream()
    data = {
        "rand_vec": np.asarray(task["rand_vec"]),
        "env_cls": metaworld.ALL_V3_ENVIRONMENTS[task["env_name"]],
        "partially_observable": True,
    }
    return metaworld.Task(task["env_name"], pickle.dumps(data))


def upstream_env(task: Task, *, reward_version: RewardVersion = "v2", **settings: Any) -> Any:
    """Upstream's own environment posing ``task``, e.g. to render it: ``render_mode="rgb_array"``.

    Raises:
        ConfigError: for an unknown task or reward version, or if there is no library to render with.
    """
    if settings.get("render_mode") in ("rgb_array", "depth_array"):
        choose_backend()
    metaworld = upstream()
    if task["env_name"] not in TASK_NAMES:
        raise unknown_name("Meta-World task", task["env_name"], TASK_NAMES)
    env = metaworld.ALL_V3_ENVIRONMENTS[task["env_name"]](reward_function_version=_checked(reward_version), **settings)
    env.set_task(upstream_task(task))
    return env


def __getattr__(name: str) -> Any:
    """``OfficialAgent``, imported when it is asked for: it needs torch, and simulations do not."""
    if name != "OfficialAgent":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from metarl.envs.metaworld_official import OfficialAgent

    return OfficialAgent


def _pool_maker(distribution: TaskDistribution) -> _PoolMaker:
    if not isinstance(distribution.make_vector, _PoolMaker):
        raise ConfigError(f"{distribution.id} is no task set of Meta-World, as metarl.envs.metaworld makes them.")
    return distribution.make_vector


def _checked(reward_version: str) -> RewardVersion:
    if reward_version not in _REWARD_VERSIONS:
        raise unknown_name("reward version", reward_version, _REWARD_VERSIONS)
    return "v1" if reward_version == "v1" else "v2"


def _distribution(task_set: TaskSet, id: str, reward_version: str) -> TaskDistribution:
    return TaskDistribution(
        id=id,
        sample=SplitSampler(task_set, "train"),
        sample_test=SplitSampler(task_set, "test"),
        meta_batch=EvenSampler(task_set),
        make_vector=_PoolMaker(_checked(reward_version)),
        make_render_env=_RenderEnvMaker(_checked(reward_version)),
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


DISTRIBUTIONS: tuple[TaskDistribution, ...] = tuple(task_distribution(name) for name in BENCHMARKS)
