"""A few-shot learner on two ranks learns what it does on one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fewshot_runs import double
from helpers.ranks import Ranks
from torch import nn

from metarl.config import TrainConfig
from metarl.distributed import Group, current, using
from metarl.errors import ConfigError
from metarl.fewshot.evaluation import evaluate
from metarl.fewshot.learners import LEARNERS, load_learner
from metarl.fewshot.learners.maml import MAML, MAMLConfig
from metarl.fewshot.tasks.registry import load_tasks
from metarl.fewshot.trainer import train
from metarl.fewshot.types import EpisodeConfig
from metarl.runs.folder import RunFolder
from metarl.seeding import numpy_stream

CPU = torch.device("cpu")
EPISODE = EpisodeConfig(3, 2, 2)
CONV: dict[str, Any] = {"num_filters": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "maml": {**CONV, "num_inner_steps": 2, "norm": "running", "inner_batch_size": 4, "multi_step_iterations": 3},
    "fomaml": {**CONV, "num_inner_steps": 2},
    "anil": {**CONV, "num_inner_steps": 2},
    "meta-sgd": {**CONV, "num_inner_steps": 2},
    "meta-lstm": {**CONV, "num_inner_steps": 2},
    "reptile": {**CONV, "num_inner_steps": 3, "train_shots": 2, "inner_batch_size": 3, "norm": "running"},
    "learned-optimiser": {**CONV, "num_inner_steps": 4, "unroll": 2, "norm": "transductive"},
    "matching": {**CONV, "full_context": True, "num_reads": 2},
    "snail": {**CONV, "feature_size": 4, "tc_filters": 4, "key_sizes": (2, 2, 2), "value_sizes": (2, 2, 2)},
}
AVERAGED = "metarl.benchmarks.fewshot.averaged:AveragedToMeanConfig"
REGRESSION: dict[str, dict[str, Any]] = {AVERAGED: {"task_steps": 3}}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Two of them."""
    pair = Ranks(2)
    yield pair
    pair.close()


def learn(name: str, family: str = "glyphs", num_tasks: int = 5) -> dict[str, Any]:
    """All tensors of a learner after two updates in float64, and the metrics of the last."""
    torch.set_default_dtype(torch.float64)
    try:
        tasks = load_tasks(family, None)
        episode = EPISODE if family == "glyphs" else tasks.default_episode
        settings = SETTINGS.get(name, CONV) if family == "glyphs" else REGRESSION.get(name, {})
        learner = load_learner(name)(**settings).build(tasks.spec(episode), CPU, 2)
        size, share = learner.training_episode(episode), current().share(num_tasks)
        for update in range(2):
            batch = tasks.sample("train", num_tasks, size, numpy_stream(update))[share]
            learner.seed(update)
            metrics = learner.meta_update(double(batch))
        return {"tensors": {key: value.clone() for key, value in learner.named_tensors().items()}, "metrics": metrics}
    finally:
        torch.set_default_dtype(torch.float32)


def furthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of any number that has a meaning, against what rounding allows.

    Normalisation takes the biases before it out again: their gradients are zero but for rounding, which Adam scales up,
    and the running means follow them. Accuracies are float32.
    """
    assert one["tensors"].keys() == other["tensors"].keys() and one["metrics"].keys() == other["metrics"].keys()
    found = [0.0]
    for name, value in one["tensors"].items():
        difference = float((value - other["tensors"][name]).abs().max())
        before_norm = re.search(r"body\.(0|4|8|12)\.bias$", name) and name[:-4] + "weight" in one["tensors"]
        if before_norm and one["tensors"][name[:-4] + "weight"].dim() == 4:
            continue
        found.append(difference / (1e3 if name.endswith("running_mean") else 1.0))
    metrics = {name: abs(value - other["metrics"][name]) for name, value in one["metrics"].items()}
    return max(*found, *(value / (1e6 if name == "accuracy" else 1.0) for name, value in metrics.items()))


@pytest.mark.parametrize("name", LEARNERS)
def test_two_ranks_learn_what_one_does(name: str, ranks: Ranks) -> None:
    """Of five tasks one rank has three and the other two; running statistics are those of all."""
    alone = learn(name)
    first, second = ranks.run(learn, name)
    assert not isinstance(first, str), first
    assert not isinstance(second, str), second
    assert furthest(alone, first) < 1e-10
    assert furthest(first, second) == 0.0


@pytest.mark.parametrize("name", ["maml", "snail", "pretrained", AVERAGED])
def test_regression_is_shared_out_too(name: str, ranks: Ranks) -> None:
    alone = learn(name, "sinusoid")
    first, second = ranks.run(learn, name, "sinusoid")
    assert furthest(alone, first) < 1e-10 and furthest(first, second) == 0.0


def test_a_learner_that_saw_one_share_alone_would_be_noticed() -> None:
    """The comparison can fail."""
    assert furthest(learn("protonet"), learn("protonet", num_tasks=3)) > 1e-6


def score(num_tasks: int) -> Any:
    tasks = load_tasks("sinusoid", None)
    learner = LEARNERS["maml"]().build(tasks.spec(tasks.default_episode), CPU, 2)
    return evaluate(learner, tasks, tasks.default_episode, num_tasks=num_tasks, seed=3).scores


@pytest.mark.parametrize("num_tasks", [10, 60])
def test_an_evaluation_is_the_same_to_the_bit(num_tasks: int, ranks: Ranks) -> None:
    """Batches of tasks are shared out whole; a rank may have none."""
    alone = score(num_tasks)
    for found in ranks.run(score, num_tasks):
        assert np.array_equal(found, alone)


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm1d(4)])
def test_layers_that_do_not_tell_tasks_apart_are_refused(layer: nn.Module, tmp_path: Any) -> None:
    tasks = load_tasks("sinusoid", None)
    episode = tasks.default_episode
    module = nn.Sequential(nn.Linear(1, 4), layer, nn.Linear(4, 1))
    learner = MAML(tasks.spec(episode), CPU, MAMLConfig(), module, 0.1)
    with using(Group(0, 2)), pytest.raises(ConfigError, match=f"the network has a {type(layer).__name__}, which"):
        train(learner, tasks, episode, TrainConfig(meta_batch_size=2), RunFolder(tmp_path))
