"""What an agent does in one ordinary environment is what it does when it is collected from."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.rooms import HORIZON, Room, rooms
from torch import Tensor

from metarl import OnlineLearner
from metarl.agent import Agent, AgentConfig
from metarl.agents import AGENTS, MAMLTRPOConfig, RL2Config, SNAILConfig
from metarl.agents.common.gradient_agent import FastWeights
from metarl.errors import ConfigError, NonFiniteError, WorkerError
from metarl.rollouts.actions import env_actions
from metarl.rollouts.collector import Collector, episode_seeds
from metarl.types import Spec
from metarl.vector.contract import ClosedError, ResetNeededError
from metarl.vector.spaces import flat_spaces, own_action

CPU = torch.device("cpu")
SEED = 7
SMALL = {"hidden_sizes": (8,), "rollouts_per_task": 3, "hidden_size": 8}
"""Settings of whatever agent has them."""


def _config(name: str, **settings: Any) -> AgentConfig:
    fields = {field.name for field in dataclasses.fields(AGENTS[name])}
    return AGENTS[name](**{key: value for key, value in (SMALL | settings).items() if key in fields})


def _build(name: str, discrete: bool, **settings: Any) -> Agent[Any]:
    return _config(name, **settings).build(rooms(discrete).spec, CPU, 3)


def _collected(agent: Agent[Any], discrete: bool, slots: int, num: int) -> list[tuple[Any, Any]]:
    """Rollouts of one task and the states behind them, by the collector."""
    distribution = rooms(discrete)
    collector = Collector(distribution, slots, CPU)
    agent.seed(SEED)
    collector.seed(SEED)
    state, previous, found = agent.begin(1), None, []
    for number in range(num):
        rollout, state = collector.collect(agent, state, [{"best": 6.0}], previous)
        found.append((rollout, state))
        previous = rollout
        if number + 1 < num:
            state = agent.adapt(state, rollout)
    collector.close()
    return found


def _play(learner: OnlineLearner[Any], env: Room, seed: int) -> list[Any]:
    obs, _ = env.reset(seed=seed)
    learner.reset()
    actions, over = [], False
    while not over:
        actions.append(learner.act(obs))
        obs, reward, terminated, truncated, _ = env.step(actions[-1])
        over = learner.observe(reward, terminated, truncated, obs)
    return actions


def _tensors(state: Any) -> dict[str, Tensor]:
    return state.params if isinstance(state, FastWeights) else {"memory": state} if isinstance(state, Tensor) else {}


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("name", [name for name in AGENTS if name != "oracle"])
def test_a_learner_gives_the_numbers_of_the_collector(name: str, discrete: bool) -> None:
    agent, env = _build(name, discrete), Room(6.0, discrete)
    has_memory = _config(name).adapts_by == "episode"
    slots = 1 if has_memory else agent.rollouts_per_task
    num = 1 + agent.num_adaptations
    expected = _collected(agent, discrete, slots, num)
    learner = OnlineLearner(agent, env, seed=SEED)
    flat = flat_spaces(env)[1]
    for number, (rollout, state) in enumerate(expected):
        seeds = episode_seeds(SEED, number, 1, slots)[0]
        for slot in range(slots):
            actions = _play(learner, env, int(seeds[slot]))
            length = int(rollout.lengths[0, slot])
            assert len(actions) == length <= HORIZON
            chosen = env_actions(flat, rollout.actions[0, slot, :length])
            for action, flat_action in zip(actions, chosen, strict=True):
                np.testing.assert_allclose(action, own_action(env.action_space, flat_action), rtol=1e-6, atol=1e-6)
        assert learner.num_adaptations == (number if agent.num_adaptations else 0)
        for key, value in _tensors(state).items():
            torch.testing.assert_close(_tensors(learner.state)[key], value, rtol=1e-5, atol=1e-6)
    assert any(int(rollout.lengths.min()) < HORIZON for rollout, _ in expected)


@pytest.mark.parametrize("name", ["maml-trpo", "rl2", "varibad"])
def test_with_one_episode_between_adaptations_the_bits_are_the_collectors(name: str) -> None:
    agent, env = _build(name, False, rollouts_per_task=1), Room(6.0, False)
    expected = _collected(agent, False, 1, 3)
    learner = OnlineLearner(agent, env, seed=SEED)
    for number, (_, state) in enumerate(expected):
        _play(learner, env, int(episode_seeds(SEED, number, 1, 1)[0, 0]))
        for key, value in _tensors(state).items():
            assert torch.equal(_tensors(learner.state)[key], value)


def test_gradient_steps_end_and_begin_forgets_them() -> None:
    agent = _build("maml-trpo", True)
    learner = OnlineLearner(agent, Room(6.0, True), num_adaptations=1)
    start = {name: value.clone() for name, value in learner.state.params.items()}
    first = learner.play(3, seed=1)
    assert learner.num_adaptations == 0 and learner.adapt() and not learner.adapt()
    adapted = learner.state
    assert any(not torch.equal(start[name], value) for name, value in adapted.params.items())
    learner.play(4)
    assert learner.num_adaptations == 1 and learner.state is adapted
    learner.begin()
    assert learner.num_adaptations == 0
    assert all(torch.equal(start[name], value) for name, value in learner.state.params.items())
    assert learner.play(3, seed=1) == first


def test_two_learners_of_one_agent_do_not_disturb_each_other() -> None:
    agent = _build("maml-trpo", False)
    alone = _play(OnlineLearner(agent, Room(6.0, False), seed=1), Room(6.0, False), 0)
    learners = [OnlineLearner(agent, Room(6.0, False), seed=seed) for seed in (1, 2)]
    envs = [Room(6.0, False), Room(6.0, False)]
    seen = [env.reset(seed=0)[0] for env in envs]
    for step in range(len(alone)):
        actions = [learner.act(obs) for learner, obs in zip(learners, seen, strict=True)]
        np.testing.assert_array_equal(actions[0], alone[step])
        assert not np.array_equal(actions[0], actions[1])
        for index, (learner, env) in enumerate(zip(learners, envs, strict=True)):
            seen[index], reward, terminated, truncated, _ = env.step(actions[index])
            learner.observe(reward, terminated, truncated, seen[index])


def test_deterministic_actions_are_the_mode() -> None:
    agent = _build("maml-trpo", False)
    env = Room(6.0, False)
    obs, _ = env.reset(seed=0)
    actions = [OnlineLearner(agent, env, seed=seed).act(obs, deterministic=True) for seed in (0, 1)]
    np.testing.assert_array_equal(*actions)


def test_an_episode_ends_at_the_horizon_whatever_the_environment_says() -> None:
    learner = OnlineLearner(_build("rl2", True), Room(6.0, True))
    obs = {"noise": np.zeros(2), "floor": 1}
    for step in range(HORIZON):
        learner.act(obs)
        assert learner.observe(0.0, False, False, obs) == (step == HORIZON - 1)
    with pytest.raises(ResetNeededError, match=f"ended after {HORIZON} steps"):
        learner.act(obs)


# Mistakes ------------------------------------------------------------------------------------------------------------

OBS = {"noise": np.zeros(2), "floor": 1}
OTHER = {"noise": np.ones(2), "floor": 1}


def _learner(name: str = "rl2", **settings: Any) -> OnlineLearner[Any]:
    return OnlineLearner(_build(name, True), Room(6.0, True), **settings)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Room(6.0, False), "built for 5 numbers of observation and 3 choices, but Room has 5 and 2 action coordinates"),
        (gym.make("CartPole-v1"), "but CartPole-v1 has 4 and 2 choices"),
        (
            gym.make_vec("CartPole-v1", 2),
            "needs one environment, a gymnasium.Env, got an instance of CartPoleVectorEnv",
        ),
        ("CartPole-v1", "got an instance of str"),
    ],
)
def test_a_learner_refuses_other_environments(env: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OnlineLearner(_build("rl2", True), env)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"noise": np.zeros(2)}, "is no observation of Dict.*KeyError: 'floor'"),
        ({"noise": np.zeros(3), "floor": 1}, "observation of 6 numbers, expected 5"),
        ({"noise": np.zeros(2), "floor": 9}, "is no observation of Dict"),
        (None, "None is no observation of Dict"),
    ],
)
def test_an_observation_of_another_form_is_refused(obs: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _learner().act(obs)


def test_calls_in_another_order_are_refused() -> None:
    learner = _learner()
    with pytest.raises(ConfigError, match="observe was called before act"):
        learner.observe(0.0, False, False, OBS)
    learner.act(OBS)
    with pytest.raises(ConfigError, match="act was called twice"):
        learner.act(OBS)
    with pytest.raises(ConfigError, match=r"has not ended\. Tell its end first"):
        learner.reset()
    learner.observe(0.0, False, False, OTHER)
    with pytest.raises(ConfigError, match=r"at step 1 act got \[.*\], but observe was told .* call learner.reset"):
        learner.act(OBS)
    with pytest.raises(ConfigError, match="has not ended"):
        learner.reset()
    learner.act(OTHER)
    assert learner.observe(0.0, True, False, OBS)
    with pytest.raises(ResetNeededError, match="reset the environment and the learner"):
        learner.act(OBS)
    learner.reset()
    learner.act(OBS)


def test_values_of_another_kind_and_nan_are_refused_and_can_be_told_again() -> None:
    learner = _learner()
    with pytest.raises(NonFiniteError, match=r"Room: observation .* at step 0"):
        learner.act({"noise": np.array([np.nan, 0.0]), "floor": 1})
    learner.act(OBS)
    bad: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((np.nan, False, False, OBS), NonFiniteError, "Room: reward nan at step 0"),
        ((0.0, False, False, {"noise": np.full(2, np.inf), "floor": 1}), NonFiniteError, "observation .* at step 1"),
        (("much", False, False, OBS), ConfigError, "reward is 'much', expected one number"),
        ((0.0, "yes", False, OBS), ConfigError, "terminated is 'yes', expected True or False"),
        ((0.0, False, False, None), ConfigError, "None is no observation"),
    ]
    for values, kind, message in bad:
        with pytest.raises(kind, match=message):
            learner.observe(*values)
    assert not learner.observe(0.0, False, False, OBS)
    learner.act(OBS)


def test_a_closed_environment_is_refused() -> None:
    env = gym.make("CartPole-v1")
    config = RL2Config(hidden_size=8)
    learner = OnlineLearner(config.build(Spec(4, 2, True, 20), CPU, 0), env)
    obs, _ = env.reset(seed=0)
    learner.act(obs)
    env.close()
    learner.observe(0.0, True, False, obs)
    learner.reset()
    with pytest.raises(ClosedError, match="CartPole-v1 was closed"):
        learner.act(obs)
    with pytest.raises(ClosedError, match="CartPole-v1 was closed"):
        learner.play()


def test_what_an_environment_raises_while_it_is_played_is_told() -> None:
    class Broken(Room):
        def step(self, action: Any) -> Any:
            raise ValueError("the cable is loose")

    learner = OnlineLearner(_build("rl2", True), Broken(6.0, True))
    with pytest.raises(WorkerError, match="Broken raised in step: ValueError: the cable is loose"):
        learner.play()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("rl2", {"rollouts_per_task": 2}, "adapts by its memory.*got 2 and None"),
        ("varibad", {"num_adaptations": 2}, "adapts by its memory.*got None and 2"),
        ("maml-trpo", {"rollouts_per_task": 0}, "rollouts_per_task above 0"),
        ("maml-trpo", {"num_adaptations": -1}, "num_adaptations of 0 or more"),
    ],
)
def test_counts_that_cannot_be_are_refused(name: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _learner(name, **settings)


def test_a_snail_that_has_seen_its_trial_says_so_when_another_episode_begins() -> None:
    config = SNAILConfig(hidden_size=8, episodes_per_trial=2)
    learner = OnlineLearner(config.build(rooms(True).spec, CPU, 0), Room(6.0, True))
    for _ in range(2):
        for step in range(HORIZON):
            learner.act(OBS)
            learner.observe(0.0, step == HORIZON - 1, False, OBS)
        learner.reset()
    with pytest.raises(ConfigError, match="another episode of up to 6 does not fit"):
        learner.act(OBS)


def test_an_agent_whose_state_changes_as_it_acts_is_refused_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes that follow each other are not the independent ones that its gradient would need."""
    agent = _build("maml-trpo", True)
    act = agent.act
    monkeypatch.setattr(agent, "act", lambda *given: (act(*given)[0], agent.begin(1)))
    with pytest.raises(ConfigError, match=r"remembers what it sees.*use rollouts_per_task=1"):
        OnlineLearner(agent, Room(6.0, True)).act(OBS)
    OnlineLearner(agent, Room(6.0, True), rollouts_per_task=1).play(2)


def test_the_agent_is_never_changed() -> None:
    agent = MAMLTRPOConfig(hidden_sizes=(8,), rollouts_per_task=2).build(rooms(True).spec, CPU, 0)
    before = {name: value.clone() for name, value in agent.named_tensors().items()}
    OnlineLearner(agent, Room(6.0, True)).play(5, seed=0)
    assert all(torch.equal(before[name], value) for name, value in agent.named_tensors().items())


def test_noise_of_later_slots_is_that_of_all_slots_at_once() -> None:
    agent = _build("maml-trpo", False)
    agent.noise.seed(5)
    together = agent.noise.normal((1, 3, 2))
    for slot in range(3):
        agent.noise.seed(5, first_slot=slot)
        assert torch.equal(agent.noise.normal((1, 1, 2)), together[:, slot : slot + 1])
