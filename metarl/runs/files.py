"""The one way in which metarl writes a file, and JSON on top of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metarl.errors import CheckpointError, ConfigError


def safe_name(name: str) -> str:
    """``name`` as part of a file's name: what is awkward there (the slash of a task's id, a colon) becomes a dash."""
    return re.sub(r"[^\w.+=-]+", "-", name).strip(".-")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace ``path`` in one step by what the block writes to the temporary path that it is given.

    The file is synced, renamed, and its folder synced. A symbolic link is replaced, not the file that it names.

    Raises:
        OSError: if anything fails; ``path`` is then whole (the old content or the new) and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename itself is durable only once the folder is on disk.
    _sync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON, in one step.

    Raises:
        CheckpointError: if the file cannot be written.
        ConfigError: if ``content`` holds something that JSON cannot.
    """
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot hold this content: {error}.") from error
    try:
        write_atomically(path, text.encode() + b"\n")
    except OSError as error:
        raise CheckpointError(f"could not write {path}: {error.strerror or error}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: if the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object, got {type(content).__name__}.")
    return content
