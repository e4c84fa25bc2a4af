"""Run a table: the cells that have no score yet, then its page from all scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metarl.benchmarks.engines import Engine, Job, Report, run_jobs
from metarl.benchmarks.reproduce.page import counted, write_page
from metarl.benchmarks.reproduce.scores import read_scores, write_score
from metarl.benchmarks.reproduce.table import Budget, PaperTable, TableCell
from metarl.benchmarks.reproduce.verdicts import results_of
from metarl.runs.files import require_writable, shown
from metarl.runs.folder import git_state


def reproduce(
    table: PaperTable,
    console: Console,
    *,
    budget: Budget,
    cells: Sequence[str],
    seeds: Sequence[int] = (),
    results: Path,
    runs: Path,
    engine: Engine,
) -> bool:
    """Run the cells of a table that are asked for and not done, and write its page.

    Interrupt it at will: what is done is kept, and agents go on from their last checkpoints.

    Args:
        table: the table.
        console: where progress is shown.
        budget: all of it, or the table's small fraction.
        cells: patterns, see :meth:`PaperTable.select`.
        seeds: those of the cells' seeds that are run; empty for all.
        results: the table's folder is made in here.
        runs: folder of the run folders.
        engine: where cells run.

    Returns:
        Whether all that was asked for is done.

    Raises:
        ConfigError: for unknown cells or seeds, a package that is missing, a folder that cannot be written or that
            holds scores of another table, version or budget.
        CheckpointError: for damaged or edited scores.
        WorkerError: at the end, if cells failed.
    """
    table.check()
    table.require()
    wanted = table.runs(table.select(cells), budget, seeds)
    folder, runs = (results / table.folder(budget)).absolute(), runs.absolute()
    require_writable(folder, "Name another folder with --results.")
    require_writable(runs, "Name another folder with --runs.")
    known = read_scores(folder, table, budget)
    missing = [place for place in wanted if place not in known]
    if len(missing) < len(wanted):
        console.print(f"{len(wanted) - len(missing)} of {len(wanted)} scores are there already: skipped.")
    fraction = table.fraction(budget)
    # Of equally long ones the last: rows grow. What takes longest begins first, so that nobody waits for it alone.
    missing = sorted(missing, key=lambda place: place[0].source.steps(fraction))[::-1]
    jobs = [
        Job(f"{cell.run_key} seed {seed}", _run, (table, cell, seed, budget, folder, runs)) for cell, seed in missing
    ]
    try:
        return run_jobs(jobs, engine, (folder, runs), console)
    finally:
        scores = read_scores(folder, table, budget)
        write_page(table, scores, budget, folder)
        console.print(f"{counted(results_of(table, scores, budget))}: {shown(folder / 'README.md')}", markup=False)


def _run(
    table: PaperTable, cell: TableCell, seed: int, budget: Budget, folder: Path, runs: Path, report: Report
) -> bool:
    begin = time.perf_counter()
    content = cell.source.run(seed, table.fraction(budget), runs, report)
    if content is None:
        return False
    seconds = round(time.perf_counter() - begin, 1)
    write_score(folder, table, budget, cell, seed, {**content, "seconds": seconds, "scored": git_state()})
    return True
