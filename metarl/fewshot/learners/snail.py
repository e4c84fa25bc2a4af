"""SNAIL: the support set as a sequence of examples with labels, and then one query without.

Mishra, Rohaninejad, Chen, Abbeel, 2018, "A simple neural attentive meta-learner" (arXiv 1707.03141), section 5.1. The
blocks are those of the agent (:mod:`metarl.networks.snail`); their sizes are the paper's for Omniglot:
``Attention(64, 32), TC(T, 128), Attention(256, 128), TC(T, 128), Attention(512, 256)`` and a linear layer.

Support sets are read in random order in training and in one fixed mixed order afterwards: of those that come sorted by
their classes, a network that had 73 % of the queries knew 42 %.

Differences from the paper: it builds a sequence for each query, and here all queries of a task share what the blocks
made of the support set, of which each is a next step of its own: the same numbers, at a fraction of the cost. The
embedding is that of the other learners (its ResNet for miniImageNet can be given as a backbone of one's own). In
regression, which the paper leaves out, labels are the targets, and the label of a query is zero as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.config.settings import Count, Natural, SomeCounts
from metarl.errors import ConfigError
from metarl.fewshot.learner import Learner
from metarl.fewshot.learners.embedding import FeatureConfig, build_features, embed, embed_batch, mixed, shuffled
from metarl.fewshot.learners.outer_step import OuterStep
from metarl.fewshot.types import Examples, FewShotSpec, TaskBatch
from metarl.networks.snail import AttentionBlock, DenseBlock
from metarl.seeding import torch_stream


@dataclass(frozen=True)
class SNAILConfig(FeatureConfig):
    """SNAIL."""

    when: ClassVar[str] = "one network that reads the support set as a sequence; learns slowly, predicts in one pass"

    feature_size: Count = 64
    """Size of an example's embedding, before its label is put beside it."""
    key_sizes: SomeCounts = (64, 256, 512)
    """Sizes of keys and queries of each attention block; a TC block stands between any two."""
    value_sizes: SomeCounts = (32, 128, 256)
    """Channels that each attention block adds."""
    tc_filters: Count = 128
    """Channels that each convolution of a TC block adds."""
    num_support: Natural = 0
    """Support examples that TC blocks reach back over; 0: those of a test task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.key_sizes) != len(self.value_sizes):
            raise ConfigError(
                f"SNAILConfig needs as many key_sizes as value_sizes, one pair for each attention block, got "
                f"{self.key_sizes} and {self.value_sizes}."
            )

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> SNAIL:
        """A fresh learner."""
        return SNAIL(self, spec, device, seed)


class SupportReader(nn.Module):
    """Attention and TC blocks over a support set, and then over any number of single next steps.

    Args:
        config: sizes.
        num_features: size of an example's features.
        num_outputs: numbers in a label, and outputs.
        num_support: examples that TC blocks reach back over.
    """

    def __init__(self, config: SNAILConfig, num_features: int, num_outputs: int, num_support: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(num_features, config.feature_size)
        size = config.feature_size + num_outputs
        dilations = [2**power for power in range(math.ceil(math.log2(num_support + 1)))]
        blocks: list[AttentionBlock | DenseBlock] = []
        for key_size, value_size in zip(config.key_sizes, config.value_sizes, strict=True):
            for dilation in dilations if blocks else ():
                blocks.append(DenseBlock(size, config.tc_filters, dilation))
                size += config.tc_filters
            blocks.append(AttentionBlock(size, key_size, value_size, num_support))
            size += value_size
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(size, num_outputs)

    def read(self, features: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """What each block keeps of a support set.

        Args:
            features: ``[task, example, feature]``.
            labels: ``[task, example, output]``.
        """
        x = torch.cat([self.encoder(features), labels], dim=-1)
        num_tasks, num_examples, _ = x.shape
        states: list[Tensor] = []
        for block in self.blocks:
            if isinstance(block, AttentionBlock):
                nothing = x.new_zeros(num_tasks, num_examples * block.memory.out_features)
                x, state = block(x, nothing, torch.zeros(num_tasks, dtype=torch.long, device=x.device))
            else:
                assert isinstance(block, DenseBlock)
                x, state = block(x, x.new_zeros(num_tasks, block.state_size))
            states.append(state)
        return tuple(states)

    def answer(self, features: Tensor, states: tuple[Tensor, ...]) -> Tensor:
        """Outputs ``[task, query, output]`` of queries ``[task, query, feature]``, each alone after the support set."""
        null = features.new_zeros(*features.shape[:2], self.head.out_features)
        x = torch.cat([self.encoder(features), null], dim=-1)
        for block, state in zip(self.blocks, states, strict=True):
            assert isinstance(block, AttentionBlock | DenseBlock)
            x = block.peek(x, state)
        outputs: Tensor = self.head(x)
        return outputs


@dataclass(frozen=True)
class Reading:
    """What each block kept of the support sets, ``[task, ...]``; None before any."""

    states: tuple[Tensor, ...] | None


class SNAIL(Learner[Reading]):
    """Trained so that a query's output, after a support set in random order, is its label.

    Args:
        config: settings.
        spec: shapes of the tasks.
        device: where it runs.
        seed: seed for the parameters.

    Raises:
        ConfigError: if neither the settings nor the tasks say how long a support set is.
    """

    data_parallel = True

    def __init__(self, config: SNAILConfig, spec: FewShotSpec, device: torch.device, seed: int) -> None:
        super().__init__(spec, device, num_adaptations=1)
        num_support = config.num_support or spec.num_support
        if num_support is None:
            raise ConfigError(
                "snail is built for a number of support examples, and these tasks do not say theirs: set num_support "
                "(ways times shots)."
            )
        self.config = config
        self.body, num_features = build_features(config, spec, device, seed)
        with torch_stream(seed, "reader"):
            self.reader = SupportReader(config, num_features, spec.num_outputs, num_support).to(device)
        self._parts = nn.ModuleDict({"body": self.body, "reader": self.reader})
        self._outer = OuterStep(self._parts, config.meta_lr)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """The network and its optimiser."""
        return {"network": self._parts, "optimizer": self._outer.optimizer}

    def begin(self, num_tasks: int) -> Reading:
        """Nothing read."""
        return Reading(None)

    @torch.no_grad()
    def adapt(self, state: Reading, support: Examples) -> Reading:
        """Read the support set in a :func:`mixed` order; what was known before is forgotten."""
        order = mixed(support.y.shape[1])
        return Reading(self.reader.read(embed(self.body, support.x[:, order]), self._labels(support.y[:, order])))

    @torch.no_grad()
    def predict(self, state: Reading, x: Tensor) -> Tensor:
        """See :meth:`Learner.predict`; zeros before a support set was read, which training never asks about."""
        if state.states is None:
            return x.new_zeros(*x.shape[:2], self.spec.num_outputs)
        return self.reader.answer(embed(self.body, x), state.states)

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """One step on the mean loss of the queries."""

        def predict() -> tuple[Tensor, Tensor]:
            support, query = embed_batch(self.body, batch)
            order = shuffled(support.shape[0], support.shape[1], self.generator).to(support.device)[..., None]
            labels = self._labels(batch.support.y)
            states = self.reader.read(
                support.gather(1, order.expand_as(support)), labels.gather(1, order.expand_as(labels))
            )
            return self.reader.answer(query, states), batch.query.y

        return self._outer.step(predict, self.spec.kind, self.generator)

    def _labels(self, y: Tensor) -> Tensor:
        """Labels as inputs, ``[task, example, output]``."""
        if self.spec.kind == "regression":
            return y
        return F.one_hot(y, self.spec.num_outputs).to(self.reader.head.weight.dtype)
