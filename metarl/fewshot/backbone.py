"""The network of a learner, as its settings name it."""

from __future__ import annotations

import torch
from torch import nn

from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.types import FewShotSpec
from metarl.networks.backbones import Conv4, MLPBackbone
from metarl.plugins import load_attribute
from metarl.seeding import torch_stream

BACKBONES = ("auto", "conv4", "mlp", "linear")
"""Names of our own networks."""


def build_backbone(
    config: LearnerConfig,
    spec: FewShotSpec,
    device: torch.device,
    seed: int,
    *,
    features: bool = False,
    num_steps: int = 1,
) -> nn.Module:
    """The network that ``config`` names, its parameters a function of ``seed`` alone.

    Args:
        config: ``backbone`` and the settings that go with it.
        spec: shapes of the tasks.
        device: where it runs.
        seed: of its parameters.
        features: without the head that gives the task's outputs.
        num_steps: inner steps that normalisation per step tells apart.

    Raises:
        ConfigError: for an unknown name, inputs that do not suit the network, or something of one's own that is no
            function to a module.
    """
    num_outputs = None if features else spec.num_outputs
    name = config.backbone
    if name == "auto":
        name = "conv4" if len(spec.input_shape) == 3 else "mlp"
    with torch_stream(seed, "backbone"):
        if name == "conv4":
            module: nn.Module = Conv4(
                spec.input_shape,
                config.num_filters,
                num_outputs,
                norm=config.norm,
                downsample=config.downsample,
                num_steps=num_steps,
            )
        elif name == "mlp":
            module = MLPBackbone(spec.input_shape, config.hidden_sizes, num_outputs)
        elif name == "linear":
            # Without a constant, so that on the tasks `quadratic` its loss is their function of its weights.
            module = MLPBackbone(spec.input_shape, (), num_outputs, head_bias=False)
        elif ":" in name:
            module = load_attribute(name, "function that makes a module", callable)(spec.input_shape, num_outputs)
            if not isinstance(module, nn.Module):
                raise ConfigError(f"the backbone {name} must make a torch.nn.Module, got {type(module).__name__}.")
        else:
            raise unknown_name("backbone", name, BACKBONES)
    return module.to(device)
