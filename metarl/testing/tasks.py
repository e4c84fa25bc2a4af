"""A check for plugged-in task distributions: every problem found, in one sentence each."""

from __future__ import annotations

import dataclasses
import os
import reprlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from metarl.digest import task_digest
from metarl.errors import ConfigError, MetarlError, TaskCheckError
from metarl.rollouts.actions import env_actions, random_action
from metarl.seeding import derive, numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.testing.environments import check_environment, check_unchanged
from metarl.types import Task
from metarl.vector.contract import contract_problems
from metarl.vector.instances import digest_or_none, own_copy
from metarl.vector.spaces import flat_spaces, require_env

Array = NDArray[Any]
Record = list[Array]
"""Observations, rewards and ends of an episode, in order."""

_DIGESTS = """
import sys, cloudpickle
from metarl.digest import task_digest
print(*(task_digest(task).hex() for task in cloudpickle.load(sys.stdin.buffer)))
"""

_MAX_STEPS = 100
"""Longest piece of an episode that is played."""

_NUM_SPLIT_SAMPLES = 300

_NUM_ATTEMPTS = 40
"""Episodes after which tasks that never differed count as ignored; sparse rewards need many."""


def check_tasks(
    distribution: TaskDistribution,
    *,
    num_tasks: int = 8,
    seed: int = 0,
    on_reset: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Check that ``distribution`` keeps what agents and figures rely on.

    Checked: flat spaces that are the same for all tasks; a time limit; samplers that depend on their generator
    alone; train and test tasks apart, also in another process; environments that obey their task, also when it
    changes, and leave it as it was given; actions that lie in their space; no wrappers that keep statistics; episodes
    that are a function of task, seed and actions; observations and rewards that are finite and of the declared shape.

    Args:
        distribution: what to check.
        num_tasks: tasks to play, half of them test tasks; 2 or more.
        seed: seed for the sampled tasks, the actions and the episodes.
        on_reset: called whenever environments have been reset, with how often they have been so far.

    Returns:
        How many different tasks 300 draws of each split held, by ``"train"`` and ``"test"``.

    Raises:
        TaskCheckError: listing every problem found.
        ConfigError: for fewer than 2 tasks.
    """
    if num_tasks < 2:
        raise ConfigError(f"check_tasks: num_tasks must be 2 or more, got {num_tasks!r}.")
    # The worker processes are not what is checked, and an exception here has a plain traceback.
    check = _Check(dataclasses.replace(distribution, num_workers=0), seed, on_reset)
    check.run(num_tasks)
    if check.problems:
        raise TaskCheckError(distribution.id, check.problems)
    return check.num_distinct


class _Check:
    """One run of :func:`check_tasks`; ``problems`` grows as it goes, ``num_distinct`` is what it returns."""

    def __init__(self, distribution: TaskDistribution, seed: int, on_reset: Callable[[int], None] | None) -> None:
        self.problems: list[str] = []
        self.num_distinct: dict[str, int] = {}
        self._distribution = distribution
        self._seed = seed
        self._on_reset = on_reset
        self._num_resets = 0
        self._not_finite: set[tuple[str, bool]] = set()
        self._max_steps = min(distribution.horizon or _MAX_STEPS, _MAX_STEPS)

    def run(self, num_tasks: int) -> None:
        tasks = self._samplers(num_tasks)
        if len(tasks) < 2 or not self._spaces(tasks):
            return
        try:
            self._episodes(tasks)
        except Exception as error:
            self._add(f"playing an episode failed: {_one_line(error)}")

    def _add(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _count_reset(self) -> None:
        self._num_resets += 1
        if self._on_reset is not None:
            self._on_reset(self._num_resets)

    def _samplers(self, num_tasks: int) -> list[Task]:
        """Check the samplers and the split; returns tasks of both splits."""
        distribution = self._distribution
        tasks: list[Task] = []
        digests = {}
        for split, num in ((distribution.train, num_tasks - num_tasks // 2), (distribution.test, num_tasks // 2)):
            try:
                sampled = split.sample(_NUM_SPLIT_SAMPLES, numpy_stream(self._seed, "check", split.name))
                again = split.sample(num, numpy_stream(self._seed, "check", split.name))
                digests[split.name] = {task_digest(task) for task in sampled}
                self.num_distinct[split.name] = len(digests[split.name])
                for task, repeated in zip(sampled, again, strict=False):
                    if task_digest(task) != task_digest(repeated):
                        self._add(
                            f"the {split.name} sampler depends on more than its generator: from one state it gave "
                            f"{reprlib.repr(task)} and then {reprlib.repr(repeated)}; draw from the given rng only."
                        )
                        break
                self._elsewhere(split.name, again)
            except Exception as error:
                self._add(f"sampling {split.name} tasks raised {_one_line(error)}")
                continue
            tasks += sampled[:num]
        if not distribution.shared_split and len(digests) == 2:
            shared = digests["train"] & digests["test"]
            if shared:
                self._add(
                    f"{len(shared)} of {len(digests['test'])} distinct test tasks are training tasks too; expected "
                    "none: keep the samplers apart, leave sample_test out, or set shared_split=True."
                )
        return tasks

    def _elsewhere(self, split: str, tasks: list[Task]) -> None:
        """Digests must be the same in another process, or training and evaluation split the tasks differently."""
        try:
            payload = cloudpickle.dumps(tasks)
        except Exception:
            return  # Such tasks cannot travel to a worker either, which says so.
        found = subprocess.run(
            [sys.executable, "-c", _DIGESTS],
            input=payload,
            capture_output=True,
            # Another order of sets than in this process, whatever its own is.
            env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            check=False,
        )
        if found.returncode:
            last = found.stderr.decode(errors="replace").strip().splitlines()[-1:]
            self._add(f"another process cannot read the {split} tasks, so num_workers must stay 0: {''.join(last)}")
            return
        for task, digest in zip(tasks, found.stdout.decode().split(), strict=True):
            if task_digest(task).hex() != digest:
                self._add(
                    f"the digest of the {split} task {reprlib.repr(task)} differs in another process, and with it the "
                    "split: describe tasks by numbers, text, arrays, or dicts, lists, sets and dataclasses of these."
                )
                return

    def _spaces(self, tasks: list[Task]) -> bool:
        """Check spaces and the time limit; returns whether episodes can be played."""
        distribution = self._distribution
        if distribution.make_env is None:
            return self._vector_spaces()
        first: tuple[gym.spaces.Box, gym.spaces.Space[Any]] | None = None
        for task in tasks:
            try:
                handed = own_copy(task)
                env = distribution.make_env(handed)
                require_env(env)
                try:
                    check_unchanged("make_env", task, handed, self._add)
                    spaces = flat_spaces(env)
                    check_environment(
                        env, task, task_on_reset=distribution.task_on_reset, seed=self._seed, add=self._add
                    )
                    self._count_reset()
                    limit = env.spec.max_episode_steps if env.spec is not None else None
                finally:
                    env.close()
            except Exception as error:
                self._add(f"make_env and reset with task {reprlib.repr(task)} raised {_one_line(error)}")
                return False
            if first is None:
                first = spaces
                if distribution.horizon is None and limit is None:
                    self._add(
                        "there is no time limit: set TaskDistribution.horizon, or give the environment a "
                        "max_episode_steps."
                    )
            for name, space, expected in zip(("observation", "action"), spaces, first, strict=True):
                # Bounds of observations are never used, those of actions are.
                if space.shape != expected.shape or (name == "action" and space != expected):
                    self._add(
                        f"the {name} space differs between tasks: {space} for task {reprlib.repr(task)}, but "
                        f"{expected} for task {reprlib.repr(tasks[0])}; all tasks must share one."
                    )
                    return False
        return True

    def _vector_spaces(self) -> bool:
        if self._distribution.horizon is None:
            self._add("there is no time limit: set TaskDistribution.horizon.")
        num = len(self.problems)
        try:
            assert self._distribution.make_vector is not None
            env = self._distribution.make_vector(1)
        except Exception as error:
            self._add(f"make_vector(1) raised {_one_line(error)}")
            return False
        self.problems += contract_problems(env)
        env.close()
        return len(self.problems) == num

    def _episodes(self, tasks: list[Task]) -> None:
        """Play the tasks in fresh environments and in one that is switched, and compare."""
        handed = self._watch_tasks()
        fresh = [self._play_fresh(task) for task in tasks]
        if not all(_same(fresh[index], self._play_fresh(tasks[index])) for index in (0, -1)):
            self._add(
                "the same task, seed and actions gave two different episodes; expected the same: draw every random "
                "number from the generator that reset(seed=...) seeds."
            )
            return
        env = self._make(1)
        try:
            for previous, task, expected in zip([tasks[-1], *tasks], tasks, fresh, strict=False):
                if not _same(self._play(env, [task]), expected):
                    self._add(
                        f"an instance switched to task {reprlib.repr(task)} after {reprlib.repr(previous)} plays "
                        "differently from a fresh one with the same task and seed: reset must set everything that "
                        "the task decides, and forget what came before."
                    )
                    break
            self._repeated(env, tasks[-1])
            distinct = len({task_digest(task) for task in tasks})
            if distinct > 1 and self._ignored(env, tasks, fresh):
                self._add(
                    f"the environment ignores its task: {distinct} different tasks gave identical observations and "
                    f"rewards in {_NUM_ATTEMPTS} episodes with the same seeds and actions."
                )
            elif distinct > 1 and self._distribution.make_vector is not None:
                self._batch(tasks)
        finally:
            env.close()
        for task, before, copied in handed:
            if digest_or_none(copied) != before is not None:
                self._add(
                    f"an episode changes the task that its environment was built from: {reprlib.repr(task)} became "
                    f"{reprlib.repr(copied)}; copy in the constructor what steps change. Until then the environment is "
                    "built anew for each of its episodes."
                )
                break

    def _watch_tasks(self) -> list[tuple[Task, bytes | None, Task]]:
        """From now on, what environments are built from: a copy, its digest after the building, and itself."""
        handed: list[tuple[Task, bytes | None, Task]] = []
        make_env = self._distribution.make_env
        if make_env is None:
            return handed

        def watched(task: Task) -> gym.Env[Any, Any]:
            env = make_env(task)
            handed.append((own_copy(task), digest_or_none(task), task))
            return env

        self._distribution = dataclasses.replace(self._distribution, make_env=watched)
        return handed

    def _repeated(self, env: VectorEnv[Any, Any, Any], task: Task) -> None:
        """An episode must not leave anything behind for the next one of the same task."""
        first, second = self._play(env, [task], (0,)), self._play(env, [task], (0,))
        if not _same(first, second):
            self._add(
                f"the second of two episodes of the task {reprlib.repr(task)} with the same seed and actions differs "
                "from the first: reset must forget what came before, statistics of wrappers included."
            )

    def _ignored(self, env: VectorEnv[Any, Any, Any], tasks: list[Task], fresh: list[Record]) -> bool:
        if not all(_same(record, fresh[0]) for record in fresh):
            return False
        for episode in range(2, _NUM_ATTEMPTS):
            records = [self._play(env, [task], (episode,)) for task in tasks]
            if not all(_same(record, records[0]) for record in records):
                return False
        return True

    def _batch(self, tasks: list[Task]) -> None:
        """Instances of one batch must pose a task each, not all the first one."""
        env = self._make(len(tasks))
        try:
            for episode in range(_NUM_ATTEMPTS):
                mixed = self._play(env, tasks, (episode,))
                if not _same(mixed, self._play(env, [tasks[0]] * len(tasks), (episode,))):
                    return
        finally:
            env.close()
        self._add(
            f"a batch of {len(tasks)} tasks plays like a batch of its first task alone; expected one task per "
            'instance, as given by reset(options={"tasks": [...]}).'
        )

    def _make(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        return self._distribution.make_vector_env(num_envs)

    def _play_fresh(self, task: Task) -> Record:
        env = self._make(1)
        try:
            return self._play(env, [task])
        finally:
            env.close()

    def _play(self, env: VectorEnv[Any, Any, Any], tasks: list[Task], episodes: tuple[int, ...] = (0, 1)) -> Record:
        """Play until every instance has ended; even episodes act at random, odd ones hold one action."""
        record: Record = []
        for episode in episodes:
            rng = numpy_stream(self._seed, "actions", episode)
            handed = [own_copy(task) for task in tasks]
            obs, _ = env.reset(seed=derive(self._seed, "episode", episode), options={"tasks": handed})
            self._count_reset()
            self._finite("observation", obs, env)
            record.append(np.array(obs))
            running = np.ones(len(tasks), bool)
            space = env.single_action_space
            action = env_actions(space, random_action(space, rng))
            for _ in range(self._max_steps):
                # Held actions reach places, and so sparse rewards, that random walks do not.
                if episode % 2 == 0:
                    action = env_actions(space, random_action(space, rng))
                obs, rewards, terminated, truncated, _ = env.step(np.repeat(action[None], len(tasks), 0))
                self._finite("observation", obs, env, running)
                self._finite("reward", rewards, env, running)
                ends = np.stack([terminated, truncated])
                record += [np.array(obs)[running], np.array(rewards)[running], ends[:, running]]
                running &= ~(terminated | truncated)
                if not running.any():
                    break
            for task, copied in zip(tasks, handed, strict=True):
                check_unchanged("the vector environment", task, copied, self._add)
        return record

    def _finite(self, name: str, values: Array, env: VectorEnv[Any, Any, Any], running: Array | None = None) -> None:
        expected: tuple[int, ...] = (env.num_envs,)
        if name == "observation":
            expected += env.single_observation_space.shape or ()
            if values.dtype != np.float32:
                self._add(f"observations have dtype {values.dtype}, expected float32.")
        if values.shape != expected:
            raise ConfigError(f"{name}s have shape {values.shape}, expected {expected}.")
        chosen = values if running is None else values[running]
        with np.errstate(over="ignore"):
            finite = np.isfinite(chosen.astype(np.float32))
        if not finite.all():
            if (place := (name, running is None)) in self._not_finite:
                return
            self._not_finite.add(place)
            bad = chosen[~finite][0]
            beyond = " (float32 ends at 3.4e38)" if np.isfinite(bad) else ""
            verb = "reset" if running is None else "step"
            self._add(f"{verb} of an environment returned {bad} in its {name}; expected finite numbers only{beyond}.")


def _same(left: Record, right: Record) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(left, right, strict=True)
    )


def _one_line(error: Exception) -> str:
    """Metarl's own errors speak for themselves; others are named."""
    text = str(error).split("\n\n")[0]
    return text if isinstance(error, MetarlError) else f"{type(error).__name__}: {text}"
