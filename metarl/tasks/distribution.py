"""Distributions of tasks: how to sample a task, and how to make environments that pose it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from metarl.digest import task_digest
from metarl.errors import ConfigError, MetarlError, raised
from metarl.seeding import numpy_stream
from metarl.types import Spec, Task
from metarl.vector.contract import contract_problems
from metarl.vector.gym_env import GymVectorEnv, build_env
from metarl.vector.instances import ENVIRONMENT_ERRORS, close_env
from metarl.vector.spaces import flattened, is_measured, spec_of
from metarl.vector.watchdog import Call

Sampler = Callable[[np.random.Generator], Task]

BatchSampler = Callable[[int, np.random.Generator], list[Task]]
"""Draws that many training tasks at once."""

_TEST_SHARE = 5
"""One task in five belongs to the test split of a distribution with a single sampler."""

_MAX_REJECTIONS = 2000

_TOLD_BY = 4
"""Draws of each sampler by which a distribution is told from another of its name."""


@dataclass(frozen=True)
class TaskDistribution:
    """Tasks that share observation and action spaces, split into train and test.

    Give either ``make_env`` (one instance, any Gymnasium environment) or ``make_vector`` (many at once, faster).
    With ``sample`` alone, a digest of each task decides its split, one in five being a test task: the splits are
    disjoint whatever the sampler. With ``sample_test`` the two samplers are taken as they are.

    Tasks are never handed out themselves: every environment gets a copy of its own, to keep or to change.

    Attributes:
        id: name, e.g. ``"mine/pendulum"``.
        sample: draws one task from a NumPy generator, and depends on nothing else.
        make_env: builds one environment for a task.
        make_vector: builds ``num_envs`` instances that take ``reset(seed=[...], options={"tasks": [...]})``, a seed
            and a task for each instance.
        horizon: most steps in an episode; default: the ``max_episode_steps`` of ``make_env``'s environment.
        sample_test: draws one test task.
        meta_batch: draws the training tasks of one meta-update, e.g. as many of each kind; default: independently by
            ``sample``, whose tasks they must be. Raises ConfigError for a number that it cannot draw.
        shared_split: train and test tasks are the same on purpose (e.g. the two directions of a cheetah).
        task_on_reset: the environment takes its task through ``reset(options={"task": task})``, so it need not be
            rebuilt; ``make_env`` is then called once per instance.
        num_workers: worker processes that step ``make_env``'s environments; 0 steps them in this process.
        make_render_env: builds one environment for a task with ``render_mode="rgb_array"``, for ``metarl render``;
            its steps must be those of ``make_env`` or ``make_vector``.
        description: one line for ``metarl list``.
        num_parts: parts of a batch that are simulated in turn while the agent acts in the others; more than 1 where
            environments step in other processes and have ``step_async`` and ``step_wait``.
    """

    num_parts: ClassVar[int] = 1

    id: str
    sample: Sampler
    make_env: Callable[[Task], gym.Env[Any, Any]] | None = None
    make_vector: Callable[[int], VectorEnv[Any, Any, Any]] | None = None
    horizon: int | None = None
    sample_test: Sampler | None = None
    meta_batch: BatchSampler | None = None
    shared_split: bool = False
    task_on_reset: bool = False
    num_workers: int = 0
    make_render_env: Callable[[Task], gym.Env[Any, Any]] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            raise ConfigError("TaskDistribution.id must be a non-empty name.")
        if (self.make_env is None) == (self.make_vector is None):
            raise ConfigError(f"{self.id}: give exactly one of make_env and make_vector.")
        if self.horizon is not None and (not isinstance(self.horizon, int) or self.horizon < 1):
            raise ConfigError(f"{self.id}: TaskDistribution.horizon must be an integer above 0, got {self.horizon!r}.")
        if self.num_workers < 0:
            raise ConfigError(f"{self.id}: TaskDistribution.num_workers must be 0 or more, got {self.num_workers!r}.")
        if self.shared_split and self.sample_test is not None:
            raise ConfigError(f"{self.id}: shared_split and sample_test contradict each other; give one.")

    @property
    def train(self) -> Split:
        """The training tasks."""
        return Split(self, "train")

    @property
    def test(self) -> Split:
        """The held-out tasks."""
        return Split(self, "test")

    @cached_property
    def draws(self) -> str | None:
        """A digest of the first tasks that each sampler draws from a stream that never changes.

        Two distributions that differ in it draw other tasks; None if no digest can be made of them.
        """
        samplers = ("sample",) if self.sample_test is None else ("sample", "sample_test")
        try:
            rng = numpy_stream(0, "draws")
            return task_digest([self.call(name, rng) for name in samplers for _ in range(_TOLD_BY)]).hex()[:16]
        except ConfigError:  # Whoever needs such tasks is told.
            return None

    def sample_meta_batch(self, num_tasks: int, rng: np.random.Generator) -> list[Task]:
        """Draw the training tasks of one meta-update; a function of ``rng``'s state alone.

        Raises:
            ConfigError: for a number of tasks that cannot be drawn.
        """
        if self.meta_batch is None:
            return self.train.sample(num_tasks, rng)
        drawn: list[Task] = self.call("meta_batch", num_tasks, rng)
        if len(drawn) != num_tasks:
            raise ConfigError(f"{self.id}: meta_batch drew {len(drawn)} tasks, expected {num_tasks}.")
        return drawn

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Spaces of observations and actions, as ``make_env``'s environment has them or one of ``make_vector``'s."""
        return self._instance[0]

    @cached_property
    def _instance(self) -> tuple[tuple[gym.Space[Any], gym.Space[Any]], int | None]:
        """Own spaces and time limit of one instance."""
        if self.make_env is None:
            vector = self.make_vector_env(1)
            self.close_vector_env(vector)
            return (vector.single_observation_space, vector.single_action_space), None
        task = self.call("sample", np.random.default_rng(0))
        env = build_env(self.make_env, task)
        try:
            limit = env.spec.max_episode_steps if env.spec is not None else None
            return (env.observation_space, env.action_space), limit
        finally:
            close_env(env, Call("close", 0, task))

    @cached_property
    def spec(self) -> Spec:
        """Sizes of observations and actions and the horizon, read off one instance.

        Raises:
            ConfigError: if there is no time limit, or a space that metarl cannot flatten.
        """
        spaces, limit = self._instance
        flat = flattened(*spaces)
        horizon = self.horizon or limit
        if horizon is None:
            raise ConfigError(
                f"{self.id} has no time limit: set TaskDistribution.horizon, or wrap the environment in "
                "gymnasium.wrappers.TimeLimit through gymnasium.make(..., max_episode_steps=N)."
            )
        return dataclasses.replace(spec_of(*flat, horizon), measured=is_measured(spaces[0]))

    @property
    def action_bounds(self) -> list[list[float | None]] | None:
        """Lower and upper bounds of flat actions, onto which an agent's [-1, 1] is mapped, None where there is none.

        Of a choice alone there are no bounds: None.
        """
        space = flattened(*self.spaces)[1]
        if isinstance(space, gym.spaces.Discrete):
            return None
        return [
            [bound if math.isfinite(bound) else None for bound in side.tolist()] for side in (space.low, space.high)
        ]

    def make_vector_env(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """``num_envs`` instances with flat spaces that take ``reset(options={"tasks": [...], "reset_mask": ...})``.

        Autoreset is disabled, and what an ended instance returns before its next reset is unspecified.

        Raises:
            ConfigError: for a number below 1, or a ``make_vector`` whose environments are not flat, reset themselves,
                count actions from elsewhere than 0, or are of another number.
        """
        if num_envs < 1:
            raise ConfigError(f"{self.id}: num_envs must be 1 or more, got {num_envs!r}.")
        if self.make_vector is not None:
            vector: VectorEnv[Any, Any, Any] = self.call("make_vector", num_envs)
            problems = contract_problems(vector)
            if vector.num_envs != num_envs:
                problems.append(f"make_vector({num_envs}) built {vector.num_envs} instances.")
            if problems:
                self.close_vector_env(vector)
                raise ConfigError(f"{self.id}: {' '.join(problems)}")
            return vector
        assert self.make_env is not None
        return GymVectorEnv(
            self.make_env,
            num_envs,
            first_task=self.call("sample", np.random.default_rng(0)),
            task_on_reset=self.task_on_reset,
            num_workers=min(self.num_workers, num_envs),
        )

    def make_vector_envs(self, sizes: Sequence[int]) -> list[VectorEnv[Any, Any, Any]]:
        """:meth:`make_vector_env` for each part of a batch, which may share out what they take of the machine."""
        return [self.make_vector_env(size) for size in sizes]

    def close_vector_env(self, env: VectorEnv[Any, Any, Any]) -> None:
        """Close what :meth:`make_vector_env` built; one of the user's own that raises is warned of: nothing is lost.

        Raises:
            WorkerError: if a call of :class:`GymVectorEnv` hangs.
        """
        try:
            env.close()
        except MetarlError:
            raise
        except ENVIRONMENT_ERRORS as error:
            env.closed = True  # Or it would be closed again, in vain, as garbage.
            warnings.warn(
                f"{self.id}: the vector environment raised in close: {type(error).__name__}: {error}. It counts as "
                "closed.",
                RuntimeWarning,
                stacklevel=3,
            )

    def call(self, part: str, *arguments: Any) -> Any:
        """What a function of this distribution, by the name of its attribute, returns.

        Raises:
            ConfigError: if it raises anything but an error of metarl's, naming it, with its traceback.
        """
        try:
            return getattr(self, part)(*arguments)
        except MetarlError:
            raise
        except ENVIRONMENT_ERRORS as error:
            raise ConfigError(raised(f"{self.id}: {part} raised", error)) from error


@dataclass(frozen=True)
class Split:
    """The train or the test tasks of a distribution."""

    distribution: TaskDistribution
    name: str

    def sample(self, num_tasks: int, rng: np.random.Generator) -> list[Task]:
        """Draw ``num_tasks`` independent tasks of this split; a function of ``rng``'s state alone.

        Raises:
            ConfigError: if the sampler yields no task of this split (too few distinct tasks).
        """
        if num_tasks < 1:
            raise ConfigError(f"num_tasks must be 1 or more, got {num_tasks!r}.")
        return [self._sample_one(rng) for _ in range(num_tasks)]

    def _sample_one(self, rng: np.random.Generator) -> Task:
        distribution = self.distribution
        if distribution.shared_split:
            return distribution.call("sample", rng)
        if distribution.sample_test is not None:
            return distribution.call("sample_test" if self.name == "test" else "sample", rng)
        for _ in range(_MAX_REJECTIONS):
            task = distribution.call("sample", rng)
            if in_test_split(task) == (self.name == "test"):
                return task
        raise ConfigError(
            f"{distribution.id}: {_MAX_REJECTIONS} samples held no {self.name} task, so the sampler yields too few "
            "distinct tasks to split. Give sample_test, or shared_split=True if train and test are the same tasks."
        )


def in_test_split(task: Task) -> bool:
    """Whether a single-sampler distribution holds ``task`` out for testing."""
    return int.from_bytes(task_digest(task)[:8], "big") % _TEST_SHARE == 0
