"""Networks of a user's own in few-shot learners: what they do is what is learned with, and what cannot be is told."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.clusters import Clusters
from helpers.fewshot_runs import CPU, adapted, built, train
from torch import Tensor, nn

from metarl.config import TrainConfig
from metarl.errors import ConfigError
from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.learners.maml import MAMLConfig
from metarl.fewshot.learners.pretrained import PretrainedConfig
from metarl.fewshot.learners.protonet import ProtoNetConfig
from metarl.fewshot.learners.reptile import ReptileConfig
from metarl.fewshot.setup import Given, resolve
from metarl.fewshot.trainer import train as train_in
from metarl.networks.task_norm import TaskNorm
from metarl.runs.folder import RunFolder
from metarl.seeding import numpy_stream
from metarl.testing import check_learner

NAME = "networks_of_ones_own:make"
EPISODE = Clusters.default_episode
MAML = MAMLConfig(backbone=NAME, num_inner_steps=1, num_eval_steps=2)
KINDS: dict[str, LearnerConfig] = {
    "maml": MAML,
    "reptile": ReptileConfig(backbone=NAME, num_inner_steps=2, num_eval_steps=2),
    "protonet": ProtoNetConfig(backbone=NAME),
    "pretrained": PretrainedConfig(backbone=NAME, num_inner_steps=2),
}
Make = Callable[[int, int], nn.Module]


@pytest.fixture
def own() -> Iterator[Callable[[Make], None]]:
    """Names a function of the numbers of inputs and outputs as the user's network."""
    module = types.ModuleType("networks_of_ones_own")
    sys.modules["networks_of_ones_own"] = module

    def give(make: Make) -> None:
        vars(module)["make"] = lambda shape, num_outputs: make(shape[0], num_outputs or 8)

    yield give
    del sys.modules["networks_of_ones_own"]


class Around(nn.Module):
    """A linear layer behind a function of the inputs, which is given the module and them."""

    def __init__(self, size: int, outputs: int, before: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.before = before
        self.linear = nn.Linear(size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.before(self, x))
        return out


@pytest.mark.parametrize("name", KINDS)
def test_a_network_that_changes_its_input_is_refused(name: str, own: Callable[[Make], None]) -> None:
    own(lambda size, outputs: Around(size, outputs, lambda _, x: x.mul_(0.5)))
    learner = built(KINDS[name], Clusters(), EPISODE)
    batch = Clusters().sample("train", 2, EPISODE, numpy_stream(0))
    with pytest.raises(ConfigError, match=r"changes its input in place.*Write x = x - 0\.5"):
        learner.meta_update(batch)
    with pytest.raises(ConfigError, match="changes its input in place"):
        adapted(learner, batch.support)


def _remember(module: Any, x: Tensor) -> Tensor:
    module.seen = x.mean(0) + 0.5 * getattr(module, "seen", torch.zeros(()))
    return x - module.seen


def test_a_network_that_keeps_a_state_is_refused_before_it_is_trained(own: Callable[[Make], None]) -> None:
    own(lambda size, outputs: Around(size, outputs, _remember))
    setup = resolve(Given("protonet", "digits", shots=2), settings={"backbone": NAME})
    with pytest.raises(ConfigError, match="predicted otherwise the second time"):
        setup.check()


def test_a_network_that_mixes_the_tasks_is_refused_before_it_is_trained(own: Callable[[Make], None]) -> None:
    own(lambda size, outputs: nn.Sequential(nn.Flatten(), Around(64, outputs, lambda _, x: (x - x.mean(0)).relu())))
    setup = resolve(Given("protonet", "digits", shots=2), settings={"backbone": NAME})
    with pytest.raises(ConfigError, match="what is predicted of a task depends on the task beside it"):
        setup.check()


@pytest.mark.parametrize("name", KINDS)
def test_normalisation_by_the_batch_alone_keeps_tasks_apart(name: str, own: Callable[[Make], None]) -> None:
    own(
        lambda size, outputs: nn.Sequential(
            nn.Linear(size, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, outputs)
        )
    )
    check_learner(KINDS[name], Clusters())


class Recurrent(nn.Module):
    """What vmap has no rule for, behind transductive normalisation."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.norm = TaskNorm(size, "transductive")
        self.lstm = nn.LSTM(size, 8, batch_first=True)
        self.head = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.norm(x)[:, None])[0][:, -1])
        return out


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_what_vmap_cannot_run_runs_task_by_task_and_is_told_once(name: str, own: Callable[[Make], None]) -> None:
    own(Recurrent)
    learner = built(KINDS[name], Clusters(), EPISODE)
    batch = Clusters().sample("test", 3, EPISODE, numpy_stream(0))
    tasks = [slice(0, 3), *(slice(task, task + 1) for task in range(3))]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        together, *alone = [
            learner.predict(adapted(learner, batch.support[part]), batch.query.x[part]) for part in tasks
        ]
        learner.meta_update(batch)
    assert len([each for each in told if "vmap cannot run Recurrent" in str(each.message)]) == 1
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_query_that_depends_on_the_others_is_told_whatever_the_settings_say(own: Callable[[Make], None]) -> None:
    own(lambda size, outputs: Around(size, outputs, lambda _, x: x - x.mean(0)))
    with pytest.raises(Exception, match="what is predicted of one query depends on the other queries"):
        check_learner(MAML, Clusters())


class FrozenNorm(nn.Module):
    """Pretrained features, which are to stay: averages that are not those of the inputs, and a frozen scale."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(size).requires_grad_(False)
        assert self.norm.running_mean is not None
        self.norm.running_mean.fill_(1.0)
        self.linear = nn.Linear(size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.norm(x))
        return out


@pytest.mark.parametrize("name", KINDS)
def test_frozen_normalisation_stays_as_it_is(name: str, own: Callable[[Make], None]) -> None:
    own(FrozenNorm)
    learner = built(KINDS[name], Clusters(), EPISODE)
    frozen = {key: value.clone() for key, value in learner.named_tensors().items() if ".norm." in key}
    batch = Clusters().sample("train", 3, EPISODE, numpy_stream(0))
    state = adapted(learner, batch.support)
    train(learner, Clusters(), EPISODE, 2, 3)
    now = learner.named_tensors()
    assert len(frozen) == 5 and all(torch.equal(now[key], value) for key, value in frozen.items())
    # In training it subtracts that average too: a query's loss does not depend on the others beside it.
    assert torch.isfinite(learner.predict(state, batch.query.x)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_of_another_precision_are_refused(dtype: torch.dtype, own: Callable[[Make], None]) -> None:
    own(lambda size, outputs: nn.Linear(size, outputs).to(dtype))
    with pytest.raises(ConfigError, match=f"has the parameter weight in {dtype}.*make it float32"):
        built(ProtoNetConfig(backbone=NAME), Clusters(), EPISODE)


def test_lazy_layers_begin_by_the_seed_alone(own: Callable[[Make], None]) -> None:
    own(lambda size, outputs: nn.LazyLinear(outputs))
    spec = Clusters().spec(EPISODE)
    weights = []
    for seed, state in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(state)
        learner = ProtoNetConfig(backbone=NAME).build(spec, CPU, seed)
        weights.append(learner.named_tensors()["body.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


class Averaging(nn.Module):
    """Subtracts a running mean, which is in checkpoints or not."""

    mean: Tensor

    def __init__(self, size: int, outputs: int, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size), persistent=persistent)
        self.linear = nn.Linear(size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.3)
        out: Tensor = self.linear(x - self.mean)
        return out


def test_buffers_that_no_checkpoint_holds_must_not_change(own: Callable[[Make], None], tmp_path: Path) -> None:
    config = TrainConfig(num_iterations=2, meta_batch_size=2, eval_every=2, eval_tasks=2, device="cpu")
    for persistent in (True, False):
        own(lambda size, outputs, persistent=persistent: Averaging(size, outputs, persistent))
        learner = built(ProtoNetConfig(backbone=NAME), Clusters(), EPISODE)
        run = RunFolder.create(tmp_path, "run")
        if persistent:
            assert train_in(learner, Clusters(), EPISODE, config, run)
        else:
            with pytest.raises(ConfigError, match=r"changes the buffer body\.mean, which no checkpoint holds"):
                train_in(learner, Clusters(), EPISODE, config, run)
