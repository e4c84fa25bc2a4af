"""A checkpoint's state as JSON with its tensors beside it, in both directions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metarl.errors import CheckpointError


def to_text(state: Mapping[str, Any], tensors: dict[str, Tensor]) -> str:
    """``state`` as the JSON of a checkpoint; its tensors move into ``tensors``."""
    return json.dumps(_encode(dict(state), "state", tensors), allow_nan=False, separators=(",", ":"))


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON; objects are tagged by their single key, and tensors move into ``tensors``."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{where} is not a dense tensor (layout {value.layout}); store its parts instead.")
        name = where
        while name in tensors:  # {"a": {"b": x}, "a.b": y}
            name += "'"
        # A copy of its own, since safetensors refuses tensors that share memory.
        tensors[name] = value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [_encode(entry, f"{where}.{index}", tensors) for index, entry in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [_encode(entry, f"{where}.{index}", tensors) for index, entry in enumerate(value)]}
    if isinstance(value, Mapping):
        # Pairs, not a JSON object: an optimiser's keys are integers, which JSON would turn into strings.
        pairs = [[_encode_key(key, where), _encode(entry, f"{where}.{key}", tensors)] for key, entry in value.items()]
        return {"dict": pairs}
    raise CheckpointError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold; "
        "expected tensors, numbers, strings, bools or None in dicts, lists and tuples."
    )


def _encode_key(key: Any, where: str) -> Any:
    if isinstance(key, Tensor | list | Mapping):
        raise CheckpointError(f"{where} has the key {key!r}; expected a string, a number, a bool, None or a tuple.")
    return _encode(key, f"{where} (a key)", {})


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`to_text`, from its JSON as parsed and its tensors."""
    if isinstance(value, list):
        return [decode(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "tensor":
        return tensors[content]
    if tag == "float":
        return float(content)
    if tag == "tuple":
        return tuple(decode(entry, tensors) for entry in content)
    if tag == "dict":
        return {decode(key, tensors): decode(entry, tensors) for key, entry in content}
    raise ValueError(f"unknown tag {tag!r}")


def content_digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """The sha256 over the JSON text and every tensor's name, dtype, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
