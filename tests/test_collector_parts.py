"""A batch that is played in parts: what it gives is what a plain loop gives, and simulation overlaps with acting."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers.countdown import HORIZON, CountdownDynamics, countdown, sample

from metarl.agent import AgentConfig
from metarl.agents import MAMLTRPOConfig, RandomConfig, RL2Config
from metarl.benchmarks.speed.plain_collector import plain_rollout
from metarl.errors import ConfigError, NonFiniteError, WorkerError
from metarl.rollouts import collector as collector_module
from metarl.rollouts import recording
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.tasks import TaskDistribution, make
from metarl.types import Rollout
from metarl.vector.array_env import ArrayVectorEnv

CPU = torch.device("cpu")
GOOD = {"diverges_at": -1.0, "bad_obs_at": -1.0}
TASKS = [
    GOOD | {"name": 10.0 * i, "length": length, "jitter": 2.0} for i, length in enumerate([1.0, 8.0, 2.0, 3.0, 2.0], 1)
]
"""The episodes of the second part are shorter than those of the first."""


class Overlapping(ArrayVectorEnv):
    """Notes when a step begins and when its answer is taken."""

    events: ClassVar[list[tuple[str, int]]] = []

    def step_async(self, actions: Any) -> None:
        self.events.append(("begin", self.num_envs))
        self._answer = self.step(actions)

    def step_wait(self) -> Any:
        self.events.append(("end", self.num_envs))
        return self._answer


class InTurn(TaskDistribution):
    """Countdown in two parts."""

    num_parts: ClassVar[int] = 2


@pytest.fixture(autouse=True)
def small_batches_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "_INSTANCES", 1)


@pytest.fixture(autouse=True)
def events() -> list[tuple[str, int]]:
    Overlapping.events.clear()
    return Overlapping.events


def in_turn(discrete: bool = True) -> InTurn:
    make_vector = partial(Overlapping, CountdownDynamics(discrete), horizon=HORIZON)
    return InTurn(id="test/in-turn", sample=sample, make_vector=make_vector, horizon=HORIZON)


def tensors(rollout: Rollout) -> dict[str, torch.Tensor]:
    found = {f"timesteps.{f.name}": getattr(rollout.timesteps, f.name) for f in dataclasses.fields(rollout.timesteps)}
    return found | {f.name: getattr(rollout, f.name) for f in dataclasses.fields(rollout) if f.name != "timesteps"}


def assert_equal(found: Rollout, expected: Rollout, part: slice = slice(None)) -> None:
    """On what happened; behind the end of a part nothing is recorded."""
    length = expected.valid.shape[2]
    behind = found.valid[part, :, length:]
    assert not behind.any()
    for name, values in tensors(found).items():
        wanted = tensors(expected)[name]
        values = values[part]
        if values.dim() > 2 and name != "last_obs":
            assert not values[:, :, length:].any()
            values = values[:, :, :length]
        assert values.dtype == wanted.dtype and torch.equal(values, wanted), name


SMALL_RL2 = RL2Config(hidden_size=8, episodes_per_trial=3)
SMALL_MAML = MAMLTRPOConfig(hidden_sizes=(5,), rollouts_per_task=2, num_inner_steps=2)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("config", [SMALL_RL2, SMALL_MAML, RandomConfig()], ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("distribute", [in_turn, countdown])
def test_a_trial_is_that_of_the_plain_loop_bit_for_bit(distribute: Any, config: AgentConfig, discrete: bool) -> None:
    distribution = distribute(discrete)
    agent = config.build(distribution.spec, CPU, 0)
    collector = Collector(distribution, 2, CPU)
    trial = run_trial(agent, collector, TASKS, 2, seed=3, first_task=4)
    parts = collector.divide(len(TASKS))
    assert parts == ([slice(0, 2), slice(2, 5)] if distribute is in_turn else [slice(0, 5)])
    for part in parts:
        state, previous = agent.begin(part.stop - part.start), None
        for shot, rollout in enumerate(trial.rollouts):
            expected, state = plain_rollout(
                distribution, agent, state, TASKS[part], 2, 3, shot, 4 + part.start, previous
            )
            assert_equal(rollout, expected, part)
            state, previous = agent.adapt(state, expected), expected
    assert trial.rollouts[0].valid.shape[2] == HORIZON
    assert not torch.equal(trial.rollouts[0].obs, trial.rollouts[1].obs)


def test_one_part_is_simulated_while_the_agent_acts_in_the_other(events: list[tuple[str, int]]) -> None:
    """The second part ends after three steps or later, the first after one to five: what goes on goes on alone."""
    distribution = in_turn()
    tasks = [GOOD | {"name": 1.0, "length": length} for length in (2.0, 2.0, 4.0, 4.0, 4.0)]
    agent = RandomConfig().build(distribution.spec, CPU, 0)
    collector = Collector(distribution, 1, CPU)
    collector.collect_parts(agent, [agent.begin(2), agent.begin(3)], collector.divide(5), tasks)
    both = [("begin", 2), ("begin", 3), ("end", 2), ("begin", 2), ("end", 3), ("begin", 3), ("end", 2), ("end", 3)]
    alone = [("begin", 3), ("end", 3)]
    assert events == [*both, *alone, *alone]


def test_a_state_for_all_tasks_is_played_undivided(events: list[tuple[str, int]]) -> None:
    distribution = in_turn()
    agent = RandomConfig().build(distribution.spec, CPU, 0)
    collector = Collector(distribution, 1, CPU)
    rollout, _ = collector.collect(agent, agent.begin(5), TASKS)
    assert rollout.valid.shape[:2] == (5, 1) and events == []


@pytest.mark.parametrize(("num_tasks", "sizes"), [(1, [1]), (2, [1, 1]), (5, [2, 3])])
def test_parts_are_as_large_as_each_other(num_tasks: int, sizes: list[int]) -> None:
    parts = Collector(in_turn(), 3, CPU).divide(num_tasks)
    assert [part.stop - part.start for part in parts] == sizes and parts[0].start == 0
    assert all(one.stop == other.start for one, other in itertools.pairwise(parts))


def test_small_batches_are_played_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "_INSTANCES", 12)
    assert Collector(in_turn(), 4, CPU).divide(3) == [slice(0, 1), slice(1, 3)]
    assert Collector(in_turn(), 3, CPU).divide(3) == Collector(countdown(), 4, CPU).divide(3) == [slice(0, 3)]


@pytest.mark.parametrize("row", [0, 4])
def test_a_simulation_that_diverges_in_one_part_leaves_the_other_alone(row: int) -> None:
    distribution = in_turn()
    agent = RandomConfig().build(distribution.spec, CPU, 0)
    bad = [task | {"diverges_at": 0.0} if index == row else task for index, task in enumerate(TASKS)]
    found, healthy = (
        run_trial(agent, Collector(distribution, 2, CPU), tasks, 0, seed=0).rollouts[0] for tasks in (bad, TASKS)
    )
    assert found.invalid.any(1).tolist() == [index == row for index in range(5)]
    others = [index for index in range(5) if index != row]
    for name, values in tensors(found[others]).items():
        assert torch.equal(values, tensors(healthy[others])[name]), name


def test_an_error_in_one_part_frees_the_others_and_the_next_rollout_works() -> None:
    distribution = in_turn()
    agent = RandomConfig().build(distribution.spec, CPU, 0)
    collector = Collector(distribution, 2, CPU)
    bad = [*TASKS[:4], TASKS[4] | {"bad_obs_at": 1.0, "name": 77.0}]
    with pytest.raises(NonFiniteError, match=r"observation \[nan nan\] at step 2 in an environment of task .*77"):
        run_trial(agent, collector, bad, 0, seed=0)
    again = run_trial(agent, collector, TASKS, 0, seed=0)
    fresh = run_trial(agent, Collector(distribution, 2, CPU), TASKS, 0, seed=0)
    assert_equal(again.rollouts[0], fresh.rollouts[0])


class Doubling(Overlapping):
    """Changes ``step`` alone, as one may who derives an environment from Gymnasium's AsyncVectorEnv."""

    def step(self, actions: Any) -> Any:
        obs, rewards, *rest = ArrayVectorEnv.step(self, actions)
        return (obs, 2 * rewards, *rest)

    def step_async(self, actions: Any) -> None:
        self._answer = ArrayVectorEnv.step(self, actions)


def test_environments_are_asked_to_overlap_where_their_distribution_says_so_alone() -> None:
    make_vector = partial(Doubling, CountdownDynamics(discrete=True), horizon=HORIZON)
    agent = RandomConfig().build(countdown().spec, CPU, 0)
    one, double = (
        run_trial(agent, Collector(chosen, 2, CPU), TASKS, 0, seed=0).rollouts[0]
        for chosen in (countdown(), dataclasses.replace(countdown(), make_vector=make_vector))
    )
    assert torch.equal(double.rewards, 2 * one.rewards) and one.rewards.any()


def test_an_episode_may_outgrow_the_room_that_there_is_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = RandomConfig().build(in_turn().spec, CPU, 0)
    trials = []
    for room in (512, 2):
        monkeypatch.setattr(recording, "_ROOM", room)
        trials.append(run_trial(agent, Collector(in_turn(), 2, CPU), TASKS, 1, seed=0))
    for whole, grown in zip(trials[0].rollouts, trials[1].rollouts, strict=True):
        assert_equal(grown, whole)


class Squeezed(ArrayVectorEnv):
    """Observations of another size than its space says."""

    def step(self, actions: Any) -> Any:
        obs, *rest = super().step(actions)
        return (obs[:, :1], *rest)


def test_observations_of_another_shape_are_refused() -> None:
    """Broadcast into place they would be believed."""
    make_vector = partial(Squeezed, CountdownDynamics(discrete=True), horizon=HORIZON)
    distribution = dataclasses.replace(countdown(), make_vector=make_vector)
    agent = RandomConfig().build(distribution.spec, CPU, 0)
    with pytest.raises(ConfigError, match=r"test/countdown: observations have shape \(5, 1\), expected \(5, 2\)"):
        Collector(distribution, 1, CPU).collect(agent, agent.begin(5), TASKS)


# Meta-World -----------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("workers", [1, 3])
def test_meta_world_in_parts_is_meta_world(workers: int) -> None:
    pytest.importorskip("metaworld")
    distribution: Any = dataclasses.replace(make("ml1/reach-v3"), horizon=12, pool_workers=workers)  # type: ignore[call-arg]
    agent = dataclasses.replace(SMALL_RL2, episodes_per_trial=2).build(distribution.spec, CPU, 0)
    tasks = distribution.train.sample(3, np.random.default_rng(0))
    collector = Collector(distribution, 1, CPU)
    try:
        trial = run_trial(agent, collector, tasks, 1, seed=0)
        assert [env.num_envs for env in collector._envs] == [1, 2]
    finally:
        collector.close()
    for part in collector.divide(3):
        state, previous = agent.begin(part.stop - part.start), None
        for shot, rollout in enumerate(trial.rollouts):
            expected, state = plain_rollout(distribution, agent, state, tasks[part], 1, 0, shot, part.start, previous)
            assert_equal(rollout, expected, part)
            previous = expected


def test_a_step_that_is_under_way_is_waited_for_before_anything_else() -> None:
    pytest.importorskip("metaworld")
    env: Any = make("ml1/reach-v3").make_vector_env(2)
    tasks = make("ml1/reach-v3").train.sample(2, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="step_wait without a step under way: call step_async first"):
        env.step_wait()
    env.reset(options={"tasks": tasks})
    actions = np.zeros((2, 4), np.float32)
    env.step_async(actions)
    for call in (lambda: env.step_async(actions), lambda: env.step(actions), env.reset):
        with pytest.raises(ConfigError, match="a step is under way: take its results with step_wait first"):
            call()
    in_turn_, env2 = env.step_wait(), make("ml1/reach-v3").make_vector_env(2)
    env2.reset(options={"tasks": tasks})
    at_once = env2.step(actions)
    assert all(np.array_equal(one, other) for one, other in zip(in_turn_[:4], at_once[:4], strict=True))
    env.step_async(actions)
    env.close()  # In the middle of a step, without a hang.
    env2.close()
    with pytest.raises(WorkerError, match="closed"):
        env.step_wait()
