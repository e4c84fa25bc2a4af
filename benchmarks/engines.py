"""Where the cells of a benchmark run: in this process, in several processes of this machine, or on a Ray cluster.

What a cell computes does not depend on it: each has its own random streams, its own run folder, and as many threads as
``--cpus-per-run`` says. A cell that fails is told and the others go on; Ctrl-C ends all after their iteration.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from metarl.errors import ConfigError, MetarlError, RunInUseError, WorkerError, missing_extra, told
from metarl.runs.outer_loop import graceful_stop

Report = Callable[[str, int, int], None]
"""Told what a cell does, how much of it is done, and how much there is."""

_POLL = 0.2
"""Seconds between two looks at what cells say."""

_ANSWER = 40
"""Seconds that a cluster has to answer."""

_RETRIES = 10
"""How often Ray starts a cell again whose node or process died."""

_RELEASE = 120
"""Seconds until the lock of a run whose node died is free: shared storage has to notice."""


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


def run_jobs(jobs: Sequence[Job], engine: Engine, folders: Sequence[Path], console: Console) -> bool:
    """Run jobs, with one table of all of them.

    Args:
        jobs: what to do.
        engine: where.
        folders: absolute, where they write: on a cluster all nodes must see the same ones.
        console: where the table is drawn.

    Returns:
        Whether all are done; False after Ctrl-C (or SIGTERM), which ends them after the iteration in hand.

    Raises:
        ConfigError: for an engine that is not there.
        WorkerError: at the end, if some failed; their reasons have been printed.
    """
    if not jobs:
        return True
    run = _in_process if engine.in_process else _on_ray if engine.engine == "ray" else _in_processes
    with _Table(len(jobs), console) as table:
        run(jobs, engine, folders, table)
    if table.failed:
        raise WorkerError(
            f"{len(table.failed)} of {len(jobs)} cells failed; the same command tries them again:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in table.failed.items())
        )
    if table.counts["done"] < len(jobs):
        console.print("Stopped; everything is saved. The same command goes on from here.")
        return False
    return True


class _Table:
    """One bar for all jobs and one for each that is at work."""

    def __init__(self, num_jobs: int, console: Console) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, TextColumn("{task.fields[now]}"), console=console)
        self._overall = self._bars.add_task("cells", total=num_jobs, now="")
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> _Table:
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


def _outcome(job: Job, num_threads: int, report: Report) -> Outcome:
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


def _seldom(report: Report, seconds: float) -> Report:
    """The same report, but not more often than that, as iterations may be many and messages cost something."""
    last = float("-inf")

    def told_seldom(what: str, done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= seconds:
            last = now
            report(what, done, total)

    return told_seldom


# In this process ------------------------------------------------------------------------------------------------------


def _in_process(jobs: Sequence[Job], engine: Engine, folders: Sequence[Path], table: _Table) -> None:
    for job in jobs:
        outcome = _outcome(job, engine.cpus_per_run, lambda *what, name=job.name: table.show(name, *what))
        table.end(job.name, outcome)
        if outcome.kind == "stopped":
            return


# In processes of this machine -----------------------------------------------------------------------------------------


def _in_processes(jobs: Sequence[Job], engine: Engine, folders: Sequence[Path], table: _Table) -> None:
    """Each job gets a process of its own, so that one that is killed takes no other with it."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # Started by a thread below, it would lift that thread's block of signals.
    running: list[BaseProcess] = []
    guard = threading.Lock()

    def run(job: Job) -> Outcome:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(job, engine.cpus_per_run, theirs))
        with guard:
            if stop.is_set():
                return Outcome("stopped")
            process.start()
            running.append(process)
        theirs.close()
        outcome = None
        with contextlib.suppress(EOFError):  # It may die before it says how it ended.
            while outcome is None:
                message = ours.recv()
                if isinstance(message, Outcome):
                    outcome = message
                else:
                    table.show(job.name, *message)
        process.join()
        with guard:
            running.remove(process)
        return outcome or Outcome("failed", f"its process was killed, or left Python: exit code {process.exitcode}")

    with graceful_stop() as stop, ThreadPoolExecutor(engine.jobs, initializer=_block_interrupts) as pool:
        try:
            pending = {pool.submit(run, job): job for job in jobs}
            asked = False
            while pending:
                done, _ = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
                for future in done:
                    table.end(pending.pop(future).name, future.result())
                if stop.is_set() and not asked:
                    asked = True
                    pending = {future: job for future, job in pending.items() if not future.cancel()}
                    with guard:
                        for process in running:
                            if process.pid is not None and process.is_alive():
                                os.kill(process.pid, signal.SIGINT)
        except BaseException:  # A second Ctrl-C.
            with guard:
                for process in running:
                    process.kill()
            raise


def _block_interrupts() -> None:
    """What this thread starts is born deaf to Ctrl-C, and listens once it is ready to end well."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _child(job: Job, num_threads: int, pipe: Connection) -> None:
    os.setpgid(0, 0)  # The terminal's Ctrl-C is for the parent, which hands it on once.
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        outcome = _outcome(job, num_threads, _seldom(lambda *message: pipe.send(message), _POLL))
    except KeyboardInterrupt:
        outcome = Outcome("stopped")
    pipe.send(outcome)


# On a Ray cluster -----------------------------------------------------------------------------------------------------


def _on_ray(jobs: Sequence[Job], engine: Engine, folders: Sequence[Path], table: _Table) -> None:
    with _connected(engine) as ray, _mark(folders) as marks, graceful_stop() as stop:
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not _has_room(ray, engine):
            largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
            raise ConfigError(
                f"a cell asks for {_room(engine)}, and no node of the cluster has that; the largest has {largest:g} "
                "CPUs. Lower --cpus-per-run or --gpus-per-run, or add nodes."
            )
        # On this node, so that it is there for as long as this process is.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        room = {"num_cpus": engine.cpus_per_run, "num_gpus": engine.gpus_per_run}
        remote = ray.remote(max_retries=_RETRIES, max_calls=1, **room)(_on_node)
        version = metadata.version("metarl")
        pending = {
            remote.options(name=job.name).remote(job, engine.cpus_per_run, messages, marks, version): job
            for job in jobs
        }
        asked = False
        while pending:
            done, _ = ray.wait(list(pending), timeout=_POLL)
            for message in messages.get_nowait_batch(messages.qsize()):
                table.show(*message)
            for reference in done:
                table.end(pending.pop(reference).name, _result(ray, reference))
            if stop.is_set() and not asked:
                asked = True
                for reference in pending:  # Those at work are interrupted as by Ctrl-C, the others never start.
                    ray.cancel(reference)
            elif not asked:  # What has no room any more would wait without a word.
                table.tell("" if _has_room(ray, engine) else f"no node has {_room(engine)} any more: waiting for one")


@contextlib.contextmanager
def _connected(engine: Engine) -> Iterator[ModuleType]:
    """Ray, connected to the cluster; one that this process has joined before is used as it is.

    Raises:
        ConfigError: if Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray", "--engine ray") from None
    if ray.is_initialized():
        yield ray
        return
    address = engine.address or os.environ.get("RAY_ADDRESS")
    if address:
        _require_answer(address)
        ray.init(address, logging_level=logging.ERROR)
    else:
        ray.init("local", include_dashboard=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Ask in another process, as Ray itself tries for many minutes, and may end the process that asks."""
    command = [sys.executable, "-c", "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)", address]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"no Ray cluster answered at {address} within {_ANSWER} seconds: is it running (ray start --head), and can "
            "this machine reach it?"
        ) from None
    if asked.returncode:
        raise ConfigError(f"no Ray cluster can be had at {address}: {asked.stderr.strip().splitlines()[-1]}")


def _has_room(ray: ModuleType, engine: Engine) -> bool:
    """Whether a cell fits on a node of the cluster, were it idle."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(
        node.get("CPU", 0) >= engine.cpus_per_run and node.get("GPU", 0) >= engine.gpus_per_run for node in nodes
    )


def _room(engine: Engine) -> str:
    gpus = f" and {engine.gpus_per_run:g} GPUs" if engine.gpus_per_run else ""
    return f"{engine.cpus_per_run} CPUs{gpus}"


def _result(ray: ModuleType, reference: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
        return outcome
    except ray.exceptions.TaskCancelledError:
        return Outcome("stopped")
    except ray.exceptions.RayError as error:  # The job's own errors are outcomes.
        reason = f"Ray could not run it, or its process died {_RETRIES + 1} times ({type(error).__name__})"
        return Outcome("failed", reason, f"{reason}: {error}")


def _on_node(job: Job, num_threads: int, messages: Any, marks: Sequence[Path], version: str) -> Outcome:
    """Do a job in a process of a node."""

    def report(what: str, done: int, total: int) -> None:
        messages.put((job.name, what, done, total))

    def patiently(*arguments: Any) -> bool:
        """The process that had the run before may not be dead yet, or its lock not be free."""
        deadline = time.monotonic() + _RELEASE
        while True:
            try:
                return job.function(*arguments)
            except RunInUseError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)

    node = os.uname().nodename
    if (here := metadata.version("metarl")) != version:
        return Outcome("failed", f"node {node} has metarl {here}, but the command was started with {version}.")
    if missing := [str(mark.parent) for mark in marks if not mark.exists()]:
        return Outcome(
            "failed",
            f"node {node} does not see {' and '.join(missing)} as the command does: name folders on storage that all "
            "nodes share, with --runs and --results.",
        )
    return _outcome(Job(job.name, patiently, job.arguments), num_threads, _seldom(report, 1.0))


@contextlib.contextmanager
def _mark(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """Files by which nodes can tell that they see these folders, and not others of the same names."""
    marks = [folder / f".cells-{uuid.uuid4().hex}" for folder in folders]
    try:
        for mark in marks:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        yield marks
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)
