"""Dataclasses of settings from the JSON form of their fields, also from older forms."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_origin, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from metarl.errors import ConfigError, unknown_name

Config = TypeVar("Config")


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
    hints = _hints(kind)
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
                f"{kind.__name__}.{name} must be of the type {expected}, got {json.dumps(value, default=str)}."
            ) from None
    return kind(**arguments) if base is None else cast(Config, dataclasses.replace(cast(Any, base), **arguments))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


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


def missing_settings(kind: type[Any], values: Mapping[str, Any]) -> list[str]:
    """Fields of a dataclass of settings that a file does not give, by their names of today or before."""
    renamed = getattr(kind, "renamed", {})
    given = {renamed.get(name, name) for name in values}
    return [field.name for field in dataclasses.fields(kind) if field.init and field.name not in given]


def warn_of_defaults(kind: type[Any], values: Mapping[str, Any], name: str, where: Path | str) -> None:
    """Say which settings a run's file lacks: a later version may have added them.

    Whether their defaults are what the run had, its checkpoint says.

    Args:
        kind: the dataclass of an agent's or a learner's settings.
        values: what the file gives.
        name: of the agent or learner.
        where: the file.
    """
    if lost := missing_settings(kind, values):
        defaults = ", ".join(f"{field} = {getattr(kind(), field)!r}" for field in lost)
        warnings.warn(f"{where} lacks settings of {name}; taken are the defaults, {defaults}.", stacklevel=4)
