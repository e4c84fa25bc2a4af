"""An agent that acts on the processor and learns elsewhere learns what it would have learned in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.command_line import metarl
from torch import Tensor

from metarl.agent import Agent
from metarl.agents import AGENTS
from metarl.config import TrainConfig, from_dict
from metarl.errors import ConfigError
from metarl.functional.trees import map_tensors
from metarl.rollouts.collector import Collector
from metarl.rollouts.host_actor import HostActor, acting_on
from metarl.rollouts.trial import run_trial
from metarl.runs.folder import RunFolder
from metarl.seeding import numpy_stream
from metarl.tasks import make
from metarl.testing import check_agent
from metarl.testing.comparison import same_bits
from metarl.trainer import train
from metarl.types import Spec

CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "maml-trpo": {"hidden_sizes": (8,), "rollouts_per_task": 3},
    "rl2": {"hidden_size": 8, "episodes_per_trial": 2, "normalise_obs": True},
    "varibad": {"hidden_size": 8, "episodes_per_trial": 2},
}


def _built(name: str, spec: Spec, device: torch.device = CPU) -> Agent[Any]:
    return from_dict(AGENTS[name], SMALL[name]).build(spec, device, 3)


def _after_two_updates(agent: Agent[Any]) -> dict[str, Tensor]:
    distribution = make("navigation-2d")
    collector = Collector(distribution, agent.rollouts_per_task, agent.device)
    for iteration in range(2):
        tasks = distribution.train.sample(3, numpy_stream(0, "tasks", iteration))
        trial = run_trial(agent, collector, tasks, agent.num_adaptations, iteration)
        agent.meta_update(trial)
    return {name: tensor.cpu() for name, tensor in agent.named_tensors().items()}


@pytest.mark.parametrize("name", SMALL)
def test_two_updates_are_those_of_an_agent_that_acts_where_it_learns(name: str) -> None:
    """To the last bit on one device: the copy that acts has the newest parameters, statistics and noise."""
    spec = make("navigation-2d").spec
    alone = _after_two_updates(_built(name, spec))
    apart = _after_two_updates(HostActor(_built(name, spec)))
    assert alone.keys() == apart.keys()
    for key, value in alone.items():
        assert torch.equal(apart[key], value), key


@pytest.mark.parametrize("name", SMALL)
def test_it_keeps_the_contract_of_an_agent(name: str) -> None:
    check_agent(lambda spec, device, seed: HostActor(from_dict(AGENTS[name], SMALL[name]).build(spec, device, seed)))


@pytest.mark.cuda
@pytest.mark.parametrize("name", SMALL)
def test_on_a_gpu_two_updates_are_those_of_the_processor(name: str) -> None:
    """To float32's rounding, which Adam's first steps and a line search may magnify."""
    spec = make("navigation-2d").spec
    here = _after_two_updates(_built(name, spec))
    there = _after_two_updates(HostActor(_built(name, spec, torch.device("cuda"))))
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, rtol=1e-2, atol=2e-2, msg=lambda text, key=key: f"{key}: {text}")


@dataclass
class _State:
    hidden: Tensor
    steps: int


class _Pair(NamedTuple):
    left: Tensor
    right: list[Tensor | None]


def test_states_of_every_form_are_moved() -> None:
    one = torch.ones(2)
    state = {"a": _State(one, 3), "b": _Pair(one, [one, None])}
    there = map_tensors(lambda tensor: tensor.to("meta"), state)
    assert there["a"].hidden.device.type == there["b"].left.device.type == there["b"].right[0].device.type == "meta"
    assert there["a"].steps == 3 and there["b"].right[1] is None
    assert one.device.type == "cpu"
    with pytest.raises(ConfigError, match="cannot tell which task a state's int 3 belongs to"):
        map_tensors(torch.add, state["a"], _State(one, 4))


def test_training_plays_with_the_actor_and_saves_the_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = make("navigation-2d")
    config = TrainConfig(num_iterations=2, meta_batch_size=2, eval_every=1, eval_tasks=2, device="cpu")
    saved = []
    for place in ("device", "cpu"):
        agent = _built("rl2", distribution.spec)
        if place == "cpu":
            monkeypatch.setattr("metarl.trainer.acting_on", lambda agent, act_on: HostActor(agent))
        run = RunFolder(tmp_path / place)
        assert train(agent, distribution, config, run, act_on=place)
        saved.append(run.checkpoints.load_latest()[1])
    assert same_bits(saved[0]["agent"], saved[1]["agent"]) and saved[0]["origin"] == saved[1]["origin"]


def test_only_what_learns_elsewhere_is_doubled() -> None:
    agent = _built("rl2", make("navigation-2d").spec)
    assert acting_on(agent, "cpu") is acting_on(agent, "device") is agent
    agent.device = torch.device("meta")
    assert isinstance(acting_on(agent, "cpu"), HostActor) and acting_on(agent, "device") is agent


def test_bad_places_and_agents_are_named() -> None:
    agent = _built("rl2", make("navigation-2d").spec)
    place: Any = "gpu"
    with pytest.raises(ConfigError, match=r"unknown place to act 'gpu'.*Valid choices: cpu, device"):
        acting_on(agent, place)
    agent.config = None
    with pytest.raises(ConfigError, match="is built twice, from its config, and RL2 has none"):
        HostActor(agent)


def test_the_command_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "--num-iterations 1 --meta-batch-size 2 --eval-tasks 2 --hidden-size 8 --act-on cpu"
    assert metarl(f"train rl2 bandit {words}") == 0
