"""Agents and learners learn on a GPU what they learn on a CPU; and the command that runs whatever wants a GPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.clusters import Clusters

from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.benchmarks import gpu
from metarl.fewshot.learners import LEARNERS
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.seeding import numpy_stream
from metarl.tasks import make

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "hidden_sizes": (5,),
    "hidden_size": 6,
    "rollouts_per_task": 2,
    "episodes_per_trial": 2,
    "num_epochs": 1,
    "num_minibatches": 1,
}


def built(name: str) -> AgentConfig:
    kind = AGENTS[name]
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in SMALL.items() if key in names})


def update_of(name: str, device: torch.device) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and parameters after one update on the trial that the same agent played on the CPU."""
    distribution = make("navigation-2d")
    config = built(name)
    tasks = distribution.train.sample(3, numpy_stream(0, "tasks"))
    player = config.build(distribution.spec, CPU, 0)
    trial = run_trial(player, Collector(distribution, player.rollouts_per_task, CPU), tasks, player.num_adaptations, 0)
    agent = config.build(distribution.spec, device, 0)
    agent.seed(0)
    metrics = agent.meta_update(trial.to(device))
    return metrics, {key: value.cpu() for key, value in agent.named_tensors().items()}


@pytest.mark.cuda
@pytest.mark.parametrize("name", [name for name in AGENTS if not AGENTS[name].told_task])
def test_an_agents_update_on_a_gpu_is_that_on_a_cpu(name: str) -> None:
    """To float32's rounding, which a line search and Adam's first step may magnify; draws are each device's own."""
    here, there = update_of(name, CPU), update_of(name, torch.device("cuda"))
    assert here[0].keys() == there[0].keys()
    for key, value in here[1].items():
        torch.testing.assert_close(
            there[1][key], value, rtol=1e-2, atol=2e-2, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.cuda
@pytest.mark.parametrize("name", LEARNERS)
def test_a_learners_update_on_a_gpu_is_that_on_a_cpu(name: str) -> None:
    tasks, episode = Clusters(), Clusters.default_episode
    found = []
    for device in (CPU, torch.device("cuda")):
        learner = LEARNERS[name]().build(tasks.spec(episode), device, 0)
        learner.seed(0)
        batch = tasks.sample("train", 3, learner.training_episode(episode), numpy_stream(0)).to(device)
        found.append(learner.meta_update(batch)["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_command_measures_trains_and_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--device cpu --quick --tasks navigation-2d --iterations 2 --results"
    monkeypatch.setattr(sys, "argv", ["gpu", *words.split(), str(tmp_path / "gpu")])
    gpu.main()
    page = (tmp_path / "gpu" / "README.md").read_text()
    for words in (
        "Fisher products",
        "GRU of 256",
        "Omniglot's net",
        "maml-trpo on navigation-2d, 2 tasks, acting on: device",
        "rl2 on navigation-2d, 2 tasks, acting on: cpu",
        "iteration 1: ",
    ):
        assert words in page
    assert "not run: they need a GPU" in page


def test_without_a_gpu_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--results", str(tmp_path / "gpu")])
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main()
    assert not (tmp_path / "gpu").exists()
