"""The transformer memory against float64 loops over steps and heads, and what its cache promises."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from helpers.arms import arms, train
from helpers.countdown import countdown
from helpers.reference_recurrent_ppo import (
    CPU,
    TASKS,
    Params,
    TrialReference,
    copies,
    linear,
    off_policy,
    play,
    randomise,
)
from torch import Tensor

from metarl import evaluate
from metarl.agents.rl2 import RL2, RL2Config
from metarl.errors import ConfigError
from metarl.networks.memory import input_size
from metarl.networks.transformer import TransformerMemory
from metarl.testing import check_agent
from metarl.types import Spec, Trial

SPEC = Spec(obs_dim=3, action_dim=2, discrete=True, horizon=4)
CONFIG = RL2Config(
    memory="transformer",
    hidden_size=8,
    num_heads=2,
    encoder_sizes=(5,),
    episodes_per_trial=3,
    rollouts_per_task=3,
    num_epochs=1,
    num_minibatches=1,
    value_coef=0.7,
    max_grad_norm=0.1,
)


# The network ----------------------------------------------------------------------------------------------------------


def norm(params: Params, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * params[f"{name}.weight"] + params[f"{name}.bias"]


def turned(x: Tensor, step: int) -> Tensor:
    """Pairs of a head's channels as complex numbers, each turned by its own rate."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = step * 10_000.0 ** (-i / half)
        out[i] = x[i] * math.cos(angle) - x[half + i] * math.sin(angle)
        out[half + i] = x[i] * math.sin(angle) + x[half + i] * math.cos(angle)
    return out


class Plain:
    """One sequence, one step and one head at a time; keys and values are lists."""

    def __init__(self, params: Params, num_layers: int, num_heads: int, context: int) -> None:
        self.params, self.num_heads, self.context = params, num_heads, context
        self.held: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(num_layers)]

    def step(self, x: Tensor) -> Tensor:
        """Features of the next step."""
        params = self.params
        if "encoder.0.0.weight" in params:
            x = torch.tanh(linear(params, "encoder.0.0", x))
        x = linear(params, "encoder.1", x)
        for layer, held in enumerate(self.held):
            name = f"blocks.{layer}"
            query, key, value = linear(
                params, f"{name}.attention.query_key_value", norm(params, f"{name}.attention_norm", x)
            ).chunk(3)
            held.append((key, value))
            read = []
            for head in range(self.num_heads):
                own = slice(head * len(x) // self.num_heads, (head + 1) * len(x) // self.num_heads)
                now = len(held) - 1
                seen = range(max(0, now - self.context + 1), now + 1)
                asked = turned(query[own], now)
                scores = torch.stack([asked @ turned(held[t][0][own], t) for t in seen]) / math.sqrt(len(asked))
                read.append(sum(w * held[t][1][own] for w, t in zip(scores.softmax(0), seen, strict=True)))
            x = x + linear(params, f"{name}.attention.out", torch.cat(read))
            hidden = linear(params, f"{name}.mlp.0", norm(params, f"{name}.mlp_norm", x))
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + linear(params, f"{name}.mlp.2", hidden)
        return norm(params, "norm", x)

    def forget_gradients(self) -> None:
        """What is held from now on is a constant."""
        self.held = [[(key.detach(), value.detach()) for key, value in held] for held in self.held]


def network(context: int, num_layers: int = 2, encoder_sizes: tuple[int, ...] = (5,)) -> TransformerMemory:
    memory = TransformerMemory(SPEC, 8, 1.0, encoder_sizes, num_layers, 2, context).double()
    randomise(memory)
    return memory


def inputs(num_steps: int, num_sequences: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_sequences, num_steps, input_size(SPEC), generator=generator, dtype=torch.float64)


def empty(memory: TransformerMemory, num_sequences: int = 3) -> Tensor:
    return torch.zeros(num_sequences, memory.state_size, dtype=torch.float64)


@pytest.mark.parametrize("encoder_sizes", [(), (5,)])
@pytest.mark.parametrize("context", [1, 3, 4, 11, 20])
def test_features_equal_the_plain_loop(context: int, encoder_sizes: tuple[int, ...]) -> None:
    memory = network(context, encoder_sizes=encoder_sizes)
    x = inputs(11)
    features, _ = memory.remember(x, empty(memory))
    for row in range(3):
        plain = Plain(copies(memory), 2, 2, context)
        expected = torch.stack([plain.step(step) for step in x[row]])
        assert (features[row] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("context", [1, 3, 4, 11, 20])
@pytest.mark.parametrize("pieces", [[1] * 11, [4, 7], [3, 1, 5, 2], [10, 1]])
def test_pieces_equal_the_whole_whatever_the_context(context: int, pieces: list[int]) -> None:
    memory = network(context)
    x = inputs(11)
    whole, last = memory.remember(x, empty(memory))
    state, found = empty(memory), []
    for piece in x.split(pieces, dim=1):
        features, state = memory.remember(piece, state)
        found.append(features)
    assert (torch.cat(found, 1) - whole).abs().max() < 1e-12
    assert (state - last).abs().max() < 1e-12


@pytest.mark.parametrize("num_steps", [300, 700])
def test_pieces_equal_the_whole_in_float32_far_into_a_trial(num_steps: int) -> None:
    memory = network(256).float()
    x = inputs(num_steps).float()
    whole, _ = memory.remember(x, empty(memory).float())
    state = empty(memory).float()
    with torch.no_grad():
        for t in range(num_steps):
            features, state = memory.remember(x[:, t : t + 1], state)
            assert (features[:, 0] - whole[:, t]).abs().max() < 1e-5, t


def test_what_is_out_of_sight_does_not_matter() -> None:
    """Two blocks see twice as far as one, less the step that both share."""
    memory = network(3)
    x = inputs(11).requires_grad_()
    features, _ = memory.remember(x, empty(memory))
    (slope,) = torch.autograd.grad(features[:, 9].sum(), x)
    seen = (slope.abs().amax((0, 2)) > 0).tolist()
    assert seen == [5 <= t <= 9 for t in range(11)]


def test_only_distances_matter_to_rotary_positions() -> None:
    """A cache that is far into a trial is read as one that began just now."""
    memory = network(4, num_layers=1)
    x = inputs(14)
    late, _ = memory.remember(x, empty(memory))
    early, _ = memory.remember(x[:, 7:], empty(memory))
    assert (late[:, 10:] - early[:, 3:]).abs().max() < 1e-10


@pytest.mark.parametrize("context", [2, 4])
def test_gradients_are_those_of_finite_differences(context: int) -> None:
    memory = network(context)
    x = inputs(4, 2).requires_grad_()
    state = memory.remember(inputs(3, 2), empty(memory, 2))[1].detach()
    held = state[:, :-1].clone().requires_grad_()
    names = [name for name, _ in memory.named_parameters() if "head" not in name and name != "log_std"]
    params = [memory.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def features(x: Tensor, held: Tensor, *values: Tensor) -> Tensor:
        called = dict(zip(names, values, strict=True))
        state = torch.cat([held, torch.full_like(held[:, :1], 3.0)], dim=1)
        found: Tensor = torch.func.functional_call(
            _Features(memory), {f"memory.{n}": v for n, v in called.items()}, (x, state)
        )
        return found

    assert torch.autograd.gradcheck(features, (x, held, *params), fast_mode=True)


class _Features(torch.nn.Module):
    """:meth:`TransformerMemory.remember` as a call."""

    def __init__(self, memory: TransformerMemory) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Features alone."""
        return self.memory.remember(x, state)[0]


# The agent ------------------------------------------------------------------------------------------------------------


def build(discrete: bool, config: RL2Config = CONFIG) -> RL2:
    """An agent whose memory matters."""
    agent = config.build(countdown(discrete).spec, CPU, 0)
    randomise(agent.memory)
    return agent


class Reference(TrialReference):
    """Policy and value from the plain transformer."""

    def __init__(self, agent: RL2) -> None:
        super().__init__(agent, agent.memory, [])
        assert isinstance(agent.config, RL2Config)
        self.own = agent.config
        self.context = self.own.context_steps or self.own.episodes_per_trial * agent.spec.horizon

    def run(self, trial: Trial, row: tuple[int, int]) -> tuple[list[dict[str, Any]], float]:
        """Behind the end of a trial there is nothing to be worth anything."""
        plain, steps = Plain(self.params, self.own.num_layers, self.own.num_heads, self.context), []
        for rollout in trial.rollouts:
            episode = rollout[row]
            for t in range(int(episode.valid.sum())):
                if self.own.bptt_steps and len(steps) % self.own.bptt_steps == 0:
                    plain.forget_gradients()
                features = plain.step(self.inputs(episode.timesteps[t]))
                step: dict[str, Any] = {"action": episode.actions[t], "behaviour": episode.log_probs[t]}
                step["policy"] = self.policy(linear(self.params, "policy_head", features))
                step["value"] = linear(self.params, "value_head", features)[0]
                steps.append({**step, "reward": episode.rewards[t]})
        return steps, 0.0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("bptt_steps", "context_steps"), [(0, 0), (0, 3), (4, 0), (4, 2), (3, 5)])
@pytest.mark.parametrize("discrete", [True, False])
def test_ppo_step_equals_the_reference(discrete: bool, bptt_steps: int, context_steps: int) -> None:
    """Keys and values from before a piece are read, and no gradient flows into them."""
    torch.set_default_dtype(torch.float32)
    config = dataclasses.replace(CONFIG, bptt_steps=bptt_steps, context_steps=context_steps)
    trial = play(build(discrete, config), 0)
    torch.set_default_dtype(torch.float64)
    agent, trial = build(discrete, config), off_policy(trial, 0)
    reference = Reference(agent)
    expected = reference.step(trial, reference.return_std([trial]))
    agent.meta_update(trial)
    for name, parameter in agent.memory.named_parameters():
        assert (parameter - expected[name]).abs().max() < 1e-8, name
        assert (parameter - reference.params[name]).abs().max() > 1e-6, name


@pytest.mark.parametrize("settings", [{}, {"context_steps": 2}, {"bptt_steps": 4, "context_steps": 3}])
def test_recomputed_log_probs_equal_those_of_acting(settings: dict[str, Any]) -> None:
    agent = build(False, dataclasses.replace(CONFIG, **settings))
    batch = agent.sequences(play(agent, 0))
    policy, _, _ = agent.forward(batch.inputs, batch.memory)
    assert (policy.log_prob(batch.actions) - batch.log_probs)[batch.valid].abs().max() < 1e-5


@pytest.mark.parametrize("context_steps", [0, 2])
def test_the_contract_of_agents_is_kept(context_steps: int) -> None:
    check_agent(RL2Config(memory="transformer", hidden_size=8, num_heads=2, context_steps=context_steps))


def test_bfloat16_acts_and_learns_by_nearly_the_same_numbers() -> None:
    config = dataclasses.replace(CONFIG, precision="bfloat16", context_steps=4)
    agent = build(False, config)
    trial = play(agent, 0)
    batch = agent.sequences(trial)
    policy, _, _ = agent.forward(batch.inputs, batch.memory)
    exact, _, _ = build(False, dataclasses.replace(config, precision="float32")).forward(batch.inputs, batch.memory)
    assert 0 < (policy.mode() - exact.mode())[batch.valid].abs().mean() < 0.05
    assert all(math.isfinite(value) for value in agent.meta_update(trial).values())


def test_a_trial_begins_with_an_empty_memory_whatever_came_before() -> None:
    agent = build(False)
    timesteps = play(agent, 0).rollouts[0].timesteps
    fresh, _ = agent.act(agent.begin(len(TASKS)), timesteps[:, :, 0], deterministic=True)
    play(agent, 1)
    state = agent.begin(len(TASKS))
    again, later = agent.act(state, timesteps[:, :, 0], deterministic=True)
    assert torch.equal(fresh.value, again.value)
    assert not state.any() and (later[..., -1] == timesteps.valid[:, :, 0]).all()
    # Nothing in the cache counts before a step is said to be there.
    filled = torch.cat([torch.full_like(state[..., :-1], 7.0), state[..., -1:]], dim=-1)
    inputs = torch.randn(len(TASKS), 3, input_size(agent.spec))
    one, other = (agent.forward(inputs, memory.squeeze(1))[0] for memory in (state, filled))
    assert torch.equal(one.mode(), other.mode())


def test_more_episodes_than_in_training_push_the_oldest_steps_out() -> None:
    """Where SNAIL must refuse, the cache goes on as a window."""
    distribution = arms(3)
    agent = RL2Config(memory="transformer", hidden_size=8, num_heads=2).build(distribution.spec, CPU, 0)
    assert evaluate(agent, distribution, num_tasks=2, num_adaptations=4, seed=0).returns.shape == (2, 5)


def test_best_arm_is_pulled_from_the_second_pull_on() -> None:
    """As with recurrent memories: within one episode, and from the first pull on in the second."""
    distribution = arms(3)
    config = RL2Config(memory="transformer", hidden_size=16, num_heads=2, meta_lr=5e-3, num_epochs=4, entropy_coef=0.0)
    agent = config.build(distribution.spec, CPU, 0)
    train(agent, distribution, 40, 64)
    found = evaluate(agent, distribution, num_tasks=300, num_adaptations=1, seed=1)
    first, second = found.returns.mean(0)
    assert 2.35 < first < 2.65 and second / 3 >= 0.95, (first, second)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_a_context_longer_than_the_trial_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"context_steps must be at most 8, the steps of a whole trial .*, got 9"):
        RL2Config(memory="transformer", context_steps=9).build(SPEC, CPU, 0)
    RL2Config(memory="transformer", context_steps=8).build(SPEC, CPU, 0)


@pytest.mark.parametrize(("hidden_size", "num_heads"), [(128, 3), (6, 2), (4, 4)])
def test_channels_that_heads_cannot_share_in_pairs_are_refused(hidden_size: int, num_heads: int) -> None:
    with pytest.raises(ConfigError, match=rf"multiple of 2 x num_heads, .*hidden_size {hidden_size} with num_heads"):
        RL2Config(memory="transformer", hidden_size=hidden_size, num_heads=num_heads)


@pytest.mark.parametrize(("name", "value"), [("num_layers", 3), ("num_heads", 2), ("context_steps", 5)])
@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_a_setting_of_transformers_is_refused_elsewhere(memory: Any, name: str, value: int) -> None:
    message = rf"RL2Config\.{name} acts with memory transformer alone, got {value} with {memory}"
    with pytest.raises(ConfigError, match=message):
        RL2Config(memory=memory, **{name: value})
