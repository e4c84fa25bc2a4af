"""Matching Networks: labels of the support set, weighted by attention.

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, 2016, "Matching networks for one shot learning" (arXiv 1606.04080).

``f'`` and ``g'`` of the paper are one network here, as in its experiments on images. Where the paper leaves a choice:
the recurrent state of full context embeddings begins at zero, so that the first read is the mean of the support, and
the support set, over which the LSTM of ``g`` runs in some order, is shuffled in training and read in one fixed mixed
order afterwards (see :func:`metarl.fewshot.learners.embedding.mixed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.config.settings import Count, Positive
from metarl.fewshot.learner import Learner
from metarl.fewshot.learners.embedding import (
    FeatureConfig,
    build_features,
    embed,
    embed_batch,
    mixed,
    require_classification,
    shuffled,
)
from metarl.fewshot.learners.outer_step import OuterStep
from metarl.fewshot.types import Examples, FewShotSpec, TaskBatch
from metarl.seeding import torch_stream


@dataclass(frozen=True)
class MatchingConfig(FeatureConfig):
    """Matching Networks."""

    when: ClassVar[str] = "classification: the labels of the most similar examples, weighted by attention"
    acts_with: ClassVar[Mapping[str, tuple[str, int]]] = {"num_reads": ("full_context", True)}

    full_context: bool = False
    """Full context embeddings: every embedding depends on the whole support set (appendix A)."""
    cosine_scale: Positive = 1.0
    """Factor of the cosines in the attention's softmax: 1 in the paper, by which no class of five is given more than
    .65 of the probability, or .40 where features are never negative; 100 in Chen et al. 2019 (arXiv 1904.04232), whose
    code says why."""
    num_reads: Count = 5
    """Reads of the support set before a query is matched, K of appendix A.1; with full context only."""

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> MatchingNet:
        """A fresh learner."""
        return MatchingNet(self, spec, device, seed)


@dataclass(frozen=True)
class Matched:
    """A support set: embeddings ``[task, example, feature]`` and classes ``[task, example]``."""

    features: Tensor
    y: Tensor


class ContextEmbedding(nn.Module):
    """Full context embeddings (appendix A).

    Args:
        num_features: size of the embeddings, which stays the same.
        num_reads: K.
    """

    def __init__(self, num_features: int, num_reads: int) -> None:
        super().__init__()
        self.num_reads = num_reads
        self.both_ways = nn.LSTM(num_features, num_features, batch_first=True, bidirectional=True)
        # The paper's recurrent input [h, r] and input f' enter one linear map, so r may stand on either side.
        self.reader = nn.LSTMCell(2 * num_features, num_features)

    def of_support(self, features: Tensor) -> Tensor:
        """``g(x_i, S)``: a bidirectional LSTM over the support set, and the embedding itself (A.2)."""
        forth, back = self.both_ways(features)[0].chunk(2, dim=-1)
        context: Tensor = forth + back + features
        return context

    def of_query(self, features: Tensor, support: Tensor) -> Tensor:
        """``f(x, S)``: an LSTM that reads the support set ``num_reads`` times (A.1).

        Args:
            features: ``f'``, ``[task, query, feature]``; one query does not see the others.
            support: ``g``, ``[task, example, feature]``.
        """
        flat = features.flatten(0, 1)
        hidden = cell = torch.zeros_like(flat)
        for _ in range(self.num_reads):
            attention = (hidden.view_as(features) @ support.mT).softmax(-1)
            read = (attention @ support).flatten(0, 1)
            hidden, cell = self.reader(torch.cat([flat, read], dim=-1), (hidden, cell))
            hidden = hidden + flat
        return hidden.view_as(features)


class MatchingNet(Learner[Matched]):
    """Logits are logarithms of class probabilities, ``sum_i a(x, x_i) y_i`` with cosine attention (eq. 1).

    Args:
        config: settings.
        spec: shapes of the tasks.
        device: where it runs.
        seed: seed for the parameters.

    Raises:
        ConfigError: for tasks of regression.
    """

    data_parallel = True

    def __init__(self, config: MatchingConfig, spec: FewShotSpec, device: torch.device, seed: int) -> None:
        require_classification("matching", spec)
        super().__init__(spec, device, num_adaptations=1)
        self.config = config
        self._scale = config.cosine_scale
        self.body, self._num_features = build_features(config, spec, device, seed, signed=True)
        self.context: ContextEmbedding | None = None
        parts = nn.ModuleDict({"body": self.body})
        if config.full_context:
            with torch_stream(seed, "context"):
                self.context = ContextEmbedding(self._num_features, config.num_reads).to(device)
            parts["context"] = self.context
        self._parts = parts
        self._outer = OuterStep(parts, config.meta_lr)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """The embeddings and their optimiser."""
        return {"network": self._parts, "optimizer": self._outer.optimizer}

    def begin(self, num_tasks: int) -> Matched:
        """One example of each class, all with one embedding, to which every query is equally similar."""
        ways = self.spec.num_outputs
        features = torch.zeros(num_tasks, ways, self._num_features, device=self.device)
        return Matched(features, torch.arange(ways, device=self.device).expand(num_tasks, -1))

    @torch.no_grad()
    def adapt(self, state: Matched, support: Examples) -> Matched:
        """Keep the support set's embeddings; what was known before is forgotten."""
        features = embed(self.body, support.x)
        if self.context is None:
            return Matched(features, support.y)
        order = mixed(support.y.shape[1])
        return Matched(self.context.of_support(features[:, order]), support.y[:, order])

    @torch.no_grad()
    def predict(self, state: Matched, x: Tensor) -> Tensor:
        """See :meth:`Learner.predict`."""
        return self._logits(embed(self.body, x), state.features, state.y, self.spec.num_outputs)

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """One step on the mean loss of the tasks (section 2.2)."""

        def predict() -> tuple[Tensor, Tensor]:
            support, query = embed_batch(self.body, batch)
            y = batch.support.y
            if self.context is not None:
                order = shuffled(y.shape[0], y.shape[1], self.generator).to(y.device)
                support = self.context.of_support(support.gather(1, order[..., None].expand_as(support)))
                y = y.gather(1, order)
            return self._logits(query, support, y, int(y.max()) + 1), batch.query.y

        return self._outer.step(predict, self.spec.kind, self.generator)

    def _logits(self, query: Tensor, support: Tensor, y: Tensor, num_ways: int) -> Tensor:
        if self.context is not None:
            query = self.context.of_query(query, support)
        return match(query, support, y, num_ways, self._scale)


def match(query: Tensor, support: Tensor, y: Tensor, num_ways: int, scale: float = 1.0) -> Tensor:
    """Logarithms of class probabilities ``[task, query, way]``.

    Args:
        query: embeddings ``[task, query, feature]``.
        support: embeddings ``[task, example, feature]``.
        y: classes of the support set ``[task, example]``, each of which occurs.
        num_ways: number of classes.
        scale: factor of the cosines.
    """
    cosines = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).mT
    # By sums of exponentials, since a probability below float32's smallest number has a logarithm all the same.
    others = F.one_hot(y, num_ways)[:, None] == 0
    return (scale * cosines).log_softmax(-1)[..., None].masked_fill(others, -torch.inf).logsumexp(-2)
