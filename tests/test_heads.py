"""Heads of memories: what a hypernetwork makes against plain float64 loops, where it begins, and what it learns."""

from __future__ import annotations

import dataclasses
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
    gru_cell,
    linear,
    off_policy,
    play,
    randomise,
)
from torch import Tensor, nn

from metarl import evaluate
from metarl.agents.common.recurrent_ppo import RecurrentPPO
from metarl.agents.rl2 import RL2, RL2Config
from metarl.agents.varibad import VariBAD, VariBADConfig
from metarl.errors import ConfigError
from metarl.networks.heads import HyperHead, HyperLinear, StateHead
from metarl.testing import check_agent
from metarl.types import Trial

RL2_CONFIG = RL2Config(
    head="hypernetwork",
    head_sizes=(5, 4),
    code_size=3,
    hidden_size=6,
    episodes_per_trial=3,
    rollouts_per_task=3,
    num_epochs=1,
    num_minibatches=1,
    value_coef=0.7,
    max_grad_norm=0.05,
)
VARIBAD_CONFIG = VariBADConfig(
    head="hypernetwork",
    code_size=3,
    hidden_sizes=(5, 4),
    latent_size=2,
    hidden_size=6,
    embedding_size=5,
    decoder_sizes=(4,),
    episodes_per_trial=3,
    rollouts_per_task=3,
    num_epochs=1,
    num_minibatches=1,
    value_coef=0.7,
    max_grad_norm=0.05,
)


def generated(params: Params, name: str, code: Tensor, x: Tensor) -> Tensor:
    """One layer, its weights written out: what the code makes is added to what is there without it."""
    weight, bias = params[f"{name}.base.weight"].clone(), params[f"{name}.base.bias"].clone()
    for k in range(len(code)):
        weight = weight + code[k] * params[f"{name}.weight"][:, k, :]
        bias = bias + code[k] * params[f"{name}.bias"][:, k]
    return weight @ x + bias


def hyper(params: Params, name: str, features: Tensor, obs: Tensor) -> Tensor:
    """A policy with two hidden layers of one step."""
    code, x = torch.tanh(linear(params, f"{name}.code", features)), obs
    for layer in ("hidden.0", "hidden.1"):
        x = torch.tanh(generated(params, f"{name}.{layer}", code, x))
    return generated(params, f"{name}.last", code, x)


def with_state(params: Params, name: str, features: Tensor, obs: Tensor) -> Tensor:
    x = torch.cat([torch.tanh(linear(params, f"{name}.code", features)), obs])
    for layer in (0, 2):
        x = torch.tanh(linear(params, f"{name}.network.{layer}", x))
    return linear(params, f"{name}.network.4", x)


# The layers -----------------------------------------------------------------------------------------------------------


def test_a_generated_layer_equals_weights_that_are_written_out() -> None:
    layer = HyperLinear(4, 3, code_size=2).double()
    randomise(layer)
    x, code = torch.randn(5, 7, 4, dtype=torch.float64), torch.randn(5, 7, 2, dtype=torch.float64)
    out = layer(x, code)
    params = {f"a.{name}": value for name, value in copies(layer).items()}
    for row in range(5):
        for t in range(7):
            assert (out[row, t] - generated(params, "a", code[row, t], x[row, t])).abs().max() < 1e-12


@pytest.mark.parametrize("kind", [HyperHead, StateHead])
def test_gradients_are_those_of_finite_differences(kind: Any) -> None:
    head = kind(4, 2, obs_dim=3, hidden_sizes=(5,), code_size=3).double()
    randomise(head)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, size, generator=generator, dtype=torch.float64).requires_grad_() for size in (4, 3)]
    names = [name for name, _ in head.named_parameters()]
    params = [p.detach().clone().requires_grad_() for p in head.parameters()]

    def call(features: Tensor, obs: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(head, dict(zip(names, values, strict=True)), (features, obs))
        return out

    assert torch.autograd.gradcheck(call, (*inputs, *params))


def test_training_begins_with_one_policy_whatever_the_memory_holds() -> None:
    """That of the network that is there without a code; and the first gradient reaches what the code makes."""
    head = HyperHead(4, 2, obs_dim=3, hidden_sizes=(6, 5), code_size=3)
    head.start_small()
    obs = torch.randn(8, 3)
    one, other = head(torch.randn(8, 4), obs), head(100.0 * torch.randn(8, 4), obs)
    assert torch.equal(one, other)
    plain = nn.Sequential(head.hidden[0].base, nn.Tanh(), head.hidden[1].base, nn.Tanh(), head.last.base)
    assert torch.allclose(one, plain(obs), atol=1e-7) and 0 < one.abs().max() < 0.1
    one.square().sum().backward()  # type: ignore[no-untyped-call]
    for layer in (*head.hidden, head.last):
        assert layer.weight.grad.abs().max() > 0 and layer.bias.grad.abs().max() > 0
    state = StateHead(4, 2, obs_dim=3, hidden_sizes=(6, 5), code_size=3)
    assert not torch.allclose(state(torch.zeros(8, 4), obs), state(torch.ones(8, 4), obs))


@pytest.mark.parametrize("config", [RL2_CONFIG, VARIBAD_CONFIG], ids=["rl2", "varibad"])
@pytest.mark.parametrize("discrete", [True, False])
def test_an_untrained_agent_acts_the_same_in_every_state_of_its_memory(config: Any, discrete: bool) -> None:
    agent = config.build(countdown(discrete).spec, CPU, 0)
    inputs = torch.randn(4, 3, agent.spec.obs_dim + agent.spec.action_dim + 2)
    memories = [torch.zeros(4, agent.state_size), torch.randn(4, agent.state_size)]
    (one, value, _), (other, value_again, _) = (agent.forward(inputs, memory) for memory in memories)
    for left, right in zip((*one.parameters, value), (*other.parameters, value_again), strict=True):
        assert torch.equal(left, right)
    other_obs = inputs.clone()
    other_obs[..., 0] += 1.0
    assert not torch.equal(agent.forward(other_obs, memories[0])[1], value)


# The agents -----------------------------------------------------------------------------------------------------------


def build(config: RL2Config | VariBADConfig, discrete: bool = True) -> Any:
    """An agent whose memory and belief matter."""
    agent = config.build(countdown(discrete).spec, CPU, 0)
    assert isinstance(agent, RL2 | VariBAD)
    randomise(*([agent.memory] if isinstance(agent, RL2) else [agent.policy, agent.encoder, agent.decoders]))
    return agent


class RL2Reference(TrialReference):
    """A GRU and the head of the settings, step by step."""

    def run(self, trial: Trial, row: tuple[int, int]) -> tuple[list[dict[str, Any]], float]:
        """Behind the end of a trial there is nothing to be worth anything."""
        assert isinstance(self.config, RL2Config)
        head = hyper if self.config.head == "hypernetwork" else with_state
        hidden, steps = torch.zeros(self.config.hidden_size), []
        for rollout in trial.rollouts:
            episode = rollout[row]
            for t in range(int(episode.valid.sum())):
                inputs = self.inputs(episode.timesteps[t])
                hidden = gru_cell(self.params, inputs, hidden)
                obs = inputs[: len(self.obs_mean)]
                step: dict[str, Any] = {"action": episode.actions[t], "behaviour": episode.log_probs[t]}
                step["policy"] = self.policy(head(self.params, "policy_head", hidden, obs))
                step["value"] = head(self.params, "value_head", hidden, obs)[0]
                steps.append({**step, "reward": episode.rewards[t]})
        return steps, 0.0


class VariBADReference(TrialReference):
    """The encoder's beliefs, as constants, and generated networks on the observation."""

    def __init__(self, agent: VariBAD) -> None:
        super().__init__(agent, agent.policy, [])
        self.encoder = copies(agent.encoder)

    def run(self, trial: Trial, row: tuple[int, int]) -> tuple[list[dict[str, Any]], float]:
        """Behind the end of a trial there is nothing to be worth anything."""
        hidden, steps = torch.zeros(6), []
        for rollout in trial.rollouts:
            episode = rollout[row]
            for t in range(int(episode.valid.sum())):
                inputs = self.inputs(episode.timesteps[t])
                hidden = gru_cell(self.encoder, torch.relu(linear(self.encoder, "embedding", inputs)), hidden)
                belief = torch.cat([linear(self.encoder, name, hidden) for name in ("mean", "log_variance")]).detach()
                obs = inputs[: len(self.obs_mean)]
                step: dict[str, Any] = {"action": episode.actions[t], "behaviour": episode.log_probs[t]}
                step["policy"] = self.policy(hyper(self.params, "actor", belief, obs))
                step["value"] = hyper(self.params, "critic", belief, obs)[0]
                steps.append({**step, "reward": episode.rewards[t]})
        return steps, 0.0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("head", ["hypernetwork", "state"])
def test_rl2_s_ppo_step_equals_the_reference(head: Any, discrete: bool) -> None:
    config = dataclasses.replace(RL2_CONFIG, head=head)
    check_step(config, discrete, lambda agent: RL2Reference(agent, agent.memory, []), "memory")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("discrete", [True, False])
def test_varibad_s_ppo_step_equals_the_reference(discrete: bool) -> None:
    check_step(VARIBAD_CONFIG, discrete, VariBADReference, "policy")


def check_step(config: Any, discrete: bool, make_reference: Any, trained: str) -> None:
    """All parameters after one step of PPO."""
    torch.set_default_dtype(torch.float32)
    trial = play(build(config, discrete), 0)
    torch.set_default_dtype(torch.float64)
    agent, trial = build(config, discrete), off_policy(trial, 0)
    reference = make_reference(agent)
    expected = reference.step(trial, reference.return_std([trial]))
    agent.meta_update(trial)
    for name, parameter in getattr(agent, trained).named_parameters():
        assert (parameter - expected[name]).abs().max() < 1e-8, name
        assert (parameter - reference.params[name]).abs().max() > 1e-7, name


@pytest.mark.parametrize("memory", ["gru", "lstm", "transformer"])
@pytest.mark.parametrize("head", ["hypernetwork", "state"])
def test_every_memory_can_have_every_head(memory: Any, head: Any) -> None:
    """What acting saw is what learning recomputes, also in pieces."""
    heads: dict[str, Any] = {"memory": memory, "head": head, "hidden_size": 8, "bptt_steps": 4}
    agent = build(dataclasses.replace(RL2_CONFIG, **heads), discrete=False)
    batch = agent.sequences(play(agent, 0))
    policy, _, _ = agent.forward(batch.inputs, batch.memory)
    assert (policy.log_prob(batch.actions) - batch.log_probs)[batch.valid].abs().max() < 1e-5


@pytest.mark.parametrize("config", [RL2_CONFIG, VARIBAD_CONFIG], ids=["rl2", "varibad"])
def test_the_contract_of_agents_is_kept(config: Any) -> None:
    check_agent(dataclasses.replace(config, rollouts_per_task=1))


# Probes ---------------------------------------------------------------------------------------------------------------


LEARNING: dict[str, Any] = {"meta_lr": 5e-3, "num_epochs": 4, "entropy_coef": 0.0, "hidden_size": 16, "code_size": 8}


@pytest.mark.parametrize(
    "config",
    [
        RL2Config(head="hypernetwork", head_sizes=(16,), **LEARNING),
        RL2Config(head="state", head_sizes=(16,), **LEARNING),
        VariBADConfig(
            head="hypernetwork",
            hidden_sizes=(16,),
            latent_size=2,
            embedding_size=16,
            decoder_sizes=(16,),
            vae_lr=1e-2,
            num_vae_updates=10,
            vae_batch_size=64,
            num_elbo_terms=0,
            **LEARNING,
        ),
    ],
    ids=["rl2-hypernetwork", "rl2-state", "varibad-hypernetwork"],
)
def test_best_arm_is_pulled_from_the_second_pull_on(config: Any) -> None:
    """The observation tells nothing: what is learned has gone through the weights that the memory makes."""
    distribution = arms(3)
    agent: RecurrentPPO = config.build(distribution.spec, CPU, 0)
    train(agent, distribution, 40, 64)
    found = evaluate(agent, distribution, num_tasks=300, num_adaptations=1, seed=1)
    first, second = found.returns.mean(0)
    assert 2.35 < first < 2.65 and second / 3 >= 0.95, (first, second)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["hypernetwork", "state"])
def test_a_policy_without_a_head_has_no_weights_to_be_made(head: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"RL2Config\.head '{head}' needs hidden layers, of which head_sizes has none"
    ):
        RL2Config(head=head)
    with pytest.raises(ConfigError, match=r"VariBADConfig\.hidden_sizes must hold at least one number"):
        VariBADConfig(head="hypernetwork", hidden_sizes=())


def test_settings_of_a_head_that_is_not_there_are_refused() -> None:
    message = r"RL2Config\.{} acts with head state or hypernetwork alone, got .* with linear\. Leave it at"
    with pytest.raises(ConfigError, match=message.format("head_sizes")):
        RL2Config(head_sizes=(64,))
    with pytest.raises(ConfigError, match=message.format("code_size")):
        RL2Config(code_size=10)
    with pytest.raises(
        ConfigError, match=r"VariBADConfig\.code_size acts with head hypernetwork alone, got 10 with state"
    ):
        VariBADConfig(code_size=10)


@pytest.mark.parametrize(
    ("kind", "choices"), [(RL2Config, "linear, state, hypernetwork"), (VariBADConfig, "state, hyper")]
)
def test_an_unknown_head_is_refused_with_the_choices(kind: Any, choices: str) -> None:
    with pytest.raises(ConfigError, match=rf"head must be one of {choices}.*, got 'hyper'"):
        kind(head="hyper")


def test_trials_of_different_lengths_are_learned_from_as_one_batch() -> None:
    agent = build(RL2_CONFIG)
    trial = play(agent, 0)
    lengths = torch.stack([rollout.lengths for rollout in trial.rollouts])
    assert lengths.shape[1] == len(TASKS) and lengths.min() < lengths.max()
    assert all(torch.isfinite(torch.tensor(value)) for value in agent.meta_update(trial).values())
