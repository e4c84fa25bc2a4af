"""The one way in which metarl writes a file, the one in which it reads one, and JSON on top of both."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from metarl.errors import CheckpointError, ConfigError

Kind = TypeVar("Kind")

_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
}
"""What a file may hold, in words."""

_BOUND = 2**63
"""Whole numbers from here on fit no array, tensor or seed."""


def safe_name(name: str) -> str:
    """``name`` as part of a file's name: what is awkward there (the slash of a task's id, a colon) becomes a dash."""
    return re.sub(r"[^\w.+=-]+", "-", name).strip(".-")


def shown(path: Path) -> str:
    """A path as somebody in the working directory would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


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


def require_writable(folder: Path, instead: str) -> None:
    """Refuse a folder that nothing can be written into, before there is anything to write.

    Args:
        folder: where files are to come; its parents are made if need be.
        instead: what to do, as a sentence.

    Raises:
        ConfigError: naming the folder and why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write into {shown(folder)}: {error.strerror or error}. {instead}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_failure(path: Path, error: OSError) -> str:
    """Why a file of a run could not be written and what helps, as the rest of a sentence after a colon.

    Args:
        path: the file.
        error: what the system said.
    """
    reason = error.strerror or str(error)
    # Where nothing is left to write into, the system may say anything, or nothing until the next file.
    if not path.parent.exists():
        return f"the folder {path.parent} is gone ({reason}): it was deleted or moved, with all that was saved in it."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({reason}). The checkpoints so far are intact; free some space, then resume the run."
    return (
        f"the folder cannot be written ({reason}). The checkpoints so far are intact; restore write access, then "
        "resume the run."
    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write ``content`` as JSON, in one step; without ``indent`` in one line without spaces.

    Raises:
        CheckpointError: if the file cannot be written.
        ConfigError: if ``content`` holds something that JSON cannot.
    """
    try:
        separators = (",", ":") if indent is None else None
        text = json.dumps(content, indent=indent, separators=separators, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot hold this content: {error}.") from error
    try:
        write_atomically(path, text.encode() + b"\n")
    except OSError as error:
        raise CheckpointError(f"could not write {path}: {error.strerror or error}.") from error


def read_regular(path: Path) -> bytes:
    """The content of a regular file, or of one that a link names.

    Raises:
        OSError: if it cannot be read; for a pipe, a device or a folder, which may never end.
    """
    # Opening a pipe would wait for somebody who writes into it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read()


def parse_json(data: bytes | str, where: Path | str) -> Any:
    """What JSON says.

    Args:
        data: the JSON.
        where: what it was read from, for messages.

    Raises:
        CheckpointError: if it is none, or is nested too deeply to be read.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise CheckpointError(f"{where} is damaged: it is nested too deeply to be read.") from None
    except ValueError as error:
        raise CheckpointError(f"{where} is damaged: {error}.") from error


def check_numbers(content: Any, where: Path | str) -> None:
    """Refuse numbers that no setting and no metric can be, at any depth of what a JSON or YAML file holds.

    Raises:
        CheckpointError: for NaN, an infinity or a whole number beyond 64 bits, naming its field.
    """
    waiting: list[tuple[str, Any]] = [("", content)]
    seen: set[int] = set()  # Parts of a YAML file may be there a billion times, by reference.
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict | list):
            if id(value) not in seen:
                seen.add(id(value))
                entries = value.items() if isinstance(value, dict) else enumerate(value)
                waiting += [(f"{name}.{key}".lstrip("."), entry) for key, entry in entries]
        elif isinstance(value, float) and not math.isfinite(value):
            raise CheckpointError(f"{where} is damaged: {name} is {value}; expected a finite number.")
        elif isinstance(value, int) and not -_BOUND <= value < _BOUND:
            raise CheckpointError(f"{where} is damaged: {name} is beyond 64 bits; expected a number below 2^63.")


def typed(content: Mapping[str, Any], name: str, kind: type[Kind], where: Path | str) -> Kind:
    """The field ``name`` of what a file holds, which must be there and of one kind.

    Args:
        content: of the file.
        name: of the field.
        kind: dict, list, str, int or float; a whole number is a float as well, a bool is no number.
        where: the file, for messages.

    Raises:
        CheckpointError: naming file, field, what came and what was expected.
    """
    if name not in content:
        raise CheckpointError(f"{where} is damaged: it lacks {name!r}.")
    value: Any = content[name]
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or isinstance(value, bool):
        raise CheckpointError(f"{where} is damaged: {name!r} must be {_KINDS[kind]}, got {reprlib.repr(value)}.")
    return cast(Kind, value)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: if the file cannot be read, or holds something else, or a number that nothing can be.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error.strerror or error}.") from error
    content = parse_json(data, path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object, got {type(content).__name__}.")
    check_numbers(content, path)
    return content
