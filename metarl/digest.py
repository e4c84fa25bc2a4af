"""Digests of tasks: equal content, equal digest, in every process."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarl.types import Task


def task_digest(task: Task) -> bytes:
    """A digest of a task's content: equal tasks, equal digests, in every process.

    Numbers are compared as float64, so ``1``, ``1.0`` and ``np.float32(1)`` are the same. Other objects are
    compared by their ``repr``.
    """
    digest = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value):
                digest.update(f"key:{key};".encode())
                feed(value[key])
        elif isinstance(value, str | bytes):
            # The length keeps ["ab", "c"] apart from ["a", "bc"].
            digest.update(f"text:{len(value)};".encode())
            digest.update(value.encode() if isinstance(value, str) else value)
        elif isinstance(value, Sequence):
            digest.update(f"sequence:{len(value)};".encode())
            for entry in value:
                feed(entry)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            feed({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
        else:
            array = np.asarray(value)
            if array.dtype.kind in "biuf":
                digest.update(str(array.shape).encode())
                digest.update(np.ascontiguousarray(array.astype(np.float64)).tobytes())
            else:
                digest.update(repr(value).encode())

    feed(task)
    return digest.digest()
