"""Metrics of a run, as JSON lines and as TensorBoard scalars, without gaps or repeats across a resume."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from metarl.errors import CheckpointError, ConfigError, NonFiniteError
from metarl.runs.events import EventFile
from metarl.runs.files import check_numbers, parse_json, read_regular, typed, write_atomically, write_failure
from metarl.runs.folder import RunFolder

_RESERVED = ("iteration", "wall_time")


class Logger:
    """Appends one line per call to the run's ``metrics.jsonl``; both logs are flushed, so a kill loses nothing.

    Args:
        run_folder: the run.
        resume_from: None for a new run; else the first iteration about to be run, from which on older entries
            are dropped.

    Raises:
        CheckpointError: if the logs cannot be read or written; if the metrics of an iteration before ``resume_from``
            are missing.
        ConfigError: if the run holds metrics already and ``resume_from`` is None.
    """

    def __init__(self, run_folder: RunFolder, resume_from: int | None = None) -> None:
        self.path = run_folder.metrics
        try:
            if resume_from is not None:
                _drop_from(self.path, resume_from)
            elif self.path.exists() and self.path.stat().st_size:
                raise ConfigError(f"{self.path} holds the metrics of an earlier start; resume that run instead.")
            # A pipe in its place is an error, where opening it as usual would wait for a reader.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self.path, flags, 0o666), "a", encoding="utf-8")
            self._events: EventFile | None = EventFile(run_folder.tensorboard, purge_step=resume_from)
        except OSError as error:
            raise CheckpointError(
                f"could not open the logs of {run_folder.path}: {error.strerror or error}."
            ) from error

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one iteration.

        Args:
            iteration: the outer iteration.
            metrics: by name; a slash groups them in TensorBoard, e.g. ``"train/return_after"``.

        Raises:
            CheckpointError: if the disk is full or the log cannot be written. TensorBoard's files are a copy: if only
                they cannot be written, a warning says that they end.
            ConfigError: if a metric is called ``iteration`` or ``wall_time``.
            NonFiniteError: if a metric is NaN or infinite; then nothing is written.
        """
        entry: dict[str, float] = {"iteration": iteration, "wall_time": time.time()}
        for name, value in metrics.items():
            if name in _RESERVED:
                raise ConfigError(f"a metric cannot be called {name!r}: the log uses that name itself.")
            # A bool, and a number beyond 64 bits, would be read as damage.
            number = value if type(value) is int and -(2**63) <= value < 2**63 else float(value)
            if not math.isfinite(number):
                raise NonFiniteError(f"iteration {iteration}: the metric {name!r} is {number}.")
            entry[name] = number
        try:
            self._file.write(json.dumps(entry, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"could not write the metrics of iteration {iteration} to {self.path}: "
                f"{write_failure(self.path, error)}"
            ) from error
        try:
            if self._events is not None:
                self._events.add(iteration, {name: entry[name] for name in metrics})
        except OSError as error:
            warnings.warn(
                f"TensorBoard's files of {self.path.parent} cannot be written any more ({error.strerror or error}). "
                f"Training goes on without them; {self.path.name} holds all that they would.",
                RuntimeWarning,
                stacklevel=2,
            )
            self._close_events()

    def sync(self) -> None:
        """Bring the lines so far onto the disk: a checkpoint must not outlive the metrics of its iterations.

        Raises:
            CheckpointError: if that fails, or the file is not there any more.
        """
        try:
            os.fsync(self._file.fileno())
            # A file that was deleted takes everything, and keeps nothing.
            if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                raise OSError(errno.ENOENT, "another file took its place", str(self.path))
        except OSError as error:
            raise CheckpointError(
                f"could not bring the metrics {self.path} onto the disk: {write_failure(self.path, error)}"
            ) from error

    def close(self) -> None:
        """Close both logs."""
        # Everything was flushed already; a full disk that log() has reported must not be hidden by a second error.
        with contextlib.suppress(OSError):
            self._file.close()
        self._close_events()

    def _close_events(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            with contextlib.suppress(OSError):
                events.close()

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def iteration_seconds(entry: Mapping[str, Any]) -> float:
    """What one iteration took, of the metrics that it logged; 0 if they do not say."""
    return float(sum(value for name, value in entry.items() if name.startswith("seconds/")))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, oldest first; a last line torn by a kill is left out.

    Raises:
        CheckpointError: if the file cannot be read, or another line than the last is damaged.
    """
    try:
        lines = read_regular(path).splitlines()
    except OSError as error:
        raise CheckpointError(f"could not read the metrics {path}: {error.strerror or error}.") from error
    entries = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            entry = parse_json(line, where)
        except CheckpointError:
            if number < len(lines):
                raise
            continue
        if not isinstance(entry, dict):
            raise CheckpointError(f"{where} is damaged: expected a JSON object, got {type(entry).__name__}.")
        check_numbers(entry, where)
        typed(entry, "iteration", int, where)
        for name in entry:
            typed(entry, name, float, where)
        entries.append(entry)
    return entries


def _drop_from(path: Path, iteration: int) -> None:
    """Keep the lines before ``iteration``, in one step.

    Raises:
        CheckpointError: if one of them is missing, or there twice.
    """
    entries = read_metrics(path) if path.exists() else []
    kept = [entry for entry in entries if entry["iteration"] < iteration]
    numbers = [entry["iteration"] for entry in kept]
    if numbers != list(range(iteration)):
        missing = sorted(set(range(iteration)) - set(numbers))
        fault = f"lacks the iterations {_ranges(missing)}" if missing else "holds iterations twice or in disorder"
        raise CheckpointError(
            f"{path} {fault}, but the checkpoint that training would go on from comes after iteration "
            f"{iteration - 1}. Put the lines back, go back with --checkpoint to before the gap, or start a new run."
        )
    # Also where nothing was read: what is appended to a torn line would be damage in the middle.
    write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: ``0, 4-7``."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][1] + 1:
            groups[-1][1] = number
        else:
            groups.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in groups)
