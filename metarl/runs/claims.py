"""Names of run folders: each is given once, and again where a process was killed before there was a run.

A folder becomes a run with its config.json. Until then its maker holds the system's lock on the folder itself, which
needs no file and ends with the process: one without config and without a lock is what somebody left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

CONFIG = "config.json"
"""What makes a folder a run."""

_LEFT_OVER = {".probe", "manifest.json", ".lock", ".lock.owner"}
"""What a folder may hold before it is a run, apart from temporary files and the folder of a reference."""

_BEGUN = {CONFIG, "metrics.jsonl", "tensorboard"}
"""What the folder of a reference may hold besides, before it has a checkpoint."""

_PATIENCE = 2.0
"""Seconds to wait for another process that is making a folder, which takes it no time."""

_claims: dict[Path, int] = {}
"""Handles of the folders that this process has claimed."""


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / CONFIG).is_file()


def claim(root: Path, stem: str, nested: str) -> Path:
    """An empty folder ``root/stem``, or ``root/stem-2``, ``-3``, ... if that is taken; it is this process's.

    Args:
        root: exists.
        stem: the name that is asked for.
        nested: name of a folder that may lie in one that is not a run yet, and holds no more itself.

    Raises:
        OSError: if no folder can be made.
    """
    with _alone(root):
        number = 1
        while True:
            path = root / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()
                made = True
            except FileExistsError:
                made = False
            if (made or _is_left_over(path, nested)) and _hold(path):
                _empty(path)
                return path
            if made:
                return path  # A file system without such locks.
            number += 1


def settle(path: Path) -> None:
    """Give up the claim on a folder that has become a run, if this process has one."""
    handle = _claims.pop(path, None)
    if handle is not None:
        os.close(handle)


def _is_left_over(path: Path, nested: str) -> bool:
    """Whether nothing in a folder was ever worth keeping; a run's own folder, or a user's, is not of that kind."""
    inner = path / nested
    return _holds_only(path, {nested}) and (not inner.exists() or _holds_only(inner, _BEGUN))


def _holds_only(path: Path, also: set[str]) -> bool:
    """Whether a folder has nothing but what is written before there is a run, and these."""
    if not path.is_dir() or path.is_symlink():
        return False
    rest = {child.name for child in path.iterdir()} - _LEFT_OVER - also
    return all(name.startswith(".") and name.endswith(".tmp") for name in rest)


def _hold(path: Path) -> bool:
    """Lock a folder for as long as this process lives; False if another process has, or the system cannot."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    _claims[path] = handle
    return True


def _empty(path: Path) -> None:
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep other processes from claiming folders in ``root`` meanwhile, where the system can."""
    handle = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    # A folder of runs may lie in a run that is not one yet, whose maker holds it for as long as it likes.
    deadline = time.monotonic() + _PATIENCE
    try:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break  # A file system without such locks: making a folder is exclusive even so.
            else:
                break
        yield
    finally:
        os.close(handle)
