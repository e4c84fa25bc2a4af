"""Jobs on this machine: one after the other in this process, or several in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from metarl.benchmarks.engines.jobs import POLL, Engine, Job, Outcome, Table, outcome_of, seldom
from metarl.runs.outer_loop import graceful_stop


def in_process(jobs: Sequence[Job], engine: Engine, folders: Sequence[Path], table: Table) -> None:
    """One after the other, in this process."""
    for job in jobs:
        outcome = outcome_of(job, engine.cpus_per_run, lambda *what, name=job.name: table.show(name, *what))
        table.end(job.name, outcome)
        if outcome.kind == "stopped":
            return


def in_processes(jobs: Sequence[Job], engine: Engine, folders: Sequence[Path], table: Table) -> None:
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
                done, _ = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
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
        outcome = outcome_of(job, num_threads, seldom(lambda *message: pipe.send(message), POLL))
    except KeyboardInterrupt:
        outcome = Outcome("stopped")
    pipe.send(outcome)
