"""Every fault that check_tasks knows is caught by its own message, and good distributions pass."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import metarl.envs  # noqa: F401 - registers the families
from metarl.errors import ConfigError, TaskCheckError
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import registered
from metarl.testing import check_tasks
from metarl.vector.array_env import ArrayVectorEnv


class Line(gym.Env[Any, Any]):
    """Walk along a line to a hidden goal; each fault is one argument."""

    num_resets = 0

    def __init__(self, task: dict[str, float], fault: str = "") -> None:
        self.goal, self.fault = task["goal"], fault
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        num_actions = 2
        if fault == "observation space":
            self.observation_space = gym.spaces.Box(-1, 1, (1 + int(self.goal > 0),), np.float32)
        if fault == "action space":
            num_actions += int(self.goal > 0)
        self.action_space = gym.spaces.Discrete(num_actions)
        if fault == "make":
            raise OSError("no model file")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self.fault != "unseeded":
            super().reset(seed=seed)
        if options and "task" in options and self.fault != "keeps task":
            self.goal = options["task"]["goal"]
        if self.fault == "remembers" and self.num_resets > 2:
            self.goal += 0.1
        self.num_resets += 1
        self.steps, self.place = 0, float(self.np_random.normal())
        return self._observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 0.1 * (2 * action - 1)
        self.steps += 1
        if self.fault == "step" and self.steps == 3:
            raise OSError("the wheel came off")
        reward = -abs(self.place - (0.0 if self.fault == "ignores" else self.goal))
        if self.fault == "nan reward" and self.steps == 3:
            reward = float("nan")
        return self._observe(), reward, abs(self.place) > 5, False, {}

    def _observe(self) -> Any:
        if self.fault == "shape":
            return np.array([[self.place]], np.float32)
        if self.fault == "dtype":
            return np.array([str(self.place)])
        if self.fault == "size":
            return np.zeros(3, np.float32)
        if self.fault == "inf observation":
            return np.array([np.inf], np.float32)
        return np.full(self.observation_space.shape or (), self.place, np.float32)


def sample(rng: np.random.Generator) -> dict[str, float]:
    return {"goal": float(rng.uniform(-1, 1))}


def line(fault: str = "", **settings: Any) -> TaskDistribution:
    return TaskDistribution(
        **{"id": "test/line", "sample": sample, "make_env": partial(Line, fault=fault), "horizon": 20, **settings}
    )


def problems(distribution: TaskDistribution) -> tuple[str, ...]:
    with pytest.raises(TaskCheckError) as caught:
        check_tasks(distribution)
    assert distribution.id in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize("task_on_reset", [False, True])
def test_good_distribution_passes(task_on_reset: bool) -> None:
    assert check_tasks(line(task_on_reset=task_on_reset)) == {"train": 300, "test": 300}
    check_tasks(line(task_on_reset=task_on_reset), num_tasks=2, seed=5)


def test_a_number_that_is_not_finite_is_told_once_whatever_it_is() -> None:
    class Huge(Line):
        def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            obs, reward, *rest = super().step(action)
            return obs, 1e39 * reward, *rest  # Another number at every step.

    (found,) = problems(line(make_env=Huge))
    assert "in its reward; expected finite numbers only (float32 ends at 3.4e38)" in found


def test_every_reset_is_told_of_as_it_is_made() -> None:
    made, told = [], []

    class Counted(Line):
        def reset(self, **kwargs: Any) -> Any:
            made.append(len(made) + 1)
            return super().reset(**kwargs)

    check_tasks(line(make_env=Counted), num_tasks=2, on_reset=told.append)
    assert told == made and len(told) > 10


def test_few_different_tasks_are_counted() -> None:
    goals = line(sample=lambda rng: {"goal": float(rng.integers(3))}, sample_test=lambda rng: {"goal": -1.0})
    assert check_tasks(goals) == {"train": 3, "test": 1}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("observation space", "the observation space differs between tasks"),
        ("action space", "the action space differs between tasks: Discrete"),
        ("make", "make_env and reset with task {'goal': .*raised OSError: no model file"),
        ("step", "instance 0 raised in step with task .*OSError: the wheel came off"),
        ("ignores", "ignores its task: 8 different tasks gave identical"),
        ("unseeded", "same task, seed and actions gave two different episodes"),
        ("nan reward", "step of an environment returned nan in its reward; expected finite"),
        ("inf observation", "returned inf in its observation; expected finite"),
        ("shape", r"observation of shape \(1, 1\) and dtype float32, but observation_space says shape \(1,\)"),
        ("dtype", r"observation of shape \(1,\) and dtype <U.*says shape \(1,\) and dtype float32"),
        ("size", r"observation of shape \(3,\).*says shape \(1,\)"),
    ],
)
def test_broken_environment_is_caught(fault: str, message: str) -> None:
    found = problems(line(fault))
    assert any(_matches(message, problem) for problem in found), found


@pytest.mark.parametrize("fault", ["keeps task", "remembers"])
def test_environment_that_keeps_its_first_task_or_its_history_is_caught(fault: str) -> None:
    found = problems(line(fault, task_on_reset=True))
    assert len(found) == 1
    assert "plays differently from a fresh one" in found[0]


def test_missing_time_limit_is_caught_and_the_rest_still_checked() -> None:
    found = problems(line("nan reward", horizon=None))
    assert len(found) == 2
    assert "there is no time limit: set TaskDistribution.horizon" in found[0]


def test_time_limit_of_the_environment_counts() -> None:
    gym.register("CheckedLine-v0", lambda **kwargs: Line(**kwargs), max_episode_steps=20)
    make_env = lambda task: gym.make("CheckedLine-v0", task=task)  # noqa: E731
    check_tasks(line(make_env=make_env, horizon=None))
    del gym.registry["CheckedLine-v0"]


def test_training_task_in_the_test_split_is_caught() -> None:
    train = lambda rng: {"goal": float(rng.integers(10))}  # noqa: E731
    test = lambda rng: {"goal": float(rng.integers(9, 12))}  # noqa: E731
    found = problems(line(sample=train, sample_test=test))
    assert found == (
        "1 of 3 distinct test tasks are training tasks too; expected none: keep the samplers apart, leave "
        "sample_test out, or set shared_split=True.",
    )


def test_shared_split_and_single_task_are_fine_when_declared() -> None:
    check_tasks(line(sample=lambda rng: {"goal": float(rng.integers(2))}, shared_split=True))
    check_tasks(line(sample=lambda rng: {"goal": 0.5}, shared_split=True))


def test_undeclared_single_task_is_caught() -> None:
    assert any(
        "too few distinct tasks to split" in problem for problem in problems(line(sample=lambda rng: {"goal": 0.5}))
    )


@pytest.mark.parametrize(
    "outside",
    [
        lambda counter: next(counter),
        lambda counter: np.random.uniform(),  # noqa: NPY002
    ],
)
def test_sampler_that_depends_on_more_than_its_generator_is_caught(outside: Callable[[Any], float]) -> None:
    counter = itertools.count()
    found = problems(line(sample=lambda rng: {"goal": 1.0 + outside(counter)}))
    assert any("the train sampler depends on more than its generator" in problem for problem in found)


class LineDynamics:
    """Line as array dynamics, with a fault of its own."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def reset(self, params: Any, rng: np.random.Generator, num: int) -> Any:
        return rng.normal(size=(num, 1))

    def step(self, state: Any, action: Any, params: Any, rng: np.random.Generator) -> Any:
        state = state + 0.1 * (2 * action[:, None] - 1)
        goal = params["goal"][0] if self.fault == "first task" else params["goal"]
        rewards = -np.abs(state[:, 0] - goal)
        if self.fault == "wide rewards":
            rewards = rewards[:, None]
        return state, rewards, np.zeros(len(state), bool), {}

    def observe(self, state: Any, params: Any) -> Any:
        return state


def lines(fault: str = "", **settings: Any) -> TaskDistribution:
    make_vector = partial(ArrayVectorEnv, LineDynamics(fault), horizon=20)
    return TaskDistribution(
        **{"id": "test/lines", "sample": sample, "make_vector": make_vector, "horizon": 20, **settings}
    )


def test_good_array_distribution_passes() -> None:
    check_tasks(lines())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("first task", "a batch of 8 tasks plays like a batch of its first task alone"),
        ("wide rewards", r"rewards have shape \(1, 1\), expected \(1,\)"),
    ],
)
def test_broken_array_environment_is_caught(fault: str, message: str) -> None:
    found = problems(lines(fault))
    assert len(found) == 1
    assert _matches(message, found[0])


def test_vector_environment_that_is_not_flat_or_resets_itself_is_caught() -> None:
    class Own(ArrayVectorEnv):
        def __init__(self, num_envs: int) -> None:
            super().__init__(LineDynamics(), num_envs, 20)
            self.single_observation_space = gym.spaces.Box(-1, 1, (1, 1), np.float32)
            self.single_action_space = gym.spaces.Discrete(2, start=1)
            self.metadata = {}

    found = problems(lines(make_vector=Own, horizon=None))
    for message in ("no time limit", "expected a flat Box", "Discrete from 0", "AutoresetMode.DISABLED"):
        assert any(message in problem for problem in found), (message, found)


def test_worker_processes_are_not_started() -> None:
    """A lock cannot travel to a worker."""
    lock = threading.Lock()

    def make_env(task: dict[str, float]) -> Line:
        with lock:
            return Line(task)

    check_tasks(line(make_env=make_env, num_workers=2))


def test_too_few_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_tasks must be 2 or more, got 1"):
        check_tasks(line(), num_tasks=1)


@pytest.mark.parametrize("name", [name for name in registered() if not name.startswith(("locomotion/", "ml"))])
def test_registered_distribution_passes(name: str) -> None:
    check_tasks(registered()[name])


def _matches(message: str, problem: str) -> bool:
    return re.search(message, problem) is not None


class Addressed:
    """Its pickled content tells which process wrote it."""

    def __init__(self, goal: float) -> None:
        self.goal = goal

    def __reduce__(self) -> Any:
        return type(self), (self.goal,), {"process": os.getpid()}

    def __setstate__(self, state: Any) -> None:
        """Forget it."""


def test_tasks_whose_digest_another_process_does_not_share_are_caught() -> None:
    found = problems(line(sample=lambda rng: {"goal": float(rng.uniform(-1, 1)), "on": Addressed(1.0)}))
    assert any(
        "the digest of the train task" in problem and "differs in another process" in problem for problem in found
    )


def test_wrappers_that_keep_statistics_are_named() -> None:
    def make_env(task: dict[str, float]) -> gym.Env[Any, Any]:
        return gym.wrappers.NormalizeObservation(Line(task))

    found = problems(line(make_env=make_env))
    assert any("NormalizeObservation keeps running statistics, which start anew" in problem for problem in found)
    assert any("the second of two episodes of the task" in problem for problem in found)


def test_an_environment_of_the_old_interface_is_named() -> None:
    class Old(Line):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return super().reset(seed=seed, options=options)[0]

    found = problems(line(make_env=Old))
    assert len(found) == 1 and "reset returned ndarray of shape (1,)" in found[0] and "gym before 0.26" in found[0]


def test_an_action_that_its_space_does_not_contain_is_named() -> None:
    class Strict(gym.spaces.Box):
        def contains(self, x: Any) -> bool:
            return super().contains(x) and bool((np.abs(x) < 1).all())

    class Pushed(Line):
        def __init__(self, task: dict[str, float]) -> None:
            super().__init__(task)
            self.action_space = Strict(-1.0, 1.0, (1,), np.float32)  # type: ignore[assignment]

        def step(self, action: Any) -> Any:
            return super().step(action[0])

    found = problems(line(make_env=Pushed))
    assert len(found) == 1 and "does not contain array([-1.], dtype=float32), which is what becomes of" in found[0]


def test_a_reward_beyond_float32_is_caught() -> None:
    class Rich(Line):
        def step(self, action: int) -> Any:
            observation, _, *rest = super().step(action)
            return observation, 1e39 * self.goal, *rest

    assert any(
        re.search(r"returned .*e\+3\d in its reward.*float32 ends", one) for one in problems(line(make_env=Rich))
    )
