"""``metarl reproduce``: run the tables of papers, and set our numbers beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl.benchmarks.engines import LOCAL, Engine
from metarl.benchmarks.reproduce.run import reproduce as run_table
from metarl.benchmarks.reproduce.scores import Scores, read_scores
from metarl.benchmarks.reproduce.table import Budget, PaperTable, TableCell
from metarl.benchmarks.tables import load_table, table_names
from metarl.errors import ConfigError, MetarlError


@dataclass(frozen=True)
class ReproduceOptions:
    """Run a paper's table, and set our numbers beside the published ones; or list the tables."""

    table: Annotated[str | None, tyro.conf.Positional] = None
    """Name of the table; those that there are: metarl reproduce --list."""
    list: bool = False
    """Show all tables, or the cells of one: what is done, and what it costs."""
    cells: tuple[str, ...] = ()
    """Rows, columns or ROW/COLUMN, * for anything; default: all but those that are trained on request alone."""
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
        results=options.results,
        runs=options.runs,
        engine=options.engine,
    )
    return 0 if done else 130


def _list(tables: Sequence[PaperTable], options: ReproduceOptions, console: Console) -> None:
    """A line for each column of each table, or for each cell of a single one."""
    one = options.table is not None
    for table in tables:
        fraction = table.fraction(options.budget)
        folder = options.results / table.folder(options.budget)
        note = ""
        try:
            scores: Scores = read_scores(folder.absolute(), table, options.budget)
        except MetarlError as error:  # The other tables are to be seen all the same.
            scores, note = {}, f"\n[red]{escape(str(error))}[/]"
        console.print(f"[bold]{table.name}[/]: {escape(table.title)}; {_part(fraction)}{note}", soft_wrap=True)
        shown = Table("cell" if one else "column", "seeds", "done", "steps", "took", "runs", box=None, pad_edge=False)
        groups = (
            {cell.key: [cell] for cell in table.select(options.cells or ["*"])}
            if one
            else {column: [cell for cell in table.cells if cell.column == column] for column in table.columns}
        )
        for name, cells in groups.items():
            shown.add_row(escape(name), *_costs(cells, scores, fraction))
        console.print(shown)


def _part(fraction: float) -> str:
    return "the whole budget" if fraction == 1.0 else f"{fraction:.3g} of the budget"


def _costs(cells: Sequence[TableCell], scores: Scores, fraction: float) -> list[str]:
    """Seeds, how many of them are done, environment steps of all, hours of what is done, and when they run."""
    done = [scores[cell, seed] for cell in cells for seed in cell.seeds if (cell, seed) in scores]
    steps = sum(cell.source.steps(fraction) * len(cell.seeds) for cell in cells)
    seconds = sum(float(score["seconds"]) for score in done)
    on_request = all(cell.on_request for cell in cells)
    return [
        str(sum(len(cell.seeds) for cell in cells)),
        str(len(done)),
        f"{steps / 1e6:,.1f} M",
        f"{seconds / 60:.1f} min" if done else "",
        "on request" if on_request else "",
    ]
