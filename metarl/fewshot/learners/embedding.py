"""Features of the examples of many tasks, all in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metarl.distributed import current
from metarl.errors import ConfigError
from metarl.fewshot.backbone import build_backbone, probe
from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.types import FewShotSpec, TaskBatch
from metarl.networks.backbones import Conv4, MLPBackbone
from metarl.networks.module_call import call_shared, keeping
from metarl.networks.task_norm import TaskNorm, is_transductive, one_batch
from metarl.seeding import torch_stream

FeatureNorm = Literal["running", "transductive", "none"]
"""Normalisation where parameters do not adapt, so that there are no steps to tell apart (see TaskNorm)."""


@dataclass(frozen=True)
class FeatureConfig(LearnerConfig):
    """Settings that learners share whose network gives features, with the same parameters for all tasks."""

    norm: FeatureNorm = "running"
    """Statistics that conv4 normalises by; see metarl.networks.task_norm."""


def build_features(
    config: LearnerConfig, spec: FewShotSpec, device: torch.device, seed: int, *, signed: bool = False
) -> tuple[nn.Module, int]:
    """The network that ``config`` names, without a head, in evaluation mode, and the size of its features.

    Args:
        config: settings of the network.
        spec: shapes of the tasks.
        device: where it runs.
        seed: seed for its parameters.
        signed: for features that are compared with each other: put a linear layer upon a network of ours that does not
            normalise. Features behind a ReLU are never negative, so that only sparse ones can be dissimilar, and cosine
            attention makes them sparser until most inputs have no active feature at all.

    Raises:
        ConfigError: for a backbone that cannot be made, does not take the inputs, or gives no row for each of them.
    """
    body = build_backbone(config, spec, device, seed, features=True).eval()
    if signed and isinstance(body, Conv4 | MLPBackbone) and not any(isinstance(m, TaskNorm) for m in body.modules()):
        with torch_stream(seed, "embedding"):
            body = nn.Sequential(body, nn.Linear(body.num_features, body.num_features).to(device)).eval()
    features = probe(body, spec.input_shape, device, f"the backbone {config.backbone}")
    return body, features[0].numel()


def embed(body: nn.Module, x: Tensor) -> Tensor:
    """Features ``[task, example, feature]`` of inputs ``[task, example, ...]``.

    Transductive normalisation takes the statistics of each task's examples; every other the running ones, or in
    training those of everything that is embedded at once.

    Raises:
        ConfigError: for a network that changes its input.
    """
    with keeping(body, x):
        if is_transductive(body):
            features = call_shared(body, x)
        else:
            with one_batch():
                features = body(x.flatten(0, 1))
    return features.reshape(*x.shape[:2], -1)


def embed_batch(body: nn.Module, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Features of all support and of all query examples, for training.

    Both are embedded together, and so normalised together, as in Snell's code; transductive normalisation takes
    support and query apart, since at test they come one after the other.
    """
    if is_transductive(body):
        return embed(body, batch.support.x), embed(body, batch.query.x)
    both = embed(body, torch.cat([batch.support.x, batch.query.x], dim=1))
    num_support = batch.support.x.shape[1]
    return both[:, :num_support], both[:, num_support:]


def shuffled(num_tasks: int, num_examples: int, generator: torch.Generator) -> Tensor:
    """An order of the examples of each task ``[task, example]``, drawn by its place in the batch of all ranks."""
    first, total = current().place(num_tasks)
    drawn = torch.rand((total, num_examples), generator=generator)
    return drawn[first : first + num_tasks].argsort(1)


def mixed(num_examples: int) -> list[int]:
    """The order in which a learner that reads a support set as a sequence reads it after training.

    One of those that :func:`shuffled` draws, and always the same one. Examples come sorted by their classes, which
    training all but never shows: what was learned need not hold for such an order.
    """
    order: list[int] = torch.randperm(num_examples, generator=torch.Generator().manual_seed(0)).tolist()
    return order


def require_classification(name: str, spec: FewShotSpec) -> None:
    """Refuse regression.

    Raises:
        ConfigError: naming learners that take it.
    """
    if spec.kind != "classification":
        raise ConfigError(
            f"{name} classifies, and these tasks are {spec.kind}. Learners that take them: maml, reptile, snail, "
            "pretrained."
        )
