"""Meta-World's task sets: upstream's goals, kept on disk, refused where they make no sense."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import metaworld
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from metaworld.evaluation import evaluation
from metaworld.wrappers import RNNBasedMetaRLWrapper

from metarl.envs.metaworld import (
    BENCHMARKS,
    DISTRIBUTIONS,
    TASK_NAMES,
    GoalTable,
    TaskSet,
    custom,
    make_vec,
    meta_world,
    task_distribution,
)
from metarl.envs.metaworld.upstream import upstream_env, upstream_task
from metarl.errors import ConfigError
from metarl.tasks.registry import make
from metarl.types import Task

pytestmark = pytest.mark.usefixtures("cache")


def _content(table: GoalTable) -> list[list[tuple[str, list[float]]]]:
    return [[(t["env_name"], t["rand_vec"].tolist()) for t in tasks] for tasks in (table.train, table.test)]


def _key(task: Task) -> tuple[str, bytes]:
    return task["env_name"], task["rand_vec"].tobytes()


def test_task_names_are_upstreams() -> None:
    assert set(TASK_NAMES) == set(metaworld.ALL_V3_ENVIRONMENTS)
    assert len(TASK_NAMES) == len(set(TASK_NAMES)) == 50


def test_ml1_goals_are_upstreams_and_its_splits_are_disjoint() -> None:
    ours, theirs = TaskSet("ml1/push-v3", 7).goals, metaworld.ML1("push-v3", seed=7)
    assert [upstream_task(task) for task in ours.train] == theirs.train_tasks
    assert [upstream_task(task) for task in ours.test] == theirs.test_tasks
    assert not set(map(_key, ours.train)) & set(map(_key, ours.test))


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_goals_of_every_benchmark_are_upstreams_and_disjoint(name: str) -> None:
    ours = TaskSet(name, 3).goals
    family, _, task_name = name.partition("/")
    theirs = getattr(metaworld, family.upper())(*[task_name] * bool(task_name), seed=3)
    assert [upstream_task(task) for task in ours.train] == theirs.train_tasks
    assert [upstream_task(task) for task in ours.test] == theirs.test_tasks
    assert not set(map(_key, ours.train)) & set(map(_key, ours.test))


def test_custom_goals_are_upstreams() -> None:
    train, test = ["reach-v3", "drawer-open-v3"], ["door-close-v3"]
    ours = TaskSet("custom", 1, tuple(train), tuple(test)).goals
    theirs = metaworld.CustomML(train, test, seed=1)
    assert [upstream_task(task) for task in ours.train] == theirs.train_tasks
    assert [upstream_task(task) for task in ours.test] == theirs.test_tasks


def test_goals_from_disk_are_the_drawn_ones_bit_for_bit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = TaskSet("ml1/reach-v3", 11).goals
    monkeypatch.setattr(metaworld, "ML1", None)
    assert _content(TaskSet("ml1/reach-v3", 11).goals) == _content(drawn)


@pytest.mark.parametrize("damage", ["", "{", '{"format": 99}', '{"format": 1, "train": [[1]], "test": []}'])
def test_a_damaged_table_is_drawn_again(cache: Path, damage: str) -> None:
    task_set = TaskSet("ml1/reach-v3", 12)
    drawn = _content(task_set.goals)
    (path,) = (cache / "metaworld").glob("*reach-v3-seed12-*.json")
    path.write_text(damage)
    assert _content(TaskSet("ml1/reach-v3", 12).goals) == drawn
    assert json.loads(path.read_text())["format"] == 1


def test_an_unwritable_cache_is_said_and_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METARL_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="METARL_CACHE"):
        assert len(TaskSet("ml1/reach-v3", 13).goals.train) == 50


def test_samplers_draw_from_their_own_split() -> None:
    distribution = task_distribution("ml1/reach-v3")
    goals = TaskSet("ml1/reach-v3").goals
    rng = np.random.default_rng(0)
    assert {_key(t) for t in distribution.train.sample(200, rng)} <= set(map(_key, goals.train))
    assert {_key(t) for t in distribution.test.sample(200, rng)} <= set(map(_key, goals.test))


def test_a_meta_batch_holds_as_many_goals_of_every_task_and_none_twice() -> None:
    distribution = custom(["reach-v3", "push-v3"], ["door-close-v3"], id="even")
    goals = TaskSet("custom", 0, ("reach-v3", "push-v3"), ("door-close-v3",)).goals
    drawn = distribution.sample_meta_batch(20, np.random.default_rng(0))
    assert [task["env_name"] for task in drawn] == ["reach-v3"] * 10 + ["push-v3"] * 10
    assert len(set(map(_key, drawn))) == 20
    assert set(map(_key, drawn)) <= set(map(_key, goals.train))
    assert list(map(_key, drawn)) == list(map(_key, distribution.sample_meta_batch(20, np.random.default_rng(0))))
    assert list(map(_key, drawn)) != list(map(_key, distribution.sample_meta_batch(20, np.random.default_rng(1))))


def test_a_meta_batch_of_more_than_all_goals_holds_each_as_often() -> None:
    drawn = task_distribution("ml1/reach-v3").sample_meta_batch(100, np.random.default_rng(0))
    assert set(Counter(map(_key, drawn)).values()) == {2}


def test_every_benchmark_has_a_distribution_of_its_id() -> None:
    assert tuple(distribution.id for distribution in DISTRIBUTIONS) == BENCHMARKS
    assert len(BENCHMARKS) == 53


def test_importing_the_task_sets_imports_neither_metaworld_nor_draws_goals() -> None:
    code = "import sys, metarl.envs.metaworld; sys.exit('metaworld' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sizes_are_known_without_starting_a_simulation() -> None:
    spec = task_distribution("ml10").spec
    assert (spec.obs_dim, spec.action_dim, spec.discrete, spec.horizon) == (39, 4, False, 500)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: task_distribution("ml1/reach-v2"), "Did you mean 'ml1/reach-v3'"),
        (lambda: task_distribution("ml20"), r"Valid choices: custom, ml10, .*ml1/\.\.\. \(50 of them\)"),
        (lambda: task_distribution("ml10", reward_version="v3"), "unknown reward version 'v3'.*v1, v2"),  # type: ignore[arg-type]
        (lambda: task_distribution("ml10", seed=-1), "got -1"),
        (lambda: custom(["reach-v3"], ["psuh-v3"]), "Did you mean 'push-v3'"),
        (lambda: custom(["reach-v3", "push-v3"], ["push-v3"]), "same tasks: push-v3"),
        (lambda: custom(["reach-v3", "reach-v3"], ["push-v3"]), "train task twice"),
        (lambda: custom(["reach-v3"], []), "at least one test task"),
        (
            lambda: custom(["reach-v3", "push-v3"], ["door-close-v3"]).sample_meta_batch(5, np.random.default_rng(0)),
            "multiple of 2 above 0, got 5; valid choices: 2, 4",
        ),
        (lambda: meta_world(make("bandit")), "no task set of Meta-World"),
        (lambda: make_vec("ml10", 2, split="valid"), "unknown split 'valid'"),  # type: ignore[arg-type]
    ],
)
def test_bad_names_are_refused_with_the_choices(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ConfigError, match=message):
        call()


REACH: Task = {"env_name": "reach-v3", "rand_vec": np.array([0.0, 0.6, 0.02, 0.05, 0.85, 0.2])}


def test_upstreams_ml1_factory_serves_test_goals_and_ours_train_goals() -> None:
    env = gym.make_vec("Meta-World/ML1-train", env_name="reach-v3", seed=0, meta_batch_size=1, vector_strategy="sync")
    served = {task.data for task in env.unwrapped.envs[0].get_wrapper_attr("tasks")}  # type: ignore[attr-defined]
    env.close()
    goals = TaskSet("ml1/reach-v3", 0).goals
    # If this fails, upstream has mended its factory.
    assert served == {upstream_task(task).data for task in goals.test}
    drawn = task_distribution("ml1/reach-v3").train.sample(100, np.random.default_rng(0))
    assert {_key(task) for task in drawn} <= {_key(task) for task in goals.train}


class _OneGoalSolved:
    """Four sub-environments of one task: an expert's ends with success after 5 steps, the others' fail after 50."""

    num_envs = 4
    limits = np.array([5, 50, 50, 50])

    def get_attr(self, name: str) -> list[Any]:
        return {"terminate_on_success": [False] * 4, "task_name": ["SawyerReachEnvV3"] * 4}[name]

    def call(self, name: str, *arguments: Any) -> None:
        pass

    def reset(self) -> tuple[Any, dict[str, Any]]:
        self.steps = np.zeros(4, int)
        return np.zeros((4, 39)), {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        self.steps += 1
        ended = self.steps % self.limits == 0
        info = {"final_info": {"episode": {"r": np.zeros(4)}, "success": np.array([1.0, 0.0, 0.0, 0.0])}}
        return np.zeros((4, 39)), np.zeros(4), ended, np.zeros(4, bool), info


class _Idle:
    def reset(self, mask: Any) -> None:
        pass

    def eval_action(self, obs: Any) -> Any:
        return np.zeros((4, 4))


def test_upstreams_evaluation_lets_a_solved_goal_crowd_out_the_others() -> None:
    success, *_ = evaluation(_Idle(), _OneGoalSolved(), num_episodes=3)  # type: ignore[arg-type]
    # One goal of four is solved; an exact quota per goal says 0.25.
    assert success == 1.0


def test_upstream_hides_the_last_reward_from_a_recurrent_agent_and_the_pool_does_not() -> None:
    def make() -> Any:
        return RNNBasedMetaRLWrapper(TimeLimit(upstream_env(REACH), 5))

    env = SyncVectorEnv([make], autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset()
    seen = [env.step(np.zeros((1, 4), np.float32)) for _ in range(5)]
    assert [bool(step[3][0]) for step in seen] == [False] * 4 + [True]
    assert all(step[0][0, -1] == 0.0 for step in seen), "done was shown: upstream has mended its wrapper"
    assert seen[-1][0][0, -2] == 0.0 and seen[-1][1][0] > 0.0

    pool = make_vec("ml1/reach-v3", 1, num_workers=1)
    pool.reset(options={"tasks": [REACH]})
    for _ in range(500):
        observations, rewards, _, truncated, _ = pool.step(np.zeros((1, 4), np.float32))
    pool.close()
    first = upstream_env(REACH).reset()[0]
    assert truncated[0] and rewards[0] > 0.0 and not np.array_equal(observations[0], first)
