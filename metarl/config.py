"""Settings of a training run, and how dataclasses of settings become JSON and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_origin, get_type_hints

import torch
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from metarl.errors import ConfigError, require_positive, unknown_name

Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the outer loop, the same for every agent."""

    seed: int = 1
    """Of parameters, tasks, environments and actions; the same seed gives the same run, bit for bit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto takes CUDA if there is any."""
    num_iterations: int = 100
    """Meta-updates."""
    meta_batch_size: int = 20
    """Tasks in one meta-update."""
    eval_every: int = 25
    """Iterations between evaluations on held-out tasks."""
    eval_tasks: int = 40
    """Held-out tasks in an evaluation."""
    checkpoint_every: int = 5
    """Iterations between checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep; the best one is kept as well."""

    def __post_init__(self) -> None:
        require_positive(
            self,
            *("num_iterations", "meta_batch_size", "eval_every", "eval_tasks", "checkpoint_every", "keep_checkpoints"),
        )
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError(f"TrainConfig.seed must be an integer of 0 or more, got {self.seed!r}.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise unknown_name("device", self.device, ("auto", "cpu", "cuda"))


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

    Raises:
        ConfigError: for an unknown field, with the nearest match and the valid ones; for a value of another kind.
    """
    assert dataclasses.is_dataclass(kind)
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    arguments: dict[str, Any] = {}
    for name, value in values.items():
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
                f"{kind.__name__}.{name} must be of the type {expected}, got {json.dumps(value, default=str)}."
            ) from None
    return kind(**arguments) if base is None else cast(Config, dataclasses.replace(cast(Any, base), **arguments))
