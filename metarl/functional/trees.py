"""Tensors inside of an agent's state, whatever its form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from metarl.errors import ConfigError


def map_tensors(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """The same with every tensor replaced, through dataclasses, mappings, sequences and named tuples.

    Args:
        function: of a tensor of ``first``, and those that stand in its place in ``others``.
        first: what is walked through; what is no tensor stays as it is.
        others: of the same form.

    Raises:
        ConfigError: if something that is no tensor differs.
    """
    if isinstance(first, Tensor):
        return function(first, *others)
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        parts = {name: [getattr(one, name) for one in (first, *others)] for name in names}
        return type(first)(**{name: map_tensors(function, *part) for name, part in parts.items()})
    if isinstance(first, Mapping):
        return {key: map_tensors(function, *(one[key] for one in (first, *others))) for key in first}
    if isinstance(first, tuple | list):
        found = [map_tensors(function, *part) for part in zip(first, *others, strict=True)]
        return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    if any(other != first for other in others):
        raise ConfigError(f"one cannot tell which task a state's {type(first).__name__} {first!r} belongs to.")
    return first
