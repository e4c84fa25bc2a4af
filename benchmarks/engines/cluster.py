"""Jobs as tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from metarl.benchmarks.engines.jobs import POLL, Engine, Job, Outcome, Table, outcome_of, seldom
from metarl.errors import ConfigError, RunInUseError, missing_extra
from metarl.runs.outer_loop import graceful_stop
from metarl.version import __version__

_ANSWER = 40
"""Seconds that a cluster has to answer."""

_RETRIES = 10
"""How often Ray starts a cell again whose node or process died."""

_RELEASE = 120
"""Seconds until the lock of a run whose node died is free: shared storage has to notice."""


def on_ray(jobs: Sequence[Job], engine: Engine, folders: Sequence[Path], table: Table) -> None:
    """Run jobs on the cluster, as many at a time as its nodes have room for; see :func:`run_jobs`."""
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
        pending = {
            remote.options(name=job.name).remote(job, engine.cpus_per_run, messages, marks, __version__): job
            for job in jobs
        }
        asked = False
        while pending:
            done, _ = ray.wait(list(pending), timeout=POLL)
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
    if __version__ != version:
        return Outcome("failed", f"node {node} has metarl {__version__}, but the command was started with {version}.")
    if missing := [str(mark.parent) for mark in marks if not mark.exists()]:
        return Outcome(
            "failed",
            f"node {node} does not see {' and '.join(missing)} as the command does: name folders on storage that all "
            "nodes share, with --runs and --results.",
        )
    return outcome_of(Job(job.name, patiently, job.arguments), num_threads, seldom(report, 1.0))


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
