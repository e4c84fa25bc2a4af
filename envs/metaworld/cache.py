"""What Meta-World keeps on disk between runs: JSON files that may be lost, damaged or deleted at any time."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarl.runs.files import write_atomically


def cache_folder() -> Path:
    """``$METARL_CACHE``, or ``~/.cache/metarl``."""
    return Path(os.environ.get("METARL_CACHE") or Path.home() / ".cache" / "metarl")


def read_cached(path: Path, file_format: int) -> dict[str, Any] | None:
    """The content of ``path``; None if there is no file, or one of another format, or a damaged one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == file_format else None


def write_cached(path: Path, file_format: int, content: Mapping[str, Any], what: str) -> None:
    """Keep ``content`` in ``path``; a reader sees a whole file or none. Python's floats survive JSON exactly.

    A folder that cannot be written to costs time, not results: a warning says so.

    Args:
        path: the file.
        file_format: increased whenever what is written changes its meaning.
        content: what JSON can hold.
        what: the subject of the warning, in the plural.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"format": file_format, **content}).encode())
    except OSError as error:
        warnings.warn(
            f"{what} could not be kept in {path.parent} ({error}), so they will be made again next time; METARL_CACHE "
            "names another folder.",
            stacklevel=2,
        )
