"""The label of the nearest support example, on the features of a classifier of all training classes.

The reference of Vinyals et al., 2016 (arXiv 1606.04080, Table 1, "Baseline classifier" with cosine similarity) and of
Ravi and Larochelle, 2017 (section 5.1, "Baseline-nearest-neighbor").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.fewshot.learner import Learner
from metarl.fewshot.learners.embedding import FeatureConfig, embed, require_classification
from metarl.fewshot.learners.pretrained import Pretraining
from metarl.fewshot.types import Examples, FewShotSpec, TaskBatch


@dataclass(frozen=True)
class NearestNeighbourConfig(FeatureConfig):
    """Nearest neighbour on pretrained features."""

    when: ClassVar[str] = "reference: nearest neighbour on the features of a classifier of all training classes"

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> NearestNeighbour:
        """A fresh learner."""
        return NearestNeighbour(self, spec, device, seed)


@dataclass(frozen=True)
class Neighbours:
    """A support set: features ``[task, example, feature]`` and classes ``[task, example]``."""

    features: Tensor
    y: Tensor


class NearestNeighbour(Learner[Neighbours]):
    """Logits are the cosine similarities to the most similar example of each class.

    Args:
        config: settings.
        spec: shapes of the tasks.
        device: where it runs.
        seed: seed for the parameters.

    Raises:
        ConfigError: for tasks of regression, or if the number of training classes is not known.
    """

    data_parallel = True

    def __init__(self, config: NearestNeighbourConfig, spec: FewShotSpec, device: torch.device, seed: int) -> None:
        require_classification("nearest-neighbour", spec)
        super().__init__(spec, device, num_adaptations=1)
        self.config = config
        self._pretraining = Pretraining(config, spec, device, seed)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """The pretrained network and its optimiser."""
        return self._pretraining.components()

    def begin(self, num_tasks: int) -> Neighbours:
        """One example of each class, all with features of zero, to which every query is equally similar."""
        ways = self.spec.num_outputs
        features = torch.zeros(num_tasks, ways, self._pretraining.num_features, device=self.device)
        return Neighbours(features, torch.arange(ways, device=self.device).expand(num_tasks, -1))

    @torch.no_grad()
    def adapt(self, state: Neighbours, support: Examples) -> Neighbours:
        """Keep the support set's features; what was known before is forgotten."""
        return Neighbours(embed(self._pretraining.body, support.x), support.y)

    @torch.no_grad()
    def predict(self, state: Neighbours, x: Tensor) -> Tensor:
        """See :meth:`Learner.predict`."""
        features = embed(self._pretraining.body, x)
        cosines = F.normalize(features, dim=-1) @ F.normalize(state.features, dim=-1).mT
        others = F.one_hot(state.y, self.spec.num_outputs).mT[:, None] == 0
        return cosines[:, :, None].masked_fill(others, float("-inf")).amax(-1)

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """One step of training the classifier; accuracy is over all training classes."""
        return self._pretraining.update(batch, self.generator)
