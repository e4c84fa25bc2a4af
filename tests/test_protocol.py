"""Environments that bend Gymnasium's protocol are understood where that is safe, and refused by name where not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from metarl.agents.rl2 import RL2Config
from metarl.errors import ConfigError, NonFiniteError, TaskCheckError, WorkerError
from metarl.evaluation.evaluator import evaluate
from metarl.runs.folder import RunFolder
from metarl.runs.logger import read_metrics
from metarl.tasks.distribution import TaskDistribution
from metarl.testing import check_tasks
from metarl.trainer import TrainConfig, train
from metarl.vector.gym_env import GymVectorEnv
from metarl.vector.spaces import flat_spaces, own_action

CPU = torch.device("cpu")


class Base(gym.Env[Any, Any]):
    """Five steps, reward 1 each, nothing else; subclasses bend one thing."""

    observation_space: Any = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: Any = gym.spaces.Discrete(3)

    def __init__(self, task: Any) -> None:
        self.task, self.steps = task, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps >= 5, False, {}


def bent(**changes: Callable[[Any], Any]) -> type[Base]:
    """A class whose step returns what ``changes`` make of ``reward``, ``terminated``, ``info``, or ``all``."""

    class Bent(Base):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            if "all" in changes:
                return changes["all"]((observation, reward, terminated, truncated, info))
            return (
                observation,
                changes.get("reward", lambda _: reward)(self),
                changes.get("terminated", lambda _: terminated)(self),
                truncated,
                changes.get("info", lambda _: info)(self),
            )

    return Bent


def old_reset(returned: Any) -> type[Base]:
    class Old(Base):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return returned

    return Old


def of(make_env: Any, **settings: Any) -> TaskDistribution:
    return TaskDistribution(
        "test/bent", lambda rng: {"k": float(rng.uniform())}, make_env=make_env, horizon=6, **settings
    )


def step_once(make_env: Any) -> Any:
    env = GymVectorEnv(make_env, 2, first_task=0)
    env.reset(seed=0, options={"tasks": [0, 1]})
    return env.step([0, 0])


@pytest.mark.parametrize(
    "value",
    [2, np.float64(2), np.float32(2), np.array(2.0), np.array([2.0]), np.array([[2]]), torch.tensor([2.0])],
    ids=repr,
)
def test_one_number_is_a_reward_and_a_success_however_it_is_wrapped(value: Any) -> None:
    _, rewards, _, _, info = step_once(bent(reward=lambda env: value, info=lambda env: {"success": value}))
    assert rewards.tolist() == info["success"].tolist() == [2.0, 2.0]


def test_ends_may_be_of_any_kind_that_means_yes_or_no() -> None:
    for end in (True, np.bool_(True), 1, np.array([True])):
        assert step_once(bent(terminated=lambda env, end=end: end))[2].tolist() == [True, True]


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (
            bent(reward=lambda env: np.zeros(2)),
            r"reward is ndarray of shape \(2,\) and dtype float64, expected one number",
        ),
        (bent(reward=lambda env: None), "reward is None, expected one number"),
        (bent(reward=lambda env: "1.5"), "reward is '1.5', expected one number"),
        (bent(reward=lambda env: torch.ones(1, requires_grad=True)), r"reward is Tensor of shape \(1,\).*expected one"),
        (bent(info=lambda env: None), "step returned None as info, expected a dict"),
        (bent(info=lambda env: {"success": "yes"}), r"info\['success'\] is 'yes', expected one number"),
        (bent(info=lambda env: {"is_success": [1, 0]}), r"info\['is_success'\] is list \[1, 0\], expected one number"),
        (bent(terminated=lambda env: None), "terminated is None, expected True or False"),
        (
            bent(terminated=lambda env: np.ones(2, bool)),
            r"terminated is ndarray of shape \(2,\) and dtype bool, expected",
        ),
        (bent(all=lambda told: (*told[:3], told[4])), "step returned 4 values.*gym before 0.26.*`terminated`"),
        (bent(all=lambda told: told[0]), r"step returned ndarray of shape \(2,\).*expected the 5 values"),
        (old_reset(np.zeros(2)), r"reset returned ndarray of shape \(2,\).*gym before 0.26.*`return observation, {}`"),
        (old_reset([0.0, 0.0]), r"reset returned list \[0.0, 0.0\], expected the tuple \(observation, info\)"),
        (old_reset((0.0, 1.0)), "reset returned 1.0 as info, expected a dict"),
        (old_reset((np.zeros(2), None)), "reset returned None as info, expected a dict"),
    ],
)
def test_what_cannot_be_understood_is_named(make_env: Any, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        step_once(make_env)


class Duck:
    """Gymnasium's protocol without its class."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, task: Any) -> None:
        pass

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("make_env", "got"),
    [(Duck, "an instance of Duck"), (lambda task: None, "None"), (lambda task: Duck, "an instance of type")],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_no_environment_is_refused(make_env: Any, got: str, num_workers: int) -> None:
    message = f"make_env returned {got}, expected a gymnasium.Env: derive its class from gymnasium.Env"
    with pytest.raises(ConfigError, match=message):
        GymVectorEnv(make_env, 2, first_task=0, num_workers=num_workers)
    tasks = TaskDistribution("test/none", lambda rng: 0, make_env, horizon=3, shared_split=True)
    with pytest.raises(ConfigError, match=message):
        _ = tasks.spec
    with pytest.raises(TaskCheckError, match=message):
        check_tasks(tasks)


def test_a_reward_beyond_float32_is_blamed_on_the_environment_and_its_task() -> None:
    tasks = of(bent(reward=lambda env: 1e39))
    agent = RL2Config(hidden_size=4).build(tasks.spec, CPU, 0)
    with pytest.raises(NonFiniteError, match=r"test/bent: reward 1e\+39 at step 0 .*{'k': .*infinite in float32"):
        evaluate(agent, tasks, num_tasks=2, seed=0)


@pytest.mark.parametrize("key", ["success", "is_success"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_success_is_read_under_both_names_and_masked_where_nothing_was_said(key: str, num_workers: int) -> None:
    def make_env(task: Any) -> gym.Env[Any, Any]:
        return bent(info=lambda env: {key: np.array([task == 1])} if task else {})(task)

    env = GymVectorEnv(make_env, 3, first_task=0, num_workers=num_workers)
    env.reset(seed=0, options={"tasks": [0, 1, 2]})
    info = env.step([0, 0, 0])[4]
    env.close()
    assert info["success"].tolist() == [0.0, 1.0, 0.0]
    assert info["_success"].tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("info", "share"),
    [
        ({}, None),
        ({"success": None}, None),
        ({"success": float("nan")}, None),
        ({"success": False}, 0.0),
        ({"is_success": True}, 1.0),
        ({"success": np.array([1.0])}, 1.0),
    ],
)
def test_success_is_shown_where_it_is_reported_alone(tmp_path: Path, info: dict[str, Any], share: float | None) -> None:
    tasks = of(bent(info=lambda env: info))
    agent = RL2Config(hidden_size=4, episodes_per_trial=2).build(tasks.spec, CPU, 0)
    assert evaluate(agent, tasks, num_tasks=2, seed=0).mean_success == (None if share is None else [share] * 2)
    run = RunFolder.create(tmp_path, "run")
    train(agent, tasks, TrainConfig(num_iterations=1, meta_batch_size=2, eval_tasks=2, device="cpu"), run)
    told = {name: value for line in read_metrics(run.metrics) for name, value in line.items() if "success" in name}
    names = [f"{kind}/success_{shot}" for kind in ("train", "test") for shot in (0, 1)]
    assert told == ({} if share is None else dict.fromkeys(names, share))


def test_a_success_that_is_told_in_successful_episodes_alone_is_a_share_of_all() -> None:
    def make_env(task: Any) -> gym.Env[Any, Any]:
        return bent(info=lambda env: {"success": True} if task["k"] > 0.5 else {})(task)

    tasks = of(make_env)
    agent = RL2Config(hidden_size=4).build(tasks.spec, CPU, 0)
    found = evaluate(agent, tasks, num_tasks=20, seed=0).success
    assert found is not None and set(found[:, 0]) == {0.0, 1.0}


# Spaces ---------------------------------------------------------------------------------------------------------------

F32, F64 = np.float32, np.float64


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-1 / 3, 1 / 3, (2,), F64),
        gym.spaces.Box(0.1, 0.7, (2,), F64),
        gym.spaces.Box(-2, 2, (2, 2), np.float16),
        gym.spaces.Box(0, np.inf, (2,), F32),
        gym.spaces.Box(10, np.inf, (2,), F64),
        gym.spaces.Box(-np.inf, 5, (2,), F32),
        gym.spaces.Box(np.array([0, -1], F32), np.array([np.inf, 1], F32)),
        gym.spaces.Box(np.finfo(F32).min, np.finfo(F32).max, (2,), F32),
        gym.spaces.Box(-1e300, 1e300, (2,), F64),
        gym.spaces.Box(np.array([0, 1], F32), np.array([1, 1], F32)),
        gym.spaces.Discrete(3, start=-1),
    ],
    ids=str,
)
def test_no_action_leaves_its_space(space: Any) -> None:
    class Own(Base):
        action_space = space

        def step(self, action: Any) -> Any:
            assert space.contains(action), action
            return super().step(action)

    env = GymVectorEnv(Own, 3, first_task=0)
    env.reset(seed=0, options={"tasks": [0, 0, 0]})
    flat = flat_spaces(Own(0))[1]
    if isinstance(flat, gym.spaces.Discrete):
        env.step([0, 1, 2])
        return
    for size in (0.0, 0.43, 1.0, 1e6):
        env.step(size * np.array([[-1.0], [1.0], [0.1]], F32) * np.ones(flat.shape, F32))
    low = own_action(space, np.full(flat.shape, -1e30, F32))
    assert low.dtype == space.dtype and (low == np.maximum(space.low, -F32(1e30))).all()


class Sentence(gym.Space[str]):
    """A space of the user's own, which Gymnasium cannot flatten."""

    def __init__(self) -> None:
        super().__init__(None, None)


@pytest.mark.parametrize(
    ("space", "blamed"),
    [
        (Sentence(), "its class Sentence."),
        (gym.spaces.Dict(x=gym.spaces.Discrete(2), mission=Sentence()), "Sentence at ['mission']."),
        (
            gym.spaces.Tuple([gym.spaces.Dict(a=Sentence()), gym.spaces.Sequence(gym.spaces.Discrete(2))]),
            "Sentence at [0]['a'], Sequence at [1].",
        ),
        (gym.spaces.Dict(image=gym.spaces.Box(0, 1, (2,)), mission=gym.spaces.Text(9)), "Text at ['mission']."),
        (gym.spaces.Dict(), "a Dict without parts."),
        (gym.spaces.Dict(x=gym.spaces.Tuple([])), "a Tuple without parts at ['x']."),
    ],
    ids=["itself", "part", "parts of parts", "text", "nothing", "nothing in a part"],
)
def test_what_has_no_flat_form_is_named_with_its_place(space: Any, blamed: str) -> None:
    env = Base(0)
    env.observation_space = space
    with pytest.raises(ConfigError, match=f"because of {re.escape(blamed)} Accepted are"):
        flat_spaces(env)


class Goal:
    """A plain object as a task."""

    def __init__(self, place: float) -> None:
        self.place = place


def test_plain_objects_are_tasks() -> None:
    tasks = TaskDistribution("test/object", lambda rng: Goal(rng.uniform()), make_env=Base, horizon=5)
    drawn = [split.sample(5, np.random.default_rng(0)) for split in (tasks.train, tasks.test)]
    assert len({task.place for split in drawn for task in split}) == 10


# Vector environments of one's own -------------------------------------------------------------------------------------


class Image(Base):
    observation_space = gym.spaces.Box(0, 255, (4, 4), np.uint8)


class FromOne(Base):
    action_space = gym.spaces.Discrete(3, start=1)


class Several(Base):
    action_space = gym.spaces.MultiDiscrete([2, 2])


def sync(make_env: Any, mode: AutoresetMode = AutoresetMode.DISABLED, extra: int = 0) -> Any:
    return lambda num: SyncVectorEnv([lambda: make_env(0)] * (num + extra), autoreset_mode=mode)


@pytest.mark.parametrize(
    ("make_vector", "message"),
    [
        (
            sync(Base, AutoresetMode.NEXT_STEP),
            "autoreset_mode'. is AutoresetMode.NEXT_STEP; expected AutoresetMode.DISABLED",
        ),
        (sync(Base, AutoresetMode.SAME_STEP), "autoreset_mode'. is AutoresetMode.SAME_STEP; expected"),
        (sync(Image), r"observation space is Box\(0, 255, \(4, 4\), uint8\); expected a flat Box of floating-point"),
        (sync(FromOne), r"action space is Discrete\(3, start=1\); expected Discrete from 0"),
        (sync(Several), r"action space is MultiDiscrete\(\[2 2\]\); expected Discrete from 0"),
        (sync(Base, extra=1), r"make_vector\(1\) built 2 instances"),
    ],
)
def test_an_unfit_vector_environment_is_refused_before_anything_runs(make_vector: Any, message: str) -> None:
    tasks = TaskDistribution("test/own", lambda rng: 0, make_vector=make_vector, horizon=5, shared_split=True)
    with pytest.raises(ConfigError, match="test/own: make_vector.*" + message.removeprefix("make_vector")):
        _ = tasks.spec
    with pytest.raises(ConfigError, match="test/own: make_vector"):
        tasks.make_vector_env(1)
    fit = TaskDistribution("test/own", lambda rng: 0, make_vector=sync(Base), horizon=5, shared_split=True)
    assert fit.spec.obs_dim == 2
