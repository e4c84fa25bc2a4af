"""check_agent passes good agents and catches one broken agent for every clause."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.agent import Agent, AgentConfig
from metarl.agents.maml import MAMLTRPOConfig
from metarl.agents.rl2 import RL2Config
from metarl.agents.varibad import VariBADConfig
from metarl.envs.bandits import bandit
from metarl.errors import AgentCheckError, ConfigError
from metarl.networks.distributions import Categorical, DiagGaussian
from metarl.networks.noise import TaskNoise
from metarl.testing import check_agent
from metarl.types import Action, Rollout, Spec, Timestep, Trial

CPU = torch.device("cpu")
COUNTER = itertools.count()


class Simple(Agent[dict[str, Tensor]]):
    """A linear policy whose state is a bias for every task, moved by the mean reward; each fault breaks one clause."""

    def __init__(self, spec: Spec, seed: int, fault: str) -> None:
        super().__init__(spec, CPU, num_adaptations=1, rollouts_per_task=2)
        self.fault = fault
        self.scale = 1.0
        generator = torch.Generator().manual_seed(seed + (next(COUNTER) if fault == "unseeded parameters" else 0))
        self.linear = nn.Linear(spec.obs_dim, spec.action_dim)
        with torch.no_grad():
            for parameter in self.linear.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        return {"linear": self.linear}

    def begin(self, num_tasks: int) -> dict[str, Tensor]:
        return {"bias": torch.zeros(num_tasks, self.spec.action_dim)}

    @torch.no_grad()
    def act(
        self, state: dict[str, Tensor], timestep: Timestep, deterministic: bool = False
    ) -> tuple[Action, dict[str, Tensor]]:
        out = self.linear(timestep.obs) * self.scale + state["bias"][:, None]
        policy = Categorical(out) if self.spec.discrete else DiagGaussian(out, torch.zeros_like(out))
        by_mode = deterministic and self.fault != "no mode"
        value = policy.mode() if by_mode else policy.sample(self.noise)
        log_prob = policy.log_prob(value)
        if self.fault == "act mutates state":
            state["bias"] += 0.5
        if self.fault == "act learns":
            self.linear.bias += 0.1
        if self.fault == "global generator" and not deterministic:
            value = policy.sample(TaskNoise(CPU, int(torch.randint(2**31, ()))))
        if self.fault == "shared stream" and not deterministic:
            value = policy.sample(TaskNoise(CPU, int(self.noise.integers(2**31, (len(timestep.obs), 1)).sum())))
        if self.fault == "value shape":
            value = value.flatten()
        if self.fault == "value dtype":
            value = value.to(torch.int32) if self.spec.discrete else value.double()
        if self.fault == "value range" and self.spec.discrete:
            value = value + 3
        if self.fault == "log_prob shape":
            log_prob = log_prob[..., None]
        if self.fault == "log_prob nan":
            log_prob = log_prob * torch.nan
        if self.fault == "log_prob of another policy":
            log_prob = log_prob - 1.0
        return Action(value, log_prob), state

    def adapt(self, state: dict[str, Tensor], rollout: Rollout) -> dict[str, Tensor]:
        move = rollout.returns.mean(1, keepdim=True) * torch.arange(1.0, self.spec.action_dim + 1)
        if self.fault == "adapt mutates state":
            state["bias"] += move
        if self.fault == "adapt mutates rollout":
            rollout.rewards.add_(1.0)
        if self.fault == "adapt learns":
            self.linear.bias.data += 0.1
        if self.fault == "adapt counts":
            self.scale *= 1.5
        if self.fault == "adapt draws":
            move = move + torch.randn(move.shape, generator=self.generator)
        if self.fault == "first task is special":
            move[0] += 1.0
        if self.fault == "averages tasks":
            move = move.mean(0, keepdim=True).expand_as(move)
        return {"bias": state["bias"] + move}

    def meta_update(self, trial: Trial) -> dict[str, float]:
        if self.fault == "raises in meta_update":
            raise RuntimeError("no such matrix")
        change = trial.rollouts[-1].returns.mean()
        if self.fault == "unseeded update":
            change = change + torch.rand(())
        if self.fault == "hidden counter":
            self.scale += 1.0
        if self.fault == "not in the checkpoint":
            self.learned = getattr(self, "learned", 0.0) + 1.0
            change = change * self.learned
        if self.fault == "nan parameter":
            change = change * torch.nan
        if self.fault != "learns nothing":
            self.linear.bias.data += 0.01 * change
        metrics: dict[str, Any] = {"return": float(change)}
        if self.fault == "tensor metric":
            metrics["return"] = change
        if self.fault == "nan metric":
            metrics["return"] = float("nan")
        return metrics

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.fault == "lost on loading" and not hasattr(self, "initial"):
            self.linear.bias.data.zero_()

    def state_dict(self) -> dict[str, Any]:
        if self.fault == "lost on loading":
            self.initial = True
        return super().state_dict()


def problems(fault: str, **settings: Any) -> tuple[str, ...]:
    def build(spec: Spec, device: torch.device, seed: int) -> Simple:
        return Simple(spec, seed, fault)

    with pytest.raises(AgentCheckError, match="build breaks the contract of Agent") as caught:
        check_agent(build, **settings)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    "config",
    [
        MAMLTRPOConfig(hidden_sizes=(8,), rollouts_per_task=4),
        MAMLTRPOConfig(hidden_sizes=(8,), rollouts_per_task=4, num_inner_steps=2, first_order=True),
        RL2Config(hidden_size=8, rollouts_per_task=3, episodes_per_trial=3, num_epochs=2),
        VariBADConfig(
            hidden_size=8,
            hidden_sizes=(8,),
            rollouts_per_task=3,
            episodes_per_trial=3,
            decode_states=True,
            num_elbo_terms=3,
            num_decoded_steps=2,
            bootstrap_trials=True,
        ),
    ],
    ids=["maml", "first-order maml", "rl2", "varibad"],
)
def test_own_agents_keep_the_contract(config: AgentConfig) -> None:
    check_agent(config)
    check_agent(config, bandit(3, 4), seed=1)


def test_good_agent_passes() -> None:
    check_agent(lambda spec, device, seed: Simple(spec, seed, ""))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("unseeded parameters", "two agents built with one seed differ"),
        ("act mutates state", "act changes the state it is given"),
        ("act learns", r"act changes state_dict\(\)"),
        ("global generator", r"act gave two answers to one state and timestep after seed\(\)"),
        ("shared stream", "act samples other actions for a task where other tasks stand beside it"),
        ("no mode", "act with deterministic=True draws at random"),
        ("value shape", r"act's value has shape \(9,\) and dtype torch.int64, expected \(3, 3\) and torch.int64"),
        ("value dtype", r"dtype torch.int32, expected \(3, 3\) and torch.int64"),
        ("value range", r"act's value lies in .*, expected 0\.\.2"),
        ("log_prob shape", r"act's log_prob has shape \(3, 3, 1\) .* expected \(3, 3\)"),
        ("log_prob nan", "act's log_prob is not finite"),
        ("log_prob of another policy", "act's log_prob does not fit how often.* check-agent/discrete"),
        ("log_prob of another policy", "act's log_prob does not fit how often.* check-agent/box"),
        ("adapt mutates state", "adapt changes the state it is given"),
        ("adapt mutates rollout", "adapt changes the rollout it is given"),
        ("adapt learns", r"acting and adapt change state_dict\(\)"),
        ("adapt counts", "adapt depends on more than its arguments"),
        ("adapt draws", "adapt depends on more than its arguments"),
        ("first task is special", "permuting the tasks does not permute adapt's results"),
        ("averages tasks", "adapt's result for a task depends on the other tasks beside it"),
        ("adapt learns", r"an evaluation changes state_dict\(\)"),
        ("global generator", "two evaluations with one seed gave different scores"),
        ("raises in meta_update", "a training iteration raised RuntimeError: no such matrix"),
        ("learns nothing", r"meta_update changes nothing in state_dict\(\)"),
        ("nan parameter", "meta_update leaves a NaN or infinity in linear.bias"),
        ("tensor metric", r"metric 'return' is tensor\(.*, expected a finite float"),
        ("nan metric", "metric 'return' is nan, expected a finite float"),
        ("unseeded update", r"one training iteration, repeated from the same state_dict\(\) with the same seed"),
        ("hidden counter", r"one training iteration, repeated from the same state_dict\(\) with the same seed"),
        ("not in the checkpoint", "an agent restored from a checkpoint learns otherwise"),
        ("lost on loading", "an agent restored from a checkpoint learns otherwise"),
    ],
)
def test_broken_agent_is_caught(fault: str, message: str) -> None:
    found = problems(fault)
    assert any(re.search(message, problem) for problem in found), found


@pytest.mark.parametrize(
    "fault", ["no mode", "averages tasks", "adapt mutates rollout", "learns nothing", "lost on loading"]
)
def test_single_fault_gives_a_single_sentence_for_each_kind_of_action(fault: str) -> None:
    assert len(problems(fault)) == 2
    assert len(problems(fault, distribution=bandit(3, 4))) == 1


def test_agent_may_refuse_one_kind_of_action_but_not_both() -> None:
    def discrete_only(spec: Spec, device: torch.device, seed: int) -> Simple:
        if not spec.discrete:
            raise ConfigError("only discrete actions, please.")
        return Simple(spec, seed, "")

    def neither(spec: Spec, device: torch.device, seed: int) -> Simple:
        raise ConfigError("I am not for building.")

    check_agent(discrete_only)
    with pytest.raises(AgentCheckError, match=r"cannot be built for check-agent/box: I am not for building"):
        check_agent(neither)
