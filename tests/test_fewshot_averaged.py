"""Networks of one task each, averaged: the references called "multi-task" in MAML's table."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clusters import Clusters
from helpers.fewshot_runs import CPU, adapted, built, double, scores
from torch import nn
from torch.nn.functional import mse_loss

from metarl.benchmarks.fewshot.averaged import AveragedConfig, AveragedL2Config, AveragedToMeanConfig
from metarl.errors import ConfigError, NonFiniteError
from metarl.fewshot.backbone import build_backbone
from metarl.fewshot.tasks.sinusoid import Sinusoid
from metarl.fewshot.types import EpisodeConfig, Examples, TaskBatch
from metarl.seeding import numpy_stream, row_keys
from metarl.testing import check_learner

SIZE = EpisodeConfig(ways=1, shots=4, queries=5)
SMALL: dict[str, Any] = {"hidden_sizes": (6, 5), "task_steps": 7, "task_lr": 0.05, "num_eval_steps": 2}
CONFIGS = [
    AveragedConfig(**SMALL),
    AveragedL2Config(**SMALL, penalty=0.1),
    AveragedToMeanConfig(**SMALL, penalty=0.1),
]
ids = [type(config).__name__ for config in CONFIGS]


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_they_keep_the_contract_of_learners(config: AveragedConfig) -> None:
    check_learner(config, Sinusoid())
    check_learner(config, Clusters())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_the_mean_is_that_of_networks_trained_one_by_one(config: Any, chunk: int) -> None:
    """Two updates: the second one's networks are drawn to the mean of the first one's, and the mean is of all."""
    tasks = Sinusoid()
    config = dataclasses.replace(config, task_chunk=chunk)
    learner = built(config, tasks, SIZE)
    spec, centre, everything = tasks.spec(SIZE), None, []
    for update in range(2):
        batch = double(tasks.sample("train", 3, SIZE, numpy_stream(update)))
        learner.seed(update)
        drawn = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(update)))
        losses, networks = [], []
        for task, seed in enumerate(row_keys(drawn, np.arange(3, dtype=np.uint64))):
            network = build_backbone(config, spec, CPU, int(seed >> np.uint64(1))).double()
            optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
            x = torch.cat([batch.support.x[task], batch.query.x[task]])
            y = torch.cat([batch.support.y[task], batch.query.y[task]])
            for _ in range(7):
                loss = mse_loss(network(x), y)
                for number, parameter in enumerate(network.parameters()):
                    if isinstance(config, AveragedL2Config):
                        loss = loss + 0.1 * parameter.square().sum()
                    if isinstance(config, AveragedToMeanConfig) and centre is not None:
                        loss = loss + 0.1 * (parameter - centre[number]).square().sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            losses.append(float(mse_loss(network(x), y).detach()))
            networks.append([parameter.detach() for parameter in network.parameters()])
        everything += networks
        before = centre if centre is not None else [p.detach().clone() for p in _module(learner).parameters()]
        spread = np.mean([sum(float((a - b).square().sum()) for a, b in zip(n, before, strict=True)) for n in networks])
        centre = [torch.stack(column).mean(0) for column in zip(*everything, strict=True)]
        metrics = learner.meta_update(batch)
        assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-9)
        assert metrics["spread"] == pytest.approx(spread**0.5, rel=1e-9)
        for found, expected in zip(_module(learner).parameters(), centre, strict=True):
            torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-11)


def _module(learner: Any) -> nn.Module:
    module = learner.components()["module"]
    assert isinstance(module, nn.Module)
    return module


def test_each_network_learns_its_task_and_their_mean_does_not() -> None:
    """So it is in the paper: errors below 0.02 on sinusoids of their own, and above 2 of what is fine-tuned."""
    tasks = Sinusoid()
    learner = built(AveragedConfig(train_queries=60, task_steps=1500, num_eval_steps=5), tasks, tasks.default_episode)
    episode = learner.training_episode(tasks.default_episode)
    assert episode.queries == 60
    learner.seed(0)
    metrics = learner.meta_update(tasks.sample("train", 20, episode, numpy_stream(0)))
    assert metrics["loss"] < 0.02
    before, after = scores(learner, tasks, tasks.default_episode)
    assert after < before and after > 1.0


def test_adapting_is_gradient_descent_from_the_mean() -> None:
    tasks = Sinusoid()
    learner = built(CONFIGS[0], tasks, SIZE)
    learner.meta_update(tasks.sample("train", 2, SIZE, numpy_stream(0)))
    batch = tasks.sample("test", 2, SIZE, numpy_stream(1))
    found = learner.predict(adapted(learner, batch.support), batch.query.x)
    for task in range(2):
        network = build_backbone(CONFIGS[0], tasks.spec(SIZE), CPU, 0)
        network.load_state_dict(_module(learner).state_dict())
        descent = torch.optim.SGD(network.parameters(), lr=CONFIGS[0].inner_lr)
        for _ in range(2):
            descent.zero_grad()
            mse_loss(network(batch.support.x[task]), batch.support.y[task]).backward()  # type: ignore[no-untyped-call]
            descent.step()
        torch.testing.assert_close(found[task], network(batch.query.x[task]).detach(), rtol=1e-4, atol=1e-5)


def test_running_statistics_and_losses_that_are_not_finite_are_refused() -> None:
    images = Clusters(num_signal=56, num_noise=200, shape=(1, 16, 16))
    with pytest.raises(ConfigError, match=r"keep no running statistics, and this one has .*take the norm transductive"):
        built(AveragedConfig(num_filters=4, norm="running"), images, Clusters.default_episode)
    tasks = Sinusoid()
    learner = built(CONFIGS[0], tasks, SIZE)
    before = {name: value.clone() for name, value in learner.named_tensors().items()}
    batch = tasks.sample("train", 2, SIZE, numpy_stream(0))
    spoilt = TaskBatch(batch.support, Examples(batch.query.x * float("nan"), batch.query.y))
    with pytest.raises(NonFiniteError, match="the loss of the training tasks is not finite"):
        learner.meta_update(spoilt)
    assert all(torch.equal(value, before[name]) for name, value in learner.named_tensors().items())
