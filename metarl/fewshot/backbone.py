"""The network of a learner, as its settings name it."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.types import FewShotSpec
from metarl.networks.backbones import Conv4, MLPBackbone
from metarl.plugins import load_attribute
from metarl.seeding import torch_stream

Config = TypeVar("Config", bound=LearnerConfig)

BACKBONES = ("auto", "conv4", "mlp", "linear")
"""Names of our own networks."""

_USES = {"num_filters": "conv4", "norm": "conv4", "downsample": "conv4", "precision": "conv4", "hidden_sizes": "mlp"}
"""The only network that uses each of the settings of networks."""


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
        ConfigError: for an unknown name, inputs that do not suit the network, settings that do nothing, or something of
            one's own that is no function to a module.
    """
    num_outputs = None if features else spec.num_outputs
    name = _name(config, spec)
    if name not in BACKBONES and ":" not in name:
        raise unknown_name("backbone", name, BACKBONES)
    _require_acting(config, spec)
    with torch_stream(seed, "backbone"):
        if name == "conv4":
            module: nn.Module = Conv4(
                spec.input_shape,
                config.num_filters,
                num_outputs,
                norm=config.norm,
                downsample=config.downsample,
                num_steps=num_steps,
                precision=config.precision,
            )
        elif name == "mlp":
            module = MLPBackbone(spec.input_shape, config.hidden_sizes, num_outputs)
        elif name == "linear":
            # Without a constant, so that on the tasks `quadratic` its loss is their function of its weights.
            module = MLPBackbone(spec.input_shape, (), num_outputs, head_bias=False)
        else:
            make = load_attribute(name, "function that makes a module", callable)
            try:
                module = make(spec.input_shape, num_outputs)
            except Exception as error:
                what = f"the backbone {name} raised when it was called with {spec.input_shape} and {num_outputs}"
                raise ConfigError(f"{what}: {type(error).__name__}: {error}.") from error
            _require_module(module, name)
            if any(map(is_lazy, module.parameters())):
                # A first call gives lazy layers their parameters, which are to be a function of the seed.
                probe(module, spec.input_shape, torch.device("cpu"), f"the backbone {name}")
    return module.to(device)


def _require_module(module: object, name: str) -> None:
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the backbone {name} must make a torch.nn.Module, got {type(module).__name__}.")
    for key, value in module.named_parameters():
        if value.dtype != torch.float32:
            raise ConfigError(
                f"the backbone {name} has the parameter {key} in {value.dtype}, and inputs are torch.float32: make it "
                "float32. Convert inside of forward what is to be computed in another precision."
            )


def idle_settings(config: LearnerConfig, spec: FewShotSpec) -> dict[str, str]:
    """Settings that do nothing beside the others on such tasks, by name: why, and what makes them act."""
    name = _name(config, spec)
    chosen = f"{name} (auto, for inputs of the shape {spec.input_shape})" if config.backbone == "auto" else name
    idle = {
        setting: f"the backbone is {chosen}, and only {own} uses it. Leave it out, or take the backbone {own}."
        for setting, own in _USES.items()
        if own != name
    }
    for setting, (other, least) in config.acts_with.items():
        if (value := getattr(config, other)) < least:
            enough = f"{least}" if isinstance(least, bool) else f"{least} or more"
            idle[setting] = f"it acts with {other} = {enough} alone, which is {value}. Leave it out, or set {other}."
    return idle


def without_idle(config: Config, spec: FewShotSpec, before: Config | None = None) -> Config:
    """``config`` with the defaults of settings that do nothing, so that what is recorded is what acts.

    Args:
        config: settings.
        spec: shapes of the tasks.
        before: what they were, by a preset or a file, before some were given by the user; None if none was. Values that
            differ from these, and those that did nothing already, are the user's and stay, so that
            :func:`build_backbone` refuses them.
    """
    idle = set(idle_settings(config, spec))
    if before is not None:
        idle -= idle_settings(before, spec).keys()
        idle = {name for name in idle if getattr(config, name) == getattr(before, name)}
    return dataclasses.replace(config, **{name: _defaults(config)[name] for name in idle})


def _name(config: LearnerConfig, spec: FewShotSpec) -> str:
    """The network that is meant: ``auto`` is told by the inputs."""
    if config.backbone != "auto":
        return config.backbone
    return "conv4" if len(spec.input_shape) == 3 else "mlp"


def _require_acting(config: LearnerConfig, spec: FewShotSpec) -> None:
    for name, why in idle_settings(config, spec).items():
        if (value := getattr(config, name)) != _defaults(config)[name]:
            raise ConfigError(f"{name} = {value!r} does nothing here: {why}")


def _defaults(config: LearnerConfig) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(config)}


def probe(module: nn.Module, input_shape: tuple[int, ...], device: torch.device, name: str) -> Tensor:
    """What ``module``, called ``name``, gives for two inputs of zeros, ``[example, ...]``.

    Raises:
        ConfigError: if it fails on them, or gives no row for each of them.
    """
    dtype = next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)
    inputs = torch.zeros(2, *input_shape, device=device, dtype=dtype)
    try:
        with torch.no_grad():
            found = module(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"{name} fails on inputs {tuple(inputs.shape)}, [example, ...]: {error}") from error
    if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != len(inputs):
        got = f"the shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"{name} must give features [example, ...], or outputs, for inputs [example, ...]: for {len(inputs)} "
            f"inputs it gave {got}."
        )
    return found


def require_outputs(module: nn.Module, spec: FewShotSpec, device: torch.device) -> None:
    """Refuse a network whose outputs are not those of the tasks, which a loss might broadcast.

    Raises:
        ConfigError: saying which shape came and which was expected.
    """
    outputs = probe(module, spec.input_shape, device, "the network")
    if outputs.shape[1:] != (spec.num_outputs,):
        raise ConfigError(
            f"the network must give {spec.num_outputs} outputs for each input, one for each class or each number of a "
            f"target: expected the shape (2, {spec.num_outputs}) for 2 inputs, got {tuple(outputs.shape)}. Build its "
            "last layer for the number of outputs that it is asked for."
        )
