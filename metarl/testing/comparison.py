"""Whether two things are the same to the last bit, and the state of what is trained, to be compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from metarl.runs.components import Components


def snapshot(trained: Components) -> dict[str, Any]:
    """A copy of the state of all components."""
    return copy.deepcopy(trained.state_dict())


def same_bits(left: Any, right: Any) -> bool:
    """Bit for bit, through nested containers and dataclasses."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return (
            isinstance(right, Mapping)
            and left.keys() == right.keys()
            and all(same_bits(left[key], right[key]) for key in left)
        )
    if isinstance(left, Sequence) and not isinstance(left, str):
        return len(left) == len(right) and all(same_bits(a, b) for a, b in zip(left, right, strict=True))
    if is_dataclass(left):
        return all(same_bits(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))
    return bool(left == right)
