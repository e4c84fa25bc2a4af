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

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium as gym
from gymnasium.vector import VectorEnv

from metarl.envs.metaworld.task_sets import BENCHMARKS, EvenSampler, SplitSampler, TaskSet
from metarl.envs.metaworld.upstream import HORIZON, RewardVersion, checked_reward_version
from metarl.errors import ConfigError, unknown_name
from metarl.tasks.distribution import BatchSampler, Sampler, TaskDistribution
from metarl.types import Task

if TYPE_CHECKING:
    from metarl.envs.metaworld.rendering import RenderedVectorEnv
    from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv


@dataclass(frozen=True, kw_only=True)
class MetaWorldTasks(TaskDistribution):
    """A task set of Meta-World, posed by the pool.

    Attributes:
        task_set: which goals.
        reward_version: upstream's reward functions; its default is v2.
        pool_workers: worker processes that step the simulations, and at least one for each part of a batch; default:
            one for each core that this process may use, shared with the other ranks of its machine.
    """

    num_parts: ClassVar[int] = 2

    task_set: TaskSet
    reward_version: RewardVersion = "v2"
    pool_workers: int | None = None

    # What follows from these; equal task sets are equal distributions.
    sample: Sampler = field(init=False, compare=False)
    sample_test: Sampler | None = field(init=False, compare=False)
    meta_batch: BatchSampler | None = field(init=False, compare=False)
    make_vector: Callable[[int], VectorEnv[Any, Any, Any]] | None = field(init=False, compare=False)
    make_render_env: Callable[[Task], gym.Env[Any, Any]] | None = field(init=False, compare=False)
    horizon: int | None = HORIZON
    description: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        checked_reward_version(self.reward_version)
        follows = {
            "sample": SplitSampler(self.task_set, "train"),
            "sample_test": SplitSampler(self.task_set, "test"),
            "meta_batch": EvenSampler(self.task_set),
            "make_vector": self._make_pool,
            "make_render_env": self._make_render_env,
            "description": _describe(self.task_set, self.reward_version),
        }
        for name, value in follows.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def make_vector_envs(self, sizes: Sequence[int]) -> list[VectorEnv[Any, Any, Any]]:
        """Pools that share the workers."""
        from metarl.envs.metaworld.vector_env import default_workers

        workers = self.pool_workers or default_workers()
        bounds = [workers * index // len(sizes) for index in range(len(sizes) + 1)]
        shares = [max(1, end - start) for start, end in itertools.pairwise(bounds)]
        return [
            dataclasses.replace(self, pool_workers=share).make_vector_env(size)
            for share, size in zip(shares, sizes, strict=True)
        ]

    def _make_pool(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv

        return MetaWorldVectorEnv(num_envs, reward_version=self.reward_version, num_workers=self.pool_workers)

    def _make_render_env(self, task: Task) -> gym.Env[Any, Any]:
        from metarl.envs.metaworld.rendering import render_env

        return render_env(task, reward_version=self.reward_version)


def meta_world(distribution: TaskDistribution) -> MetaWorldTasks:
    """``distribution``, known to be a task set of Meta-World.

    Raises:
        ConfigError: if it is none.
    """
    if not isinstance(distribution, MetaWorldTasks):
        raise ConfigError(
            f"{distribution.id} is no task set of Meta-World. Those are ml1/<task>, ml10, ml25, ml45, and what "
            "metarl.envs.metaworld.custom and task_distribution return."
        )
    return distribution


def task_distribution(name: str, *, seed: int = 0, reward_version: RewardVersion = "v2") -> MetaWorldTasks:
    """A benchmark as a distribution of tasks.

    Args:
        name: ``"ml1/<task>"``, ``"ml10"``, ``"ml25"`` or ``"ml45"``.
        seed: upstream's seed of the goals.
        reward_version: upstream's reward functions; its default is v2.

    Raises:
        ConfigError: for an unknown name or reward version.
    """
    return MetaWorldTasks(id=name, task_set=TaskSet(name, seed), reward_version=reward_version)


def custom(
    train_names: Sequence[str],
    test_names: Sequence[str],
    *,
    id: str = "custom",
    seed: int = 0,
    reward_version: RewardVersion = "v2",
) -> MetaWorldTasks:
    """A train/test split of your own over upstream's tasks; upstream calls it ``CustomML``.

    Raises:
        ConfigError: for an unknown task name, an empty split, or a task in both.
    """
    task_set = TaskSet("custom", seed, tuple(train_names), tuple(test_names))
    return MetaWorldTasks(id=id, task_set=task_set, reward_version=reward_version)


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
    from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv

    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    if render_mode not in (None, "rgb_array"):
        raise unknown_name("render mode", render_mode, ("rgb_array",))
    pool = MetaWorldVectorEnv(
        num_envs,
        reward_version=checked_reward_version(reward_version),
        num_workers=num_workers,
        sample=SplitSampler(TaskSet(name, seed), split),
        seed=seed,
    )
    if render_mode is None:
        return pool
    from metarl.envs.metaworld.rendering import RenderedVectorEnv

    return RenderedVectorEnv(pool, checked_reward_version(reward_version))


def _describe(task_set: TaskSet, reward_version: str) -> str:
    what = {
        "ml10": "10 train and 5 test tasks",
        "ml25": "25 train and 5 test tasks",
        "ml45": "45 train and 5 test tasks",
        "custom": f"{len(task_set.train_names)} train and {len(task_set.test_names)} test tasks",
    }.get(task_set.name, "one task, other goals in test")
    return f"Meta-World {task_set.name.split('/')[0].upper()}: {what}, 50 goals each, reward {reward_version}"


DISTRIBUTIONS: tuple[MetaWorldTasks, ...] = tuple(task_distribution(name) for name in BENCHMARKS)
