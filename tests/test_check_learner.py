"""check_learner passes a good learner and catches one broken learner for every clause."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.clusters import Clusters
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.errors import ConfigError, LearnerCheckError
from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.learners.protonet import ProtoNetConfig
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, TaskBatch
from metarl.testing import check_learner

COUNTER = itertools.count()


@dataclass
class Means:
    """Class means; not frozen, so that a fault can change it."""

    values: Tensor


class Simple(Learner[Means]):
    """Nearest class mean after a linear map; each fault breaks one clause."""

    def __init__(self, config: SimpleConfig, spec: FewShotSpec, device: torch.device, seed: int) -> None:
        super().__init__(spec, device, num_adaptations=1)
        self.config = config
        self.fault = config.fault
        self.scale = 1.0
        generator = torch.Generator().manual_seed(seed + (next(COUNTER) if self.fault == "unseeded parameters" else 0))
        self.linear = nn.Linear(*spec.input_shape, 8)
        with torch.no_grad():
            for parameter in self.linear.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.optimizer = torch.optim.Adam(self.linear.parameters())

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        if self.fault == "forgotten optimiser":
            return {"linear": self.linear}
        return {"linear": self.linear, "optimizer": self.optimizer}

    def begin(self, num_tasks: int) -> Means:
        return Means(torch.zeros(num_tasks, self.spec.num_outputs, 8))

    @torch.no_grad()
    def adapt(self, state: Means, support: Examples) -> Means:
        values = self._means(support)
        if self.fault == "adapt learns":
            self.linear.bias += 0.1
        if self.fault == "adapt mutates state":
            state.values += 1.0 + torch.arange(float(self.spec.num_outputs))[:, None]
        if self.fault == "adapt mutates support":
            support.x.mul_(2.0)
        if self.fault == "adapt remembers":
            self.scale += 0.1
            values = values * self.scale
        if self.fault == "adapt draws":
            values = values + torch.randn(values.shape)
        if self.fault == "tasks mix":
            values = values - values.mean(0)
        if self.fault == "tasks in order":
            values = values * torch.arange(1.0, len(values) + 1)[:, None, None]
        if self.fault == "adapt raises":
            raise IndexError("nothing there")
        return Means(values)

    def predict(self, state: Means, x: Tensor) -> Tensor:
        features = self.linear(x)
        if self.fault != "gradients kept":
            features = features.detach()
        if self.fault == "queries mix":
            features = features - features.mean(1, keepdim=True)
        outputs: Tensor = -torch.cdist(features, state.values)
        if self.fault == "predict learns":
            with torch.no_grad():
                self.linear.weight += 0.01
        if self.fault == "predict draws":
            outputs = outputs + torch.rand(outputs.shape)
        if self.fault == "shape":
            outputs = outputs.flatten(1)
        if self.fault == "dtype":
            outputs = outputs.double()
        if self.fault == "not finite":
            outputs = outputs / 0.0
        return outputs

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        if self.fault == "learns nothing":
            return {"loss": 0.0}
        logits = -torch.cdist(self.linear(batch.query.x), self._means(batch.support))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.query.y.flatten())
        if self.fault == "global generator":
            loss = loss * torch.rand(())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.fault == "parameters not finite":
            self.linear.bias.data[0] = torch.nan
        value: Any = loss.detach() if self.fault == "metric" else float(loss.detach())
        return {"cost" if self.fault == "no loss" else "loss": value}

    def _means(self, support: Examples) -> Tensor:
        members = nn.functional.one_hot(support.y, self.spec.num_outputs).float().mT
        means: Tensor = members @ self.linear(support.x) / members.sum(-1, keepdim=True)
        return means


@dataclass(frozen=True)
class SimpleConfig(LearnerConfig):
    """A learner with a fault."""

    fault: str = ""

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> Simple:
        return Simple(self, spec, device, seed)


def test_a_good_learner_passes() -> None:
    check_learner(SimpleConfig(), Clusters())
    check_learner(SimpleConfig().build, Clusters(), EpisodeConfig(2, 3, 4), seed=5)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("unseeded parameters", "two learners built with one seed differ"),
        ("forgotten optimiser", "a learner restored from a checkpoint learns otherwise"),
        ("adapt learns", "adapt changes state_dict()"),
        ("adapt mutates state", "adapt changes the state it is given"),
        ("adapt mutates support", "adapt changes the support set it is given"),
        ("adapt remembers", "adapt depends on more than its arguments"),
        ("adapt draws", "adapt depends on more than its arguments"),
        ("tasks mix", "a task's result depends on the other tasks beside it"),
        ("tasks in order", "permuting the tasks does not permute the results"),
        ("adapt raises", "adapt raised IndexError: nothing there"),
        ("gradients kept", "predict keeps gradients"),
        ("queries mix", "what is predicted of one query depends on the other queries"),
        ("predict learns", "predict changes state_dict()"),
        ("predict draws", "predict depends on more than its arguments"),
        ("shape", "predict returns the shape (3, 48) and torch.float32 before the first adapt, expected"),
        ("dtype", "expected [task, example, output] = (3, 12, 4) and torch.float32"),
        ("not finite", "predict returns a NaN or infinity before the first adapt"),
        ("learns nothing", "meta_update changes nothing in state_dict()"),
        ("global generator", "one meta_update, repeated from the same state_dict() with the same seed"),
        ("parameters not finite", "meta_update leaves a NaN or infinity in linear.bias"),
        ("metric", "meta_update's metric 'loss' is tensor("),
        ("no loss", "meta_update returns no 'loss', only cost"),
    ],
)
def test_a_broken_learner_is_told_what_it_breaks(fault: str, told: str) -> None:
    with pytest.raises(LearnerCheckError, match="SimpleConfig breaks the contract of Learner in") as raised:
        check_learner(SimpleConfig(fault=fault), Clusters())
    assert any(told in problem for problem in raised.value.problems), raised.value


def test_queries_may_mix_where_the_learner_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Simple, "mixes_queries", True)
    check_learner(SimpleConfig(fault="queries mix"), Clusters())


def test_a_learner_that_cannot_be_built_is_told_once() -> None:
    def broken(spec: FewShotSpec, device: torch.device, seed: int) -> Learner[Any]:
        raise RuntimeError("no network")

    with pytest.raises(LearnerCheckError, match=re.escape("building it for clusters raised RuntimeError: no network")):
        check_learner(broken, Clusters())


def test_something_that_is_no_learner_is_refused() -> None:
    learner = ProtoNetConfig().build(Clusters().spec(EpisodeConfig()), torch.device("cpu"), 0)
    for given in (learner, ProtoNetConfig):
        with pytest.raises(ConfigError, match="check_learner expects settings"):
            check_learner(given, Clusters())  # type: ignore[arg-type]
