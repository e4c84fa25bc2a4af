"""The abstract class of all few-shot learners, which adapt to tasks through four verbs."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from metarl.config.settings import Count, Counts, Natural, Positive, check_settings
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, TaskBatch
from metarl.networks.backbones import Downsample, Precision
from metarl.networks.task_norm import Norm
from metarl.runs.components import Components

State = TypeVar("State")


class Learner(Components, Generic[State]):
    """``begin -> adapt ... -> predict``, and ``meta_update``.

    ``State`` holds whatever adapts to a task: parameters (MAML), prototypes, a support set. The verbs are those of
    :class:`metarl.agent.Agent`, and so is the contract: ``adapt`` and ``predict`` depend on their arguments and the
    meta-parameters alone; permuting the tasks permutes their results; only ``meta_update`` changes meta-parameters; an
    untrained learner can adapt and predict; the same seed gives the same bits.

    Attributes:
        spec: shapes of the tasks that it is scored on.
        device: where parameters live and where batches arrive.
        num_adaptations: calls of ``adapt`` in training.
        num_eval_adaptations: calls of ``adapt`` in an evaluation, unless it says otherwise.
        generator: source of every sample that learning draws (initial parameters, minibatches, dropout), on the CPU.
        config: settings that it was built from.
        draws_by_index: whether something is drawn for each task of a batch (initial parameters, minibatches), so that
            what becomes of a task depends on its place in the batch, though not on the tasks beside it.
        mixes_queries: whether what is predicted of one query may depend on the others, as with transductive
            normalisation it does in any case.
        data_parallel: whether ``meta_update`` may get a share of the batch, and takes its sums over tasks with
            :func:`metarl.distributed.current`; other learners are refused by more than one rank.
    """

    draws_by_index = False
    mixes_queries = False
    data_parallel: bool = False

    config: LearnerConfig

    def __init__(
        self, spec: FewShotSpec, device: torch.device, *, num_adaptations: int, num_eval_adaptations: int | None = None
    ) -> None:
        self.spec = spec
        self.device = device
        self.num_adaptations = num_adaptations
        self.num_eval_adaptations = num_adaptations if num_eval_adaptations is None else num_eval_adaptations
        self.generator = torch.Generator()

    @abc.abstractmethod
    def begin(self, num_tasks: int) -> State:
        """The state before anything is known about ``num_tasks`` new tasks."""

    @abc.abstractmethod
    def adapt(self, state: State, support: Examples) -> State:
        """Learn from the tasks' support sets: one gradient step, or all there is to learn; nothing is changed."""

    @abc.abstractmethod
    def predict(self, state: State, x: Tensor) -> Tensor:
        """Logits or predictions ``[task, example, output]`` for inputs ``[task, example, ...]``.

        Gradients are not kept. What is predicted of one example may depend on the others only where the learner's
        network normalises by them (transductively), or ``mixes_queries`` says so.
        """

    @abc.abstractmethod
    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """Improve the meta-parameters by one batch of training tasks; returns metrics by name, ``loss`` among them."""

    def training_episode(self, episode: EpisodeConfig) -> EpisodeConfig:
        """The size of training tasks, given that of test tasks: the same but for what the settings say."""
        return dataclasses.replace(episode, queries=self.config.train_queries or episode.queries)

    def seed(self, seed: int) -> None:
        """Restart the learner's random stream, which happens before every batch."""
        self.generator.manual_seed(seed)


@dataclass(frozen=True)
class LearnerConfig(abc.ABC):
    """Settings of one kind of learner; a frozen dataclass that knows how to build it.

    The types of its fields say which values they take (:mod:`metarl.config.settings`).

    A setting that never acts on a learner is fixed by a ``Literal`` with one value; one that does not act beside the
    others is refused where it is not its default (see :func:`metarl.fewshot.backbone.idle_settings`).

    Attributes:
        when: when to choose this learner, for ``metarl fewshot list``.
        acts_with: settings that act only where another one has a least value, by name: that other one and the value.
        retired: as in :class:`metarl.agent.AgentConfig`.
    """

    when: ClassVar[str] = ""
    acts_with: ClassVar[Mapping[str, tuple[str, int]]] = {}
    retired: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {}

    backbone: str = "auto"
    """The network: conv4 for images, mlp, linear, or module:attribute of (input_shape, num_outputs) -> module."""
    num_filters: Count = 64
    """Filters of each block of conv4."""
    hidden_sizes: Counts = (40, 40)
    """Widths of mlp's layers."""
    norm: Norm = "transductive"
    """Statistics that conv4 normalises by; see metarl.networks.task_norm."""
    downsample: Downsample = "pool"
    """How conv4's blocks halve an image: 2 x 2 maximum, or a stride of 2."""
    precision: Precision = "float32"
    """Precision of conv4's convolutions; bfloat16 takes .6 to .8 of the time where the processor multiplies in it."""
    meta_lr: Positive = 1e-3
    """Step size of Adam in the outer loop."""
    train_queries: Natural = 0
    """Queries of each class of a training task; 0: as many as in test."""

    @property
    def last_iteration(self) -> int | None:
        """Iterations after which the outer loop's step is zero, so that nothing is learned; None: it never is."""
        return None

    def __post_init__(self) -> None:
        check_settings(self)

    @abc.abstractmethod
    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> Learner[Any]:
        """A fresh learner whose parameters are a function of ``seed`` alone."""
