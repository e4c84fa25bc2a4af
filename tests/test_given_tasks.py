"""Environments that change the task they are given change nothing for later episodes, nor for anybody else."""

from __future__ import annotations

import copy
import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from metarl.errors import ConfigError, TaskCheckError
from metarl.tasks.distribution import TaskDistribution
from metarl.testing import check_tasks
from metarl.vector.gym_env import GymVectorEnv
from metarl.vector.instances import own_copy


class Reach(gym.Env[Any, Any]):
    """Walk to ``goal``; or collect the places of ``todo``, each once."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, goal: int, todo: list[int] | None = None) -> None:
        self.goal, self.todo, self.place = goal, todo, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if options:
            self.goal = options["task"].pop("goal")
        self.place = 0
        return np.array([0], np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += int(action) - 1
        reward = -abs(self.place - self.goal)
        if self.todo is not None:
            reward = int(self.place in self.todo)
            if reward:
                self.todo.remove(self.place)
        return np.array([self.place], np.float32), float(reward), False, False, {}


def popping(task: dict[str, Any]) -> Reach:
    return Reach(task.pop("goal", 0))


def emptying(task: dict[str, Any]) -> Reach:
    return Reach(0, todo=task["goal"])


def sorting(task: dict[str, Any]) -> Reach:
    task["goal"].sort()
    return Reach(task["goal"][0])


def at_reset(task: dict[str, Any]) -> Reach:
    return Reach(0)


def one_goal(rng: np.random.Generator) -> dict[str, Any]:
    return {"goal": int(rng.integers(-9, 10))}


def many_goals(rng: np.random.Generator) -> dict[str, Any]:
    return {"goal": rng.permutation([-3, -2, -1, 1, 2, 3])[:3].tolist()}


CASES = [(popping, one_goal), (emptying, many_goals), (sorting, many_goals), (at_reset, one_goal)]


def returns(case: tuple[Any, Any], tasks: list[Any], num_workers: int) -> list[Any]:
    """Of each task in each of four episodes in a row, to the right and to the left in turn; the third as the first."""
    make_env, _ = case
    env = GymVectorEnv(
        make_env,
        len(tasks),
        first_task=tasks[0],
        num_workers=num_workers,
        task_on_reset=make_env is at_reset,
    )
    found = []
    for episode in range(4):
        # The last reset is given no tasks, and keeps those of before.
        env.reset(seed=0, options={"tasks": tasks} if episode < 3 else None)
        actions = np.full(len(tasks), 2 if episode % 2 == 0 else 0)
        found.append(sum(env.step(actions)[1] for _ in range(4)).tolist())
    env.close()
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_every_episode_poses_the_task_as_it_was_sampled(case: tuple[Any, Any], num_workers: int) -> None:
    tasks = [case[1](np.random.default_rng(index)) for index in range(3)]
    kept = copy.deepcopy(tasks)
    found = returns(case, tasks, num_workers)
    assert tasks == kept
    right = np.arange(1, 5)

    def earned(goal: Any, way: int) -> float:
        if case[0] is emptying:
            return float(len(set(goal) & set((way * right).tolist())))
        return float(-np.abs(way * right - (min(goal) if case[0] is sorting else goal)).sum())

    for episode, way in enumerate((1, -1, 1, -1)):
        assert found[episode] == [earned(task["goal"], way) for task in tasks]


def test_a_sampler_that_hands_out_the_same_object_again_keeps_it() -> None:
    tasks = [{"goal": goal} for goal in range(4)]
    distribution = TaskDistribution(
        "test/popping", lambda rng: tasks[rng.integers(4)], make_env=popping, horizon=4, shared_split=True
    )
    assert distribution.spec.obs_dim == 1
    env = distribution.make_vector_env(4)
    env.reset(seed=0, options={"tasks": tasks})
    assert tasks == [{"goal": goal} for goal in range(4)]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (CASES[0], "make_env changes the task it is given: {'goal': .*} became {}"),
        (CASES[1], "an episode changes the task that its environment was built from: {'goal': "),
        (CASES[2], "make_env changes the task it is given: {'goal': .* became {'goal': "),
        (CASES[3], "reset changes the task it is given: {'goal': .*} became {}"),
    ],
    ids=lambda value: value[0].__name__ if isinstance(value, tuple) else "",
)
def test_the_check_names_the_change(case: tuple[Any, Any], message: str) -> None:
    make_env, sample = case
    distribution = TaskDistribution(
        "test/changing", sample, make_env=make_env, horizon=8, task_on_reset=make_env is at_reset
    )
    with pytest.raises(TaskCheckError, match=message):
        check_tasks(distribution)


def test_a_vector_environment_that_changes_its_tasks_is_named() -> None:
    class Own(GymVectorEnv):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            found = super().reset(seed=seed, options=options)
            for task in options["tasks"]:
                task.clear()
            return found

    def make_vector(num_envs: int) -> GymVectorEnv:
        return Own(lambda task: Reach(task["goal"]), num_envs, first_task={"goal": 0})

    with pytest.raises(TaskCheckError, match=r"the vector environment changes the task it is given: .* became {}"):
        check_tasks(TaskDistribution("test/clearing", one_goal, make_vector=make_vector, horizon=4))


def test_a_task_that_cannot_be_copied_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the task {'lock': .*cannot be copied .TypeError: cannot pickle"):
        own_copy({"lock": threading.Lock()})
