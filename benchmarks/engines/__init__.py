"""Where the cells of a benchmark run: in this process, in several processes of this machine, or on a Ray cluster.

What a cell computes does not depend on it: each has its own random streams, its own run folder, and as many threads as
``--cpus-per-run`` says. A cell that fails is told and the others go on; Ctrl-C ends all after their iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metarl.benchmarks.engines.cluster import on_ray
from metarl.benchmarks.engines.jobs import LOCAL, Engine, Job, Report, Table
from metarl.benchmarks.engines.local import in_process, in_processes
from metarl.errors import WorkerError

__all__ = ["LOCAL", "Engine", "Job", "Report", "run_jobs"]


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
    run = in_process if engine.in_process else on_ray if engine.engine == "ray" else in_processes
    with Table(len(jobs), console) as table:
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
