"""Any module adapts, with the same results as the stacked MLP and as plain loops over tasks."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarl import adaptation, make, run_trial
from metarl.adaptation import call, inner_loop, meta_gradient, modules, stack_module
from metarl.agents import ANILConfig, GradientAgent, MAMLPPOConfig, MAMLTRPOConfig, MetaSGDConfig
from metarl.errors import ConfigError
from metarl.networks.mlp import MLPPolicy
from metarl.networks.policy import ModulePolicy, Policy, last_to_act
from metarl.rollouts.collector import Collector
from metarl.seeding import numpy_stream

CPU = torch.device("cpu")


def test_meta_gradient_equals_a_loop_over_tasks() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y, x_new, y_new = (torch.randn(3, 4, size, dtype=torch.float64) for size in (2, 1, 2, 1))

    def error(x: Tensor, y: Tensor) -> adaptation.LossFn:
        return lambda params: (call(net, params, x) - y).square().mean((1, 2))

    loop = inner_loop(stack_module(net, 3), [error(x, y), error(x, y)], 0.1, second_order=True)
    loss = meta_gradient(net, loop, error(x_new, y_new))
    losses = []
    for task in range(3):
        params = dict(net.named_parameters())
        for _ in range(2):
            inner = (torch.func.functional_call(net, params, (x[task],)) - y[task]).square().mean()
            slopes = torch.autograd.grad(inner, list(params.values()), create_graph=True)
            params = {name: p - 0.1 * g for (name, p), g in zip(params.items(), slopes, strict=True)}
        losses.append((torch.func.functional_call(net, params, (x_new[task],)) - y_new[task]).square().mean())
    expected = torch.stack(losses).mean()
    assert abs(float(loss - expected)) < 1e-12
    for parameter, slope in zip(net.parameters(), torch.autograd.grad(expected, list(net.parameters())), strict=True):
        assert parameter.grad is not None and (parameter.grad - slope).abs().max() < 1e-10


def test_the_example_outside_reinforcement_learning_learns() -> None:
    """The docstring's sinusoid regression, as it stands there: the loss after adaptation falls well below its start."""
    assert modules.__doc__ is not None
    example = textwrap.dedent(modules.__doc__.split("in full::")[1])
    losses: list[float] = []
    space = {"torch": torch, **{name: getattr(adaptation, name) for name in adaptation.__all__}, "losses": losses}
    torch.manual_seed(1)
    exec(example + "    losses.append(float(loss))\n", space)
    assert sum(losses[-50:]) < 0.75 * sum(losses[:50])


def twins(tasks: str) -> tuple[GradientAgent, GradientAgent]:
    """The stacked MLP, and the same network as a module."""
    spec, config = make(tasks).spec, MAMLTRPOConfig(hidden_sizes=(7, 6), rollouts_per_task=3)
    mlp = config.build(spec, CPU, seed=3)
    module = nn.Sequential(
        nn.Linear(spec.obs_dim, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, spec.action_dim)
    )
    policy = ModulePolicy(spec, module)
    with torch.no_grad():
        for layer in range(3):
            policy.get_parameter(f"module.{2 * layer}.weight").copy_(mlp.policy.get_parameter(f"w{layer}").T)
            policy.get_parameter(f"module.{2 * layer}.bias").copy_(mlp.policy.get_parameter(f"b{layer}"))
    return mlp, GradientAgent(config, spec, CPU, 0, policy=policy)


def double(part: Any) -> Any:
    """A rollout or timestep with float64 numbers."""
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            values[name] = double(value)
        elif value.is_floating_point():
            values[name] = value.double()
    return dataclasses.replace(part, **values)


@pytest.mark.parametrize("tasks", ["cartpole-goal", "navigation-2d"])
def test_a_module_policy_learns_as_the_stacked_mlp_does(tasks: str) -> None:
    distribution = make(tasks)
    mlp, module = twins(tasks)
    sampled = distribution.train.sample(2, numpy_stream(1, "tasks"))
    trial = run_trial(mlp, Collector(distribution, 3, CPU), sampled, 1, 0)
    trial = dataclasses.replace(trial, rollouts=tuple(double(rollout) for rollout in trial.rollouts))
    for agent in (mlp, module):
        agent.policy.double()
    start = mlp.policy.get_parameter("w1").clone()
    metrics = [agent.meta_update(trial) for agent in (mlp, module)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-6, abs=1e-9)
    assert (mlp.policy.get_parameter("w1") - start).abs().max() > 1e-3
    for layer in range(3):
        ours, theirs = mlp.policy.get_parameter(f"w{layer}"), module.policy.get_parameter(f"module.{2 * layer}.weight")
        assert (ours - theirs.T).abs().max() < 1e-8


def test_a_module_policy_can_learn_its_step_sizes() -> None:
    """Whose names, unlike a module's parameters', hold no dots; each of them moves, and so does what it scales."""
    distribution = make("cartpole-goal")
    config = MetaSGDConfig(rollouts_per_task=3)
    policy = ModulePolicy(distribution.spec, nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
    agent = GradientAgent(config, distribution.spec, CPU, 0, policy=policy)
    before = {name: value.detach().clone() for name, value in agent.meta_gradient.meta_parameters().items()}
    tasks = distribution.train.sample(3, numpy_stream(1, "tasks"))
    agent.meta_update(run_trial(agent, Collector(distribution, 3, CPU), tasks, 1, 0))
    assert {"module.0.weight", "rule.module/0/weight"} < before.keys()
    assert all((value - before[name]).abs().max() > 0 for name, value in agent.meta_gradient.meta_parameters().items())


def test_the_head_of_a_module_is_its_last_layer() -> None:
    _, module = twins("cartpole-goal")
    policy: Policy = module.policy
    assert policy.head_names == {"module.4.weight", "module.4.bias"}


class HeadFirst(nn.Module):
    """Registers its head before its body."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(5, 2), nn.Sequential(nn.Linear(4, 5), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class Bare(nn.Module):
    """Uses parameters without calling what holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 2)
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.body(x), self.head.weight) * self.scale


def test_the_head_is_the_layer_that_acts_last_or_the_one_that_is_named() -> None:
    spec = make("cartpole-goal").spec
    assert ModulePolicy(spec, HeadFirst()).head_names == {"module.head.weight", "module.head.bias"}
    assert ModulePolicy(spec, HeadFirst(), head="body").head_names == {"module.body.0.weight", "module.body.0.bias"}
    assert ModulePolicy(spec, Bare(), head="head").head_names == {"module.head.weight", "module.head.bias"}
    normed = nn.Sequential(nn.Linear(4, 5), nn.utils.parametrizations.weight_norm(nn.Linear(5, 2)), nn.Softplus())
    assert all(name.startswith("module.1.") for name in ModulePolicy(spec, normed).head_names)
    with pytest.raises(
        ConfigError, match="which layer of Bare acts last is not known, because of the parameters of head"
    ):
        _ = ModulePolicy(spec, Bare()).head_names
    with pytest.raises(
        ConfigError, match=r"unknown head of HeadFirst 'heads'.* Did you mean 'head'\?.* body, body\.0, head"
    ):
        ModulePolicy(spec, HeadFirst(), head="heads")
    frozen = HeadFirst()
    frozen.head.requires_grad_(False)
    with pytest.raises(ConfigError, match="the head 'head' of HeadFirst is frozen"):
        _ = ModulePolicy(spec, frozen).head_names
    # Few-shot networks may drop values.
    dropping = nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2))
    state = torch.get_rng_state()
    assert last_to_act(dropping, torch.zeros(2, 4)) == "2"
    assert torch.equal(torch.get_rng_state(), state)


def test_anil_adapts_the_layer_that_acts_last() -> None:
    distribution = make("cartpole-goal")
    policy = ModulePolicy(distribution.spec, HeadFirst())
    agent = GradientAgent(ANILConfig(rollouts_per_task=3), distribution.spec, CPU, 0, policy=policy)
    tasks = distribution.train.sample(2, numpy_stream(1, "tasks"))
    trial = run_trial(agent, Collector(distribution, 3, CPU), tasks, 1, 0)
    adapted = agent.adapt(agent.begin(2), trial.rollouts[0]).params
    for name, value in policy.params().items():
        assert ((adapted[name] - value).abs().max() > 1e-6) == name.startswith("module.head."), name


@pytest.mark.parametrize("config", [MAMLTRPOConfig, MetaSGDConfig])
@pytest.mark.parametrize("kind", ["module", "mlp"])
def test_frozen_parameters_of_a_policy_stay(config: Any, kind: str) -> None:
    """In adaptation and in meta-updates; all others move."""
    distribution = make("navigation-2d")
    spec = distribution.spec
    policy: Policy = MLPPolicy(spec, (5,), "tanh")
    if kind == "module":
        net = nn.Sequential(nn.Linear(spec.obs_dim, 5), nn.Tanh(), nn.Linear(5, spec.action_dim))
        policy = ModulePolicy(spec, net)
    frozen = {"raw_std", "w0" if kind == "mlp" else "module.0.weight"}
    for name in frozen:
        policy.get_parameter(name).requires_grad_(False)
    agent = GradientAgent(config(rollouts_per_task=5), spec, CPU, 0, policy=policy)
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    tasks = distribution.train.sample(4, numpy_stream(1, "tasks"))
    trial = run_trial(agent, Collector(distribution, 5, CPU), tasks, 1, 0)
    assert agent.adapt(agent.begin(4), trial.rollouts[0]).params.keys() == before.keys() - frozen
    agent.meta_update(trial)
    for name, value in policy.named_parameters():
        assert ((value - before[name]).abs().max() > 0) == (name not in frozen), name


def test_a_recurrent_module_can_be_a_policy() -> None:
    """It acts, adapts and learns task by task, since vmap cannot run it."""

    class Scan(nn.Module):
        def __init__(self, spec: Any) -> None:
            super().__init__()
            self.memory, self.out = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, spec.action_dim)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.memory(x[..., None])[0][:, -1])
            return out

    distribution = make("cartpole-goal")
    policy = ModulePolicy(distribution.spec, Scan(distribution.spec))
    agent = GradientAgent(MAMLPPOConfig(rollouts_per_task=3), distribution.spec, CPU, 0, policy=policy)
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    tasks = distribution.train.sample(2, numpy_stream(1, "tasks"))
    with pytest.warns(UserWarning, match="vmap cannot run Scan"):
        trial = run_trial(agent, Collector(distribution, 3, CPU), tasks, 1, 0)
    agent.meta_update(trial)
    assert all((value - before[name]).abs().max() > 0 for name, value in policy.named_parameters())


def test_a_module_with_buffers_is_refused() -> None:
    spec = make("cartpole-goal").spec
    with pytest.raises(ConfigError, match=r"no buffers, got buffers .*running_mean"):
        ModulePolicy(spec, nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))


def test_a_module_with_dropout_is_refused() -> None:
    spec = make("cartpole-goal").spec
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 2))
    with pytest.raises(ConfigError, match=r"the same numbers for the same input, got dropout in \['1'\] of Sequential"):
        ModulePolicy(spec, net)
    with pytest.raises(ConfigError, match=r"got dropout in .*'lstm'"):
        ModulePolicy(spec, nn.ModuleDict({"lstm": nn.LSTM(4, 2, num_layers=2, dropout=0.5)}))
    ModulePolicy(spec, nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.0), nn.Linear(8, 2)))
    ModulePolicy(spec, net.eval())
