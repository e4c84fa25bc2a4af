"""An oracle's observations: the task's numbers, and otherwise the same tasks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from metarl import make
from metarl.errors import ConfigError
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.oracle import reveal_task, task_numbers
from metarl.testing import check_tasks


@pytest.mark.parametrize("name", ["cartpole-goal", "navigation-2d", "bandit"])
def test_revealed_tasks_are_sound_and_split_as_before(name: str) -> None:
    hidden, revealed = make(name), reveal_task(make(name))
    check_tasks(revealed)
    for split in ("train", "test"):
        drawn = [getattr(d, split).sample(5, np.random.default_rng(3)) for d in (hidden, revealed)]
        assert [task_numbers(t).tolist() for t in drawn[0]] == [task_numbers(t).tolist() for t in drawn[1]]


def test_observation_is_the_hidden_one_followed_by_the_scaled_task() -> None:
    hidden, revealed = make("navigation-2d"), reveal_task(make("navigation-2d"))
    assert revealed.spec.obs_dim == hidden.spec.obs_dim + 2
    tasks = hidden.train.sample(400, np.random.default_rng(0))
    envs = [d.make_vector_env(400) for d in (hidden, revealed)]
    obs = [env.reset(seed=1, options={"tasks": tasks})[0] for env in envs]
    actions = np.full((400, 2), 0.05, np.float32)
    stepped = [env.step(actions) for env in envs]
    for plain, told in (obs, [s[0] for s in stepped]):
        assert np.array_equal(told[:, :2], plain)
        numbers = np.stack([task_numbers(task) for task in tasks])
        for column in range(2):
            assert np.corrcoef(numbers[:, column], told[:, 2 + column])[0, 1] > 0.9999
        assert np.allclose(told[:, 2:].mean(0), 0, atol=0.2) and np.allclose(told[:, 2:].std(0), 1, atol=0.2)
    assert np.array_equal(stepped[0][1], stepped[1][1])


def test_numbers_that_never_vary_are_told_as_zero() -> None:
    env = reveal_task(make("cartpole")).make_vector_env(2)
    obs, _ = env.reset(seed=0, options={"tasks": make("cartpole").train.sample(2, np.random.default_rng(0))})
    assert (obs[:, 4:] == 0).all() and obs.shape[1] > 4


def test_a_task_that_is_not_made_of_numbers_is_refused() -> None:
    words = TaskDistribution(
        "words", lambda rng: {"word": "left"}, make_vector=make("cartpole").make_vector, horizon=3, shared_split=True
    )
    with pytest.raises(ConfigError, match=r"made of numbers, got str 'left'"):
        reveal_task(words)


@dataclasses.dataclass(frozen=True)
class Shelf:
    """A task with fields."""

    height: float
    place: tuple[int, int]
    colour: str = "red"


def test_fields_of_a_dataclass_are_told_and_the_one_that_is_no_number_is_named() -> None:
    @dataclasses.dataclass(frozen=True)
    class Numbers:
        height: float
        place: tuple[int, int]

    assert task_numbers(Numbers(2.5, (1, 3))).tolist() == [2.5, 1.0, 3.0]
    assert task_numbers({"b": Numbers(2.5, (1, 3)), "a": 0}).tolist() == [0.0, 2.5, 1.0, 3.0]
    with pytest.raises(ConfigError, match=r"made of numbers, got str 'red'"):
        task_numbers(Shelf(2.5, (1, 3)))
