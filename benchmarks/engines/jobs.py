"""Jobs, where they may run, how they end, and the table that shows all of them."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from metarl.errors import ConfigError, MetarlError, told

Report = Callable[[str, int, int], None]
"""Told what a cell does, how much of it is done, and how much there is."""

POLL = 0.2
"""Seconds between two looks at what cells say."""


@dataclass(frozen=True)
class Engine:
    """Where cells run.

    Raises:
        ConfigError: for options that cannot be, or contradict each other.
    """

    engine: Literal["local", "ray"] = "local"
    """Processes of this machine, or Ray: a cluster's nodes."""
    jobs: int = 1
    """Cells at a time on this machine; Ray runs as many as its nodes have room for."""
    address: str | None = None
    """Ray cluster, HOST:PORT, or auto for the one of this machine; default: a new one of this machine alone."""
    cpus_per_run: int = 1
    """Cores of one cell: its threads, and what it takes of a Ray node."""
    gpus_per_run: float = 0.0
    """GPUs, or the share of one, that a cell takes of a Ray node; a cell that takes none sees none."""

    @property
    def in_process(self) -> bool:
        """Whether cells run one after the other in this process."""
        return self.engine == "local" and self.jobs == 1

    def __post_init__(self) -> None:
        for flag, value, least in (("jobs", self.jobs, 1), ("cpus-per-run", self.cpus_per_run, 1)):
            if value < least:
                raise ConfigError(f"--{flag} must be {least} or more, got {value}.")
        if not self.gpus_per_run >= 0:
            raise ConfigError(f"--gpus-per-run must be 0 or more, got {self.gpus_per_run}.")
        if self.engine == "ray" and self.jobs != 1:
            raise ConfigError(
                f"--jobs {self.jobs} is for --engine local: Ray runs as many cells as its nodes have CPUs."
            )
        if self.engine == "local" and (self.address is not None or self.gpus_per_run):
            raise ConfigError(
                "--address and --gpus-per-run are for --engine ray; local cells share this machine's GPUs."
            )
        if self.address is not None and "://" in self.address:
            raise ConfigError(
                f"--address must be auto or HOST:PORT, got {self.address!r}. From outside of a cluster submit the "
                "command to it: ray job submit --address http://HOST:8265 -- python -m metarl.benchmarks..."
            )


LOCAL = Engine()
"""This process."""


@dataclass(frozen=True)
class Job:
    """A cell, or several that share one run.

    Attributes:
        name: for the table.
        function: can be imported; called with ``arguments`` and a :data:`Report`, returns whether it came to its end,
            which Ctrl-C may have kept it from.
        arguments: can be pickled. Paths are absolute.
    """

    name: str
    function: Callable[..., bool]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        kind: done, stopped or failed.
        reason: of a failure, a line.
        details: all that is known of it, with a traceback if metarl has no sentence for it.
    """

    kind: Literal["done", "stopped", "failed"]
    reason: str = ""
    details: str = ""

    @classmethod
    def of(cls, error: Exception) -> Outcome:
        """That of a job that raised it."""
        if isinstance(error, MetarlError):
            return cls("failed", str(error).partition("\n")[0], told(error))
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return cls("failed", reason, "".join(traceback.format_exception(error)))


class Table:
    """One bar for all jobs and one for each that is at work."""

    def __init__(self, num_jobs: int, console: Console) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self._console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Bars(*columns, TextColumn("{task.fields[now]}"), console=console)
        self._overall = self._bars.add_task("cells", total=num_jobs, now="")
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> Table:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, name: str, what: str, done: int, total: int) -> None:
        """What a job does now."""
        if name not in self._rows:
            self._rows[name] = self._bars.add_task(escape(name), total=total, now=what)
        self._bars.update(self._rows[name], completed=done, total=total, now=what)

    def end(self, name: str, outcome: Outcome) -> None:
        """A job has ended."""
        self.counts[outcome.kind] += 1
        if name in self._rows:
            self._bars.remove_task(self._rows.pop(name))
        if outcome.kind == "failed":
            self.failed[name] = outcome.reason
            details = outcome.details or outcome.reason
            self._console.print(f"[bold red]{escape(name)} failed:[/] {escape(details)}", soft_wrap=True)
        elif not self._console.is_terminal:
            self._console.print(f"{name}: {outcome.kind}", markup=False, soft_wrap=True)  # A log shows no bars.
        self.tell("")

    def tell(self, text: str) -> None:
        """How many have ended in which way, and a text."""
        parts = [f"{count} {kind}" for kind, count in self.counts.items()] + [text] * bool(text)
        self._bars.update(self._overall, completed=self.counts["done"], now=", ".join(parts))


def outcome_of(job: Job, num_threads: int, report: Report) -> Outcome:
    """Do a job in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return Outcome("done" if job.function(*job.arguments, report) else "stopped")
    except KeyboardInterrupt:
        return Outcome("stopped")
    except Exception as error:
        return Outcome.of(error)
    finally:
        torch.set_num_threads(before)


def seldom(report: Report, seconds: float) -> Report:
    """The same report, but not more often than that, as iterations may be many and messages cost something."""
    last = float("-inf")

    def told_seldom(what: str, done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= seconds:
            last = now
            report(what, done, total)

    return told_seldom
