"""Settings of a training run, and how dataclasses of settings become JSON and back."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_origin, get_type_hints

import torch
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from metarl.errors import ConfigError, unknown_name
from metarl.settings import Count, Natural, check_settings

Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the outer loop, the same for every agent."""

    seed: Natural = 1
    """Seed for parameters, tasks, environments and actions; the same seed gives the same run, bit for bit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto takes CUDA if there is any."""
    num_iterations: Count = 100
    """Meta-updates."""
    meta_batch_size: Count = 20
    """Tasks in one meta-update."""
    eval_every: Count = 25
    """Iterations between evaluations on held-out tasks."""
    eval_tasks: Count = 40
    """Held-out tasks in an evaluation."""
    checkpoint_every: Count = 5
    """Iterations between checkpoints."""
    keep_checkpoints: Count = 3
    """Newest checkpoints to keep; the best one is kept as well."""

    def __post_init__(self) -> None:
        check_settings(self)


def choose_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: for CUDA on a machine without it.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no CUDA device here. Use cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def run_config(
    agent: str | None,
    tasks: str | None,
    train: TrainConfig,
    settings: Any,
    not_found: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What stands in the ``config.json`` of a run.

    Args:
        agent: name or ``module:attribute`` of the agent; None for an agent that cannot be found by a name.
        tasks: id or ``module:attribute`` of the distribution; None as for the agent.
        train: settings of the outer loop.
        settings: the agent's config, a dataclass; they stand under the agent's name, or under ``"settings"`` where
            that is None. None for an agent without a config.
        not_found: for ``"agent"`` and ``"tasks"`` the reason why they have no name.
    """
    return {
        "agent": agent,
        "tasks": tasks,
        "train": dataclasses.asdict(train),
        **({} if settings is None else {agent or "settings": dataclasses.asdict(settings)}),
        **({"not_found": dict(not_found)} if not_found else {}),
    }


def from_dict(kind: type[Config], values: Mapping[str, Any], base: Config | None = None) -> Config:
    """A config dataclass from the JSON form of its fields.

    Args:
        kind: the dataclass.
        values: fields by name; tuples may come as lists.
        base: what fields that are missing keep; default: their defaults.

    Older forms are understood: ``renamed`` and ``retired`` (see :class:`metarl.agent.AgentConfig`) say what the fields
    were called, and which values are passed over.

    Raises:
        ConfigError: for an unknown field, with the nearest match and the valid ones; for a value of another kind.
    """
    assert dataclasses.is_dataclass(kind)
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    arguments: dict[str, Any] = {}
    for name, value in _of_today(kind, values).items():
        if name not in names:
            raise unknown_name(f"field of {kind.__name__}", name, names)
        if isinstance(value, list) and get_origin(hints[name]) is tuple:
            value = tuple(value)
        try:
            arguments[name] = check_type(
                value, hints[name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS
            )
        except TypeCheckError:
            expected = str(hints[name]).removeprefix("typing.") if get_origin(hints[name]) else hints[name].__name__
            raise ConfigError(
                f"{kind.__name__}.{name} must be of the type {expected}, got {json.dumps(value)}."
            ) from None
    return kind(**arguments) if base is None else cast(Config, dataclasses.replace(cast(Any, base), **arguments))


def _of_today(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an older config file under today's names, without those that never acted."""
    renamed: Mapping[str, str] = getattr(kind, "renamed", {})
    retired: Mapping[str, tuple[Any, ...] | None] = getattr(kind, "retired", {})
    fields = {field.name for field in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for old, value in values.items():
        name = renamed.get(old, old)
        if name in retired:
            passed_over = retired[name]
            if passed_over is None or value in passed_over:
                continue
            if name not in fields:
                warnings.warn(f"{kind.__name__} has no {name} any more: {value!r} is passed over.", stacklevel=3)
                continue
        if name in found:
            raise ConfigError(f"{kind.__name__}.{name} is given twice, as {name} and by its older name.")
        found[name] = value
    return found
