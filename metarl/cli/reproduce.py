"""``metarl reproduce``: run the tables of papers, and set our numbers beside the published ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl.benchmarks.engines import LOCAL, Engine
from metarl.benchmarks.reproduce.costs import Cost, cost_of, duration, measured
from metarl.benchmarks.reproduce.run import reproduce as run_table
from metarl.benchmarks.reproduce.scores import Scores, read_scores
from metarl.benchmarks.reproduce.table import Budget, PaperTable, TableCell
from metarl.benchmarks.tables import load_table, table_names
from metarl.errors import ConfigError, MetarlError, told_errors

MEASURING = 10.0
"""Seconds that the listing of all tables measures the machine for."""
MEASURING_ONE = 60.0
"""Those of one table's listing."""


@dataclass(frozen=True)
class ReproduceOptions:
    """Run a paper's table, and set our numbers beside the published ones; or list the tables."""

    table: Annotated[str | None, tyro.conf.Positional] = None
    """Name of the table; those that there are: metarl reproduce --list."""
    list: bool = False
    """Show all tables, or the cells of one: what is done, and what the rest costs on this machine."""
    cells: tuple[str, ...] = ()
    """Rows, columns or ROW/COLUMN, * for anything; default: all but those that are trained on request alone."""
    seeds: tuple[int, ...] = ()
    """Those of the table's seeds that are run, e.g. 1 for one of each cell first; default: all."""
    budget: Budget = "full"
    """All of it, or a fraction of it that takes minutes, with a page of its own."""
    data: str | None = None
    """Folder of the data, for tables that read some, e.g. the images of Omniglot."""
    results: Path = Path("benchmarks/results")
    """Scores, table and figure go to a folder in here."""
    runs: Path = Path("runs/reproduce")
    """Where the run folders go."""
    engine: tyro.conf.OmitArgPrefixes[Engine] = LOCAL


def reproduce(words: Sequence[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    options = tyro.cli(ReproduceOptions, args=list(words), prog="metarl reproduce")
    if "--cells" in words and not options.cells:
        raise ConfigError(
            "--cells names no cell; leave it out to run the whole table, see metarl reproduce TABLE --list."
        )
    if "--seeds" in words and not options.seeds:
        raise ConfigError("--seeds names no seed; leave it out to run all of them.")
    if options.list:
        names = table_names() if options.table is None else [options.table]
        _list([load_table(name) for name in names], options, console)
        return 0
    if options.table is None:
        raise ConfigError(f"reproduce needs the name of a table: {', '.join(table_names())}; or --list.")
    table = load_table(options.table)
    if options.data is not None:
        table = table.reading(str(Path(options.data).expanduser().absolute()))
    done = run_table(
        table,
        console,
        budget=options.budget,
        cells=options.cells,
        seeds=options.seeds,
        results=options.results,
        runs=options.runs,
        engine=options.engine,
    )
    return 0 if done else 130


@told_errors()
def reproduce_named(table: str, arguments: Sequence[str] | None, cells: Sequence[str] = ()) -> int:
    """The main function of a command that is a name for a table, or for some of its cells.

    Args:
        table: name of the table.
        arguments: options of ``metarl reproduce``; default: the command line's.
        cells: what is run if the options do not say.

    Returns:
        The exit status.
    """
    chosen = ["--cells", *cells] if cells else []
    return reproduce([table, *chosen, *(sys.argv[1:] if arguments is None else arguments)], Console())


def _list(tables: Sequence[PaperTable], options: ReproduceOptions, console: Console) -> None:
    """A line for each row or column of each table, or for each cell of a single one, and one for all of them."""
    budget = options.budget
    one = options.table is not None
    chosen = {table.name: table.select(options.cells or ["*"]) if one else list(table.cells) for table in tables}
    scores: dict[str, Scores] = {}
    notes: dict[str, str] = {}
    left: dict[str, list[TableCell]] = {}
    absent: dict[str, str] = {}
    for table in tables:
        try:
            table.require_package()
        except ConfigError as error:  # Neither its steps nor its speed are known without the tasks.
            absent[table.name] = str(error)
            continue
        try:
            scores[table.name] = read_scores((options.results / table.folder(budget)).absolute(), table, budget)
        except MetarlError as error:  # The other tables are to be seen all the same.
            scores[table.name], notes[table.name] = {}, f"\n[red]{escape(str(error))}[/]"
        runs = table.runs(chosen[table.name], budget, options.seeds)
        left[table.name] = [cell for cell, seed in runs if (cell, seed) not in scores[table.name]]
    seconds = MEASURING_ONE if one else MEASURING
    if left:
        console.print(f"Measuring this machine, for at most some {seconds:.0f} s.", markup=False)
    before = torch.get_num_threads()
    torch.set_num_threads(options.engine.cpus_per_run)
    try:
        speeds = measured(left, seconds)
    finally:
        torch.set_num_threads(before)
    for table in tables:
        if table.name in absent:
            told = f"[bold]{table.name}[/]: {escape(table.title)}\n[red]{escape(absent[table.name])}[/]"
            console.print(told, soft_wrap=True)
            continue
        cells = chosen[table.name]
        part = _part(table.fraction(budget)) + notes.get(table.name, "")
        console.print(f"[bold]{table.name}[/]: {escape(table.title)}; {part}", soft_wrap=True)
        groups = {cell.key: [cell] for cell in cells} if one else table.groups(cells)
        lines = {name: (group, all(cell.on_request for cell in group)) for name, group in groups.items()}
        lines["all"] = cells, False
        if any(cell.on_request for cell in cells):
            lines["all but those on request"] = [cell for cell in cells if not cell.on_request], False
        shown = Table("", "runs", "done", "steps", "took", "left", "", box=None, pad_edge=False)
        for name, (group, on_request) in lines.items():
            cost = cost_of(table, group, budget, scores[table.name], speeds, options.seeds)
            shown.add_row(escape(name), *_texts(cost), "on request" if on_request else "")
        console.print(shown)
    if left:
        console.print("What is left is estimated for one run at a time; --jobs shares it out.", markup=False)
    if any(cell.source not in speeds for cells in left.values() for cell in cells):
        more = f"metarl reproduce {tables[0].name} --list --cells ..." if one else "metarl reproduce TABLE --list"
        console.print(f"?: not measured in this time; {more} measures more of them.", markup=False, soft_wrap=True)


def _part(fraction: float) -> str:
    return "the whole budget" if fraction == 1.0 else f"{fraction:.3g} of the budget"


def _texts(cost: Cost) -> list[str]:
    """Runs, how many of them are done, environment steps of all, and the time that was and will be taken."""
    return [
        str(cost.num_runs),
        str(cost.num_done),
        f"{cost.steps / 1e6:,.1f} M",
        duration(cost.seconds_done) if cost.seconds_done else "",
        _left(cost) if cost.num_done < cost.num_runs else "",
    ]


def _left(cost: Cost) -> str:
    return "?" if cost.seconds_left is None else duration(cost.seconds_left)
