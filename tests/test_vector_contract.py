"""Every vector environment refuses what Gymnasium's own vector environments refuse, and is read as they are."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers.vector import DictInfoToList
from helpers.countdown import countdown

from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv
from metarl.errors import ConfigError, WorkerError
from metarl.tasks import TaskDistribution, make
from metarl.tasks.oracle import reveal_task

REACH = {"env_name": "reach-v3", "rand_vec": np.array([0.0, 0.6, 0.02, 0.05, 0.85, 0.2])}


def _vector(name: str) -> tuple[Any, Any]:
    """Three instances, and a task for each of them."""
    if name == "metaworld":
        return MetaWorldVectorEnv(3), REACH
    if name.startswith("gymnasium"):
        id = "CartPole-v1" if "discrete" in name else "Pendulum-v1"
        tasks = TaskDistribution("test/one", lambda rng: 0, lambda task: gym.make(id), shared_split=True)
        return tasks.make_vector_env(3), 0
    tasks = make("bandit" if "discrete" in name else "navigation-2d")
    chosen = reveal_task(tasks) if name.startswith("oracle") else tasks
    return chosen.make_vector_env(3), tasks.sample(np.random.default_rng(0))


DISCRETE = ("array, discrete", "gymnasium, discrete", "oracle, discrete")
BOX = ("array, box", "gymnasium, box", "oracle, box", "metaworld")


@pytest.mark.parametrize("name", DISCRETE + BOX)
def test_a_step_before_the_first_reset_and_after_close_is_refused(name: str) -> None:
    env, task = _vector(name)
    actions = env.action_space.sample()
    with pytest.raises(ConfigError, match=r"VectorEnv was never reset: call reset before step") as early:
        env.step(actions)
    assert isinstance(early.value, gym.error.ResetNeeded)
    env.reset(seed=0, options={"tasks": [task] * 3})
    env.step(actions)
    env.close()
    for late in (partial(env.step, actions), partial(env.reset, options={"tasks": [task] * 3})):
        with pytest.raises(WorkerError, match=r"VectorEnv is closed; make a new one") as caught:
            late()
        assert isinstance(caught.value, gym.error.ClosedEnvironmentError)


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 1, 5], r"the action of instance 2 is 5, expected 0 to \d"),
        ([0, -1, 0], "the action of instance 1 is -1, expected 0 to"),
        ([0, 1], r"actions have shape \(2,\), expected \(3,\)"),
        ([[0], [1], [0]], r"actions have shape \(3, 1\), expected \(3,\)"),
        ([0.0, 1.0, 0.5], "actions have dtype float64, expected integers"),
        ([True, False, True], "actions have dtype bool, expected integers"),
        (["a", "b", "c"], "actions have dtype <U1, expected integers"),
        ([[0], [1, 2], 0], "actions cannot be made one array"),
        (None, "actions are None, expected an array or list with one for each instance"),
        (0, "actions are 0, expected an array or list"),
    ],
)
def test_wrong_choices_are_refused(name: str, actions: Any, message: str) -> None:
    if name == "array, discrete" and actions == [0, 1, 5]:
        message = "the action of instance 2 is 5, expected 0 to 4"
    env, task = _vector(name)
    env.reset(seed=0, options={"tasks": [task] * 3})
    with pytest.raises(ConfigError, match=message):
        env.step(actions)
    env.step([0, 1, 0])
    env.close()


@pytest.mark.parametrize("name", BOX)
def test_wrong_boxes_are_refused(name: str) -> None:
    env, task = _vector(name)
    env.reset(seed=0, options={"tasks": [task] * 3})
    size = env.single_action_space.shape[0]
    good = np.zeros((3, size), np.float32)
    wrong: list[tuple[Any, str]] = [
        (good[:2], rf"actions have shape \(2, {size}\), expected \(3, {size}\)"),
        (good.reshape(-1)[:3], rf"actions have shape \(3,\), expected \(3, {size}\)"),
        (good.astype(str), "actions have dtype <U.*, expected floating-point numbers"),
        (good.astype(bool), "actions have dtype bool, expected floating-point numbers"),
        (good.astype(object), "actions have dtype object, expected floating-point numbers"),
    ]
    for number in (np.nan, np.inf):
        wrong.append(
            (np.where(np.arange(3)[:, None] == 1, number, good), "the action of instance 1 is .*finite numbers")
        )
    for actions, message in wrong:
        with pytest.raises(ConfigError, match=message):
            env.step(actions)
    env.step(good)
    env.close()


@pytest.mark.parametrize("name", DISCRETE + BOX)
def test_gymnasiums_kinds_of_errors_are_kept(name: str) -> None:
    """Gymnasium's vector environments raise TypeError for a wrong kind, and ValueError for a wrong number."""
    env, task = _vector(name)
    env.reset(seed=0, options={"tasks": [task] * 3})
    good = env.action_space.sample()
    for actions in (0, good[0].item() if good.ndim == 1 else 0.5, good.astype(bool), good.astype(str)):
        with pytest.raises(TypeError, match="actions"):
            env.step(actions)
    for actions in (good[:2], np.concatenate([good, good[:1]])):
        with pytest.raises(ValueError, match="actions have shape"):
            env.step(actions)
    for mask in ([1, 1, 0], [1.0, 1.0, 0.0]):
        with pytest.raises(TypeError, match="reset_mask must be bool"):
            env.reset(options={"reset_mask": np.array(mask)})
    for mask in ([True], [[True, True, True]], [False, False, False]):
        with pytest.raises(ValueError, match="reset_mask must be") as caught:
            env.reset(options={"reset_mask": np.array(mask)})
        assert isinstance(caught.value, ConfigError) and not isinstance(caught.value, TypeError)
    env.step(good)
    env.close()


@pytest.mark.parametrize("name", DISCRETE)
def test_lists_and_tuples_of_integers_step_like_arrays(name: str) -> None:
    found = []
    for actions in ([1, 0, 1], (np.int64(1), np.int32(0), 1), np.array([1, 0, 1], np.uint8), np.array([1, 0, 1])):
        env, task = _vector(name)
        env.reset(seed=0, options={"tasks": [task] * 3})
        found.append(np.concatenate([env.step(actions)[0].ravel(), env.step(actions)[1]]))
        env.close()
    assert all(np.array_equal(one, found[0]) for one in found)


@pytest.mark.parametrize("name", DISCRETE + BOX)
def test_gymnasiums_list_of_infos_can_be_made_of_every_info(name: str) -> None:
    env, task = _vector(name)
    listed = DictInfoToList(env)
    _, infos = listed.reset(seed=0, options={"tasks": [task] * 3})
    assert [info.get("tasks", "none") for info in infos] == [task if name == "metaworld" else "none"] * 3
    *_, infos = listed.step(env.action_space.sample())
    told = name in ("metaworld", "array, box", "oracle, box")
    assert [("success" in info) for info in infos] == [told] * 3
    listed.close()


def test_masks_say_who_reports() -> None:
    env = countdown().make_vector_env(2)
    env.reset(seed=0, options={"tasks": [{"name": 1.0, "length": 3.0}] * 2})
    info = env.step([0, 0])[4]
    assert info["_success"].tolist() == info["_invalid"].tolist() == [True, True]
