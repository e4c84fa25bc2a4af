"""What the settings of a learner ask of memory, estimated before a run."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metarl.fewshot.backbone import BACKBONES, build_backbone, idle_settings
from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.learners.embedding import FeatureConfig
from metarl.fewshot.learners.random import RandomConfig
from metarl.fewshot.types import EpisodeConfig, FewShotSpec
from metarl.networks.task_norm import TaskNorm
from metarl.runs.memory import Share

_BYTES = 4
"""Of a float32."""


def network_share(config: LearnerConfig, spec: FewShotSpec) -> Share:
    """The parameters of one of our own networks; nothing is known of a user's.

    Raises:
        ConfigError: for a network that cannot be, see :func:`build_backbone`.
    """
    network = _outline(config, spec)
    parameters = 0 if network is None else sum(value.numel() for value in network.parameters())
    return Share("networks", _sizes(config, spec), _BYTES * parameters)


def batch_shares(
    config: LearnerConfig, spec: FewShotSpec, episode: EpisodeConfig, tasks: tuple[str, int], *, learns: bool
) -> list[Share]:
    """What a batch of tasks takes at least.

    What depends on the learner is left out, such as the parameters of each task and the graph of their steps: what the
    estimate lets pass may be too large even so.

    Args:
        config: settings of the learner.
        spec: shapes of the tasks.
        episode: size of the tasks.
        tasks: how many are in memory together, behind the name of the setting that says so.
        learns: whether derivatives are kept. Learners that share their features among tasks embed the whole batch at
            once, and keep of every example what its layers put out.
    """
    name, num_tasks = tasks
    settings = {name: num_tasks, "ways": episode.ways, "shots": episode.shots, "queries": episode.queries}
    examples = num_tasks * episode.ways * (episode.shots + episode.queries)
    shares = [Share("examples", settings, _BYTES * examples * math.prod(spec.input_shape))]
    if learns and isinstance(config, FeatureConfig) and not isinstance(config, RandomConfig):
        kept = examples * _kept_bytes(config, spec)
        shares.append(Share("features of examples", {**settings, **_sizes(config, spec)}, kept))
    return shares


def _sizes(config: LearnerConfig, spec: FewShotSpec) -> dict[str, object]:
    """The settings that a network's size depends on."""
    idle = idle_settings(config, spec)
    return {name: getattr(config, name) for name in ("num_filters", "hidden_sizes") if name not in idle}


def _kept_bytes(config: LearnerConfig, spec: FewShotSpec) -> int:
    """What derivatives of our own networks need of each example: what is normalised, pooled and left by ReLU."""
    network = _outline(config, spec)
    if network is None:
        return 0
    size = 2 if config.precision == "bfloat16" else _BYTES
    count = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        count += size * inputs[0].numel()
        if isinstance(module, nn.MaxPool2d):
            count += 8 * output.numel()  # Where the maxima stood.

    for part in network.modules():
        if isinstance(part, TaskNorm | nn.MaxPool2d | nn.ReLU):
            part.register_forward_hook(add)
    # Two of them, since a single number cannot be normalised.
    network(torch.empty(2, *spec.input_shape, device="meta"))
    return count // 2


def _outline(config: LearnerConfig, spec: FewShotSpec) -> nn.Module | None:
    """The features of our own networks in shapes alone, without memory; None for a network of the user's."""
    if config.backbone not in BACKBONES:
        return None
    meta = torch.device("meta")
    with meta:
        return build_backbone(config, spec, meta, 0, features=True)
