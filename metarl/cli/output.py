"""Standard output that may be full, or unable to write every character."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metarl.errors import MetarlError


class OutputError(MetarlError, OSError):
    """Standard output cannot be written."""


class _NobodyReads(BrokenPipeError):
    """Standard output is a pipe whose reader has gone, such as ``head``; rich ends the program by it, quietly."""


class _Output:
    """A text stream whose failures are told apart from those of other files and pipes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _told():
            return int(self._stream.write(text))

    def flush(self) -> None:
        with _told():
            self._stream.flush()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _NobodyReads(*error.args) from error
    except OSError as error:
        raise OutputError(
            f"cannot write to standard output: {error.strerror or error}. What is saved in run folders is safe."
        ) from error


def _folders() -> list[Path]:
    """Where metarl's modules are; in an installation from a checkout its packages lie beside each other."""
    specs = map(find_spec, ("metarl", "metarl.agents", "metarl.envs", "metarl.benchmarks"))
    return [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None]


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings of metarl's as sentences, each once; those of other code keep their place in it."""
    usual, told = warnings.formatwarning, set[str]()

    def sentence(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if not any(Path(filename).is_relative_to(folder) for folder in _folders()):
            return usual(message, category, filename, lineno, line)
        new = str(message) not in told
        told.add(str(message))
        return f"warning: {message}\n" if new else ""

    # Not showwarning, which whoever records warnings replaces.
    warnings.formatwarning = sentence
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Print what an encoding lacks as question marks, and raise :class:`OutputError` where nothing can be printed.

    Raises:
        OutputError: at the latest when the block ends.
        SystemExit: with status 1 and without a word, as rich does it, where nobody reads any more.
    """
    real = sys.stdout
    for stream in (real, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        with contextlib.redirect_stdout(_Output(real)):
            yield
            sys.stdout.flush()
    except (OutputError, _NobodyReads) as error:
        # What is left in the buffer would fail once more when Python ends.
        with contextlib.suppress(OSError, io.UnsupportedOperation):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, real.fileno())
            os.close(nowhere)
        if isinstance(error, _NobodyReads):
            raise SystemExit(1) from None
        raise
