"""RL²: what acting saw is what learning recomputes, and one PPO step equals a float64 loop over sequences and time."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.countdown import HORIZON, countdown
from helpers.reference_recurrent_ppo import CPU, TASKS, TrialReference, gru_cell, linear, off_policy, play, randomise
from torch import Tensor

from metarl.agents.rl2 import RL2, RL2Config, SNAILConfig
from metarl.config import from_dict
from metarl.envs.bandits import BanditDynamics
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.seeding import numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Spec, Trial
from metarl.vector.array_env import ArrayVectorEnv

CONFIG = RL2Config(
    hidden_size=6, episodes_per_trial=3, rollouts_per_task=3, num_epochs=1, num_minibatches=1, value_coef=0.7
)


def build(discrete: bool, config: RL2Config = CONFIG) -> RL2:
    """An agent whose heads are far from zero, so that its memory matters."""
    agent = config.build(countdown(discrete).spec, CPU, 0)
    randomise(agent.memory)
    return agent


def trials(discrete: bool) -> tuple[RL2, Trial, Trial]:
    """An agent that has learned from one trial, that trial, and one played since."""
    agent = build(discrete)
    first = play(agent, 0)
    agent.meta_update(first)
    return agent, first, play(agent, 1)


@pytest.mark.parametrize("discrete", [True, False])
def test_recomputed_log_probs_equal_those_of_acting(discrete: bool) -> None:
    agent, _, trial = trials(discrete)
    lengths = torch.stack([rollout.lengths for rollout in trial.rollouts])
    assert lengths.min() == 1 and lengths.max() == HORIZON and (lengths.float().std(0) > 0).any()
    batch = agent.sequences(trial)
    policy, _, _ = agent.forward(batch.inputs, agent.no_memory(len(batch.inputs)))
    difference = (policy.log_prob(batch.actions) - batch.log_probs)[batch.valid]
    assert difference.abs().max() < 1e-5
    assert batch.valid.sum() == lengths.sum()
    shifted, _, _ = agent.forward(batch.inputs, agent.no_memory(len(batch.inputs)) + 0.1)
    assert (shifted.log_prob(batch.actions) - batch.log_probs)[batch.valid].abs().max() > 1e-3


@pytest.mark.parametrize("discrete", [True, False])
def test_sequences_are_the_episodes_of_a_trial_end_to_end(discrete: bool) -> None:
    agent, _, trial = trials(discrete)
    batch = agent.sequences(trial)
    for row in range(len(TASKS) * 3):
        task, slot = divmod(row, 3)
        for name in ("actions", "log_probs"):
            pieces = [getattr(r, name)[task, slot, : int(r.lengths[task, slot])] for r in trial.rollouts]
            assert torch.equal(getattr(batch, name)[row][batch.valid[row]], torch.cat(pieces))
        assert (batch.valid[row].long().diff() <= 0).all()
    assert batch.valid.any(0).all()


def test_memory_stands_still_in_padding_and_moves_otherwise() -> None:
    agent = build(True)
    trial = play(agent, 0)
    timesteps = trial.rollouts[0].timesteps
    state = agent.begin(len(TASKS))
    for t in range(HORIZON):
        valid = timesteps.valid[:, :, t]
        _, following = agent.act(state, timesteps[:, :, t])
        state = state.expand_as(following)
        assert torch.equal(following[~valid], state[~valid])
        assert ((following - state).abs().amax(-1) > 0)[valid].all()
        state = following
    assert agent.adapt(state, trial.rollouts[0]) is state


@pytest.mark.parametrize("discrete", [True, False])
def test_memory_is_kept_over_the_episodes_of_a_trial(discrete: bool) -> None:
    """The state after a trial equals a GRU cell, written out, over all steps of all its episodes."""
    agent = build(discrete)
    agent.seed(0)
    distribution = countdown(discrete)
    collector = Collector(distribution, 3, CPU)
    state, rollouts = agent.begin(len(TASKS)), []
    for _ in range(3):
        rollout, state = collector.collect(agent, state, TASKS, previous=rollouts[-1] if rollouts else None)
        rollouts.append(rollout)
        state = agent.adapt(state, rollout)
    plain = Reference(agent, [])
    for task in range(len(TASKS)):
        for slot in range(3):
            hidden = torch.zeros(6)
            for rollout in rollouts:
                for t in range(int(rollout.lengths[task, slot])):
                    hidden = plain.cell(plain.inputs(rollout.timesteps[task, slot, t]), hidden)
            assert (hidden - state[task, slot]).abs().max() < 1e-5


class Reference(TrialReference):
    """Policy and value from a GRU that runs over the trial, behind tanh layers if there are any."""

    def __init__(self, agent: RL2, earlier: list[Trial]) -> None:
        super().__init__(agent, agent.memory, earlier)
        assert isinstance(agent.config, RL2Config)
        self.own = agent.config

    def cell(self, x: Tensor, hidden: Tensor) -> Tensor:
        for layer in range(len(self.own.encoder_sizes)):
            x = torch.tanh(linear(self.params, f"encoder.{2 * layer}", x))
        return gru_cell(self.params, x, hidden)

    def run(self, trial: Trial, row: tuple[int, int]) -> tuple[list[dict[str, Any]], float]:
        """Behind the end of a trial there is nothing to be worth anything."""
        hidden, steps = torch.zeros(self.own.hidden_size), []
        for rollout in trial.rollouts:
            episode = rollout[row]
            for t in range(int(episode.valid.sum())):
                if self.own.bptt_steps and len(steps) % self.own.bptt_steps == 0:
                    hidden = hidden.detach()
                hidden = self.cell(self.inputs(episode.timesteps[t]), hidden)
                step: dict[str, Any] = {"action": episode.actions[t], "behaviour": episode.log_probs[t]}
                step["policy"] = self.policy(linear(self.params, "policy_head", hidden))
                step["value"] = linear(self.params, "value_head", hidden)[0]
                steps.append({**step, "reward": episode.rewards[t]})
        return steps, 0.0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(("normalised", "centred"), [(True, False), (True, True), (False, False)])
def test_ppo_step_equals_the_reference(discrete: bool, normalised: bool, centred: bool) -> None:
    """Advantages run on across the ends of episodes; moments are those of the trials before this one."""
    torch.set_default_dtype(torch.float32)
    config = dataclasses.replace(CONFIG, normalise_obs=normalised, normalise_rewards=normalised, max_grad_norm=0.5)
    config = dataclasses.replace(config, centre_rewards=centred)
    actor = build(discrete, config)
    first, second = play(actor, 0), play(actor, 1)
    torch.set_default_dtype(torch.float64)
    agent = build(discrete, config)
    first, second = off_policy(first, 0), off_policy(second, 1)
    if normalised:
        agent.update_return_moments(first)
        for rollout in first.rollouts:
            agent.obs_moments.update(rollout.obs, rollout.valid)
            agent.reward_moments.update(rollout.rewards[..., None], rollout.valid)
    reference = Reference(agent, [first] if normalised else [])
    scale = reference.return_std([first, second]) if normalised else torch.ones(1)
    expected = reference.step(second, scale)
    metrics = agent.meta_update(second)
    for name, parameter in agent.memory.named_parameters():
        assert (parameter - expected[name]).abs().max() < 1e-8, name
        assert (parameter - reference.params[name]).abs().max() > 1e-6, name
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bptt_steps", [1, 4, 100])
def test_truncated_ppo_step_equals_the_reference(bptt_steps: int) -> None:
    """Behind an encoder; memories are cut off from the gradient at the start of every piece."""
    torch.set_default_dtype(torch.float32)
    config = dataclasses.replace(CONFIG, bptt_steps=bptt_steps, encoder_sizes=(5, 4), max_grad_norm=0.1)
    trial = play(build(True, config), 0)
    torch.set_default_dtype(torch.float64)
    agent, trial = build(True, config), off_policy(trial, 0)
    reference = Reference(agent, [])
    expected = reference.step(trial, reference.return_std([trial]))
    agent.meta_update(trial)
    for name, parameter in agent.memory.named_parameters():
        assert (parameter - expected[name]).abs().max() < 1e-8, name


def test_pieces_hold_every_step_once_with_the_memory_before_it() -> None:
    agent, _, trial = trials(True)
    whole = agent.sequences(trial)
    agent.bptt_steps = 4
    pieces = agent.sequences(trial)
    assert pieces.valid.any(1).all() and pieces.valid.sum() == whole.valid.sum()
    assert len(pieces.valid) > len(whole.valid) and pieces.inputs.shape[1] == 4
    for name in ("actions", "log_probs", "advantages", "value_targets"):
        assert torch.allclose(getattr(pieces, name)[pieces.valid], getattr(whole, name)[whole.valid], atol=1e-5), name
    policy, _, _ = agent.forward(pieces.inputs, pieces.memory)
    assert (policy.log_prob(pieces.actions) - pieces.log_probs)[pieces.valid].abs().max() < 1e-5


def test_bfloat16_acts_and_learns_by_the_same_numbers() -> None:
    """Within the format's 8 bits of float32's, and the recomputed log-probabilities are those of acting."""
    config = dataclasses.replace(CONFIG, precision="bfloat16", encoder_sizes=(8,))
    agent = build(False, config)
    trial = play(agent, 0)
    batch = agent.sequences(trial)
    policy, _, _ = agent.forward(batch.inputs, batch.memory)
    assert (policy.log_prob(batch.actions) - batch.log_probs)[batch.valid].abs().max() < 0.05
    exact = build(False, dataclasses.replace(config, precision="float32"))
    mean, _, _ = exact.forward(batch.inputs, batch.memory)
    gap = (mean.mode() - policy.mode())[batch.valid].abs()
    assert 0 < gap.mean() < 0.02, gap.mean()
    before = [parameter.clone() for parameter in agent.memory.parameters()]
    metrics = agent.meta_update(trial)
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(p.dtype == torch.float32 for p in agent.memory.parameters())
    assert any((p - q).abs().max() > 1e-6 for p, q in zip(agent.memory.parameters(), before, strict=True))


def test_every_sequence_is_visited_once_in_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build(True, dataclasses.replace(CONFIG, num_epochs=3, num_minibatches=5))
    visited: list[Tensor] = []
    original = agent.ppo_step

    def spy(batch: Any) -> Tensor:
        visited.append(batch.inputs)
        return original(batch)

    monkeypatch.setattr(agent, "ppo_step", spy)
    trial = play(agent, 0)
    agent.meta_update(trial)
    assert [len(inputs) for inputs in visited] == [3, 3, 3, 3] * 3
    for epoch in range(3):
        sums = torch.cat([inputs.sum((1, 2)) for inputs in visited[4 * epoch : 4 * epoch + 4]]).sort().values
        assert torch.equal(sums, torch.cat([inputs.sum((1, 2)) for inputs in visited[:4]]).sort().values)
        assert sums.unique().numel() == 12


# Probes ---------------------------------------------------------------------------------------------------------------


class OneStep:
    """One step with a table of rewards by task and action, and the task in the observation if ``shown``."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, rewards: Any, shown: bool) -> None:
        self.rewards, self.shown = np.array(rewards), shown

    def reset(self, params: Any, rng: np.random.Generator, num: int) -> Any:
        return np.zeros((num, 1))

    def step(self, state: Any, action: Any, params: Any, rng: np.random.Generator) -> Any:
        return state, self.rewards[params["task"], action], np.ones(len(state), bool), {}

    def observe(self, state: Any, params: Any) -> Any:
        return 2.0 * params["task"][:, None] - 1.0 if self.shown else state


def one_step(rewards: Any, shown: bool = False) -> TaskDistribution:
    return TaskDistribution(
        id="test/one-step",
        sample=lambda rng: {"task": int(rng.integers(2))},
        make_vector=lambda num: ArrayVectorEnv(OneStep(rewards, shown), num, 1),
        horizon=1,
        shared_split=True,
    )


def arms(num_pulls: int) -> TaskDistribution:
    """Two arms; the task is which of them pays 1, the other paying 0."""
    return TaskDistribution(
        id="test/arms",
        sample=lambda rng: {"means": np.eye(2)[rng.integers(2)]},
        make_vector=lambda num: ArrayVectorEnv(BanditDynamics(2, "bernoulli"), num, num_pulls),
        horizon=num_pulls,
        shared_split=True,
    )


def train(config: RL2Config, distribution: TaskDistribution, num_iterations: int) -> RL2:
    agent = config.build(distribution.spec, CPU, 0)
    collector = Collector(distribution, agent.rollouts_per_task, CPU)
    for iteration in range(num_iterations):
        tasks = distribution.train.sample(64, numpy_stream(0, "tasks", iteration))
        agent.meta_update(run_trial(agent, collector, tasks, agent.num_adaptations, seed=iteration))
    return agent


PROBE = RL2Config(hidden_size=16, meta_lr=1e-2, num_epochs=4, entropy_coef=0.0)


def test_second_action_is_read_off_the_first_reward() -> None:
    """The first reward's sign is the task, whatever was done; at a first step nothing is known."""
    distribution = one_step([[1.0, 0.6], [-1.0, -0.6]])
    agent = train(PROBE, distribution, 40)
    found = evaluate(agent, distribution, num_tasks=300, num_adaptations=1, seed=1)
    best = np.where(found.returns[:, 0] > 0, 1.0, -0.6)
    share_first, share_second = (np.isclose(found.returns, best[:, None])).mean(0)
    assert share_second >= 0.95 and share_first < 0.7, (share_first, share_second)


def test_best_arm_is_pulled_from_the_second_pull_on() -> None:
    """Within one episode, and from the first pull on in the second episode: memory outlives an episode's end."""
    distribution = arms(3)
    agent = train(PROBE, distribution, 40)
    found = evaluate(agent, distribution, num_tasks=300, num_adaptations=1, seed=1)
    first, second = found.returns.mean(0)
    assert 2.35 < first < 2.65 and second / 3 >= 0.95, (first, second)


def test_observation_probe_tells_the_tasks_apart_at_the_first_step() -> None:
    distribution = one_step([[1.0, 0.0], [0.0, 1.0]], shown=True)
    agent = train(dataclasses.replace(PROBE, episodes_per_trial=1), distribution, 30)
    assert evaluate(agent, distribution, num_tasks=300, seed=1).returns.mean() >= 0.95


def test_value_probe_learns_discounted_values_across_episodes() -> None:
    """Reward 1 in both of two one-step episodes: values 1 + discount and 1 (unnormalised)."""
    config = dataclasses.replace(PROBE, normalise_rewards=False, discount=0.5, gae_lambda=1.0)
    distribution = one_step([[1.0, 1.0], [1.0, 1.0]])
    agent = train(config, distribution, 60)
    trial = run_trial(agent, Collector(distribution, 1, CPU), [{"task": 0}, {"task": 1}], 1, 0)
    batch = agent.sequences(trial)
    _, values, _ = agent.forward(batch.inputs, agent.no_memory(2))
    assert (values - torch.tensor([1.5, 1.0])).abs().max() < 0.1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("episodes_per_trial", -1),
        ("meta_lr", 0.0),
        ("num_minibatches", 0),
        ("bptt_steps", -1),
        ("encoder_sizes", (16, 0)),
        ("discount", 1.01),
    ],
)
def test_impossible_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"RL2Config\.{field} must .*{re.escape(str(value))}"):
        RL2Config(**{field: value})


def test_rewards_that_are_mostly_constant_are_told_of_once_unless_they_are_centred(
    recwarn: pytest.WarningsRecorder,
) -> None:
    def told(level: float, **settings: Any) -> list[str]:
        agent = dataclasses.replace(CONFIG, **settings).build(Spec(1, 2, True, horizon=4), torch.device("cpu"), 0)
        for rewards in (torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.0, 0.0]]])):
            agent.reward_moments.update(level + rewards[..., None], torch.ones(1, 1, 2, dtype=torch.bool))
            agent._warn_of_constant_part()
        found = [str(warning.message) for warning in recwarn]
        recwarn.clear()
        return found

    assert told(0.0) == told(1.9) == told(100.0, centre_rewards=True) == told(100.0, normalise_rewards=False) == []
    (message,) = told(100.0)
    assert "a mean of 100.5 and a standard deviation of 0.5" in message and "around 201" in message
    assert len(told(-100.0)) == 1
    with pytest.raises(
        ConfigError, match=r"RL2Config\.centre_rewards acts with normalise_rewards True alone, got True with False"
    ):
        RL2Config(centre_rewards=True, normalise_rewards=False)


def test_settings_that_are_not_among_the_choices_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"RL2Config\.precision must be one of float32, bfloat16, got 'float16'"):
        RL2Config(precision="float16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"RL2Config\.memory must be one of gru, lstm, transformer, got 'snail'"):
        RL2Config(memory="snail")  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "value"), [("bptt_steps", 10), ("encoder_sizes", (8,)), ("memory", "gru")])
def test_snail_takes_no_setting_of_recurrent_networks(field: str, value: Any) -> None:
    """Older config files hold them with values that do nothing, and still open."""
    with pytest.raises((TypeError, ConfigError), match=field):
        SNAILConfig(**{field: value})
    assert from_dict(SNAILConfig, {"memory": "snail", "bptt_steps": 0, "encoder_sizes": []}) == SNAILConfig()
