"""Prototypical Networks: the class whose mean embedding is nearest.

Snell, Swersky, Zemel, 2017, "Prototypical networks for few-shot learning" (arXiv 1703.05175).

Differences from the paper: a training batch may hold several tasks, whose losses are averaged (the paper's holds one);
``train_ways`` is off by default, and the paper's Omniglot runs have ``train_ways=60, train_queries=5``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.config.settings import Natural
from metarl.fewshot.learner import Learner
from metarl.fewshot.learners.embedding import (
    FeatureConfig,
    build_features,
    embed,
    embed_batch,
    require_classification,
)
from metarl.fewshot.learners.outer_step import OuterStep
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, TaskBatch


@dataclass(frozen=True)
class ProtoNetConfig(FeatureConfig):
    """Prototypical Networks."""

    when: ClassVar[str] = "classification, fast and hard to beat: the nearest class mean in a learned space"

    train_ways: Natural = 0
    """Classes of a training task, 60 in the paper's Omniglot runs (section 3.1); 0: as many as in test."""
    lr_halve_every: Natural = 2000
    """Meta-updates after which the step size is halved, again and again; 0: never."""

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> ProtoNet:
        """A fresh learner."""
        return ProtoNet(self, spec, device, seed)


@dataclass(frozen=True)
class Prototypes:
    """Mean embeddings of classes, ``[task, way, feature]``."""

    means: Tensor


class ProtoNet(Learner[Prototypes]):
    """Logits are negative squared distances to the class means (eq. 1 and 2).

    Args:
        config: settings.
        spec: shapes of the tasks.
        device: where it runs.
        seed: seed for the parameters.

    Raises:
        ConfigError: for tasks of regression.
    """

    data_parallel = True

    config: ProtoNetConfig

    def __init__(self, config: ProtoNetConfig, spec: FewShotSpec, device: torch.device, seed: int) -> None:
        require_classification("protonet", spec)
        super().__init__(spec, device, num_adaptations=1)
        self.config = config
        self.body, self._num_features = build_features(config, spec, device, seed, signed=True)
        self._outer = OuterStep(self.body, config.meta_lr, config.lr_halve_every)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """The embedding and its optimiser."""
        return {"body": self.body, "optimizer": self._outer.optimizer}

    def begin(self, num_tasks: int) -> Prototypes:
        """One point for all classes, from which every embedding is equally far."""
        return Prototypes(torch.zeros(num_tasks, self.spec.num_outputs, self._num_features, device=self.device))

    @torch.no_grad()
    def adapt(self, state: Prototypes, support: Examples) -> Prototypes:
        """Class means; what was known before is forgotten."""
        return Prototypes(prototypes(embed(self.body, support.x), support.y, self.spec.num_outputs))

    @torch.no_grad()
    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        """See :meth:`Learner.predict`."""
        return distance_logits(embed(self.body, x), state.means)

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """One step on the mean loss of the tasks (Algorithm 1)."""

        def predict() -> tuple[Tensor, Tensor]:
            support, query = embed_batch(self.body, batch)
            num_ways = int(batch.support.y.max()) + 1
            return distance_logits(query, prototypes(support, batch.support.y, num_ways)), batch.query.y

        return self._outer.step(predict, self.spec.kind, self.generator)

    def training_episode(self, episode: EpisodeConfig) -> EpisodeConfig:
        """With ``train_ways``, too."""
        return dataclasses.replace(super().training_episode(episode), ways=self.config.train_ways or episode.ways)


def prototypes(features: Tensor, y: Tensor, num_ways: int) -> Tensor:
    """Mean features of each class (eq. 1), ``[task, way, feature]``.

    Args:
        features: ``[task, example, feature]``.
        y: classes ``[task, example]``, each of which occurs.
        num_ways: number of classes.
    """
    members = F.one_hot(y, num_ways).to(features.dtype).mT
    return members @ features / members.sum(-1, keepdim=True)


def distance_logits(features: Tensor, means: Tensor) -> Tensor:
    """Negative squared distances ``[task, example, way]`` (the exponents of eq. 2).

    Computed as ``2 z' c - |c|^2 - |z|^2`` (section 2.4), which needs no tensor of all differences.
    """
    squares = features.square().sum(-1, keepdim=True) + means.square().sum(-1)[:, None]
    return 2.0 * features @ means.mT - squares
