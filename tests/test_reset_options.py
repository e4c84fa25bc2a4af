"""Every vector environment understands the same options of ``reset``, and refuses the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv
from metarl.errors import ConfigError
from metarl.tasks import TaskDistribution, make
from metarl.tasks.oracle import reveal_task
from metarl.vector.options import parse_reset_options


def _array() -> tuple[Any, list[Any]]:
    return make("navigation-2d").make_vector_env(3), make("navigation-2d").train.sample(3, np.random.default_rng(0))


def _gymnasium() -> tuple[Any, list[Any]]:
    import gymnasium as gym

    tasks = TaskDistribution("one", lambda rng: 0, lambda task: gym.make("CartPole-v1"), shared_split=True)
    return tasks.make_vector_env(3), [0, 0, 0]


def _oracle() -> tuple[Any, list[Any]]:
    env, tasks = _array()
    env.close()
    return reveal_task(make("navigation-2d")).make_vector_env(3), tasks


def _metaworld() -> tuple[Any, list[Any]]:
    return MetaWorldVectorEnv(3), [
        {"env_name": "reach-v3", "rand_vec": np.array([0.0, 0.6, 0.02, 0.05, 0.85, 0.2])}
    ] * 3


@pytest.mark.parametrize("kind", [_array, _gymnasium, _oracle, _metaworld])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([1, 0, 1], r"reset_mask must be bool of shape \(3,\), got int64 of shape \(3,\)"),
        ([0, 2], r"got int64 of shape \(2,\)"),
        ([True, False], r"got bool of shape \(2,\)"),
        (None, "got object of shape"),
        ([False, False, False], "reset_mask must be True for one instance at least, got False for all of them"),
    ],
)
def test_a_wrong_mask_is_refused_everywhere(kind: Any, mask: Any, message: str) -> None:
    env, tasks = kind()
    with pytest.raises(ConfigError, match=message):
        env.reset(seed=0, options={"tasks": tasks, "reset_mask": mask})
    env.close()


@pytest.mark.parametrize("kind", [_array, _gymnasium, _oracle, _metaworld])
def test_a_wrong_number_of_tasks_and_none_are_refused_everywhere(kind: Any) -> None:
    env, tasks = kind()
    with pytest.raises(ConfigError, match="got 2 tasks for 3 instances: give one task per instance"):
        env.reset(options={"tasks": tasks[:2]})
    with pytest.raises(ConfigError, match="no task was given"):
        env.reset(options={})
    env.close()


def test_without_options_all_instances_are_reset_and_keep_their_tasks() -> None:
    for options in (None, {}, {"tasks": None}):
        tasks, mask = parse_reset_options(options, 2)
        assert tasks is None and mask.tolist() == [True, True]
    tasks, mask = parse_reset_options({"tasks": (1, 2), "reset_mask": [True, False], "other": 3}, 2)
    assert tasks == [1, 2] and mask.tolist() == [True, False]
