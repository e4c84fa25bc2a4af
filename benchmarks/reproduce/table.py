"""A paper's table: cells, each with where its scores come from and the number that was published."""

from __future__ import annotations

import dataclasses
import importlib.util
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

from metarl.benchmarks.engines import Report
from metarl.benchmarks.papers import Published
from metarl.errors import ConfigError, missing_extra, unknown_name
from metarl.runs.files import safe_name
from metarl.statistics import Float

Budget = Literal["full", "small"]

Aggregate = Literal["mean", "percent", "iqm"]


class Source(ABC):
    """Where the scores of a cell come from: what is run for one seed. It can be pickled, and told by its ``repr``."""

    trained: ClassVar[bool]
    """Whether a smaller budget gives worse scores, not only less certain ones."""

    @abstractmethod
    def steps(self, fraction: float) -> int:
        """Environment steps of one seed, with this fraction of the budget."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What steps: sources of a table that have the same kind take about as long for a step."""

    @abstractmethod
    def speed(self, seconds: float) -> float:
        """Environment steps in a second on this machine, measured for about so many seconds."""

    @abstractmethod
    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any] | None:
        """Do it, going on where it was interrupted.

        Args:
            seed: the seed.
            fraction: of the budget, above 0 and at most 1.
            runs: folder for run folders.
            report: told how far it is.

        Returns:
            JSON-able content of the score, with a ``manifest`` (see :func:`metarl.runs.folder.surroundings`); None if
            it was interrupted.
        """

    @abstractmethod
    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """Scores of single tasks, ``[task]``, in what :meth:`run` returned; the same tasks for every seed.

        Empty if it was not measured, e.g. since the score is older than the measure.

        Args:
            content: the score.
            measure: of the cell, see :class:`TableCell`; empty for a source of one measure.
        """

    def num_groups(self, content: Mapping[str, Any], measure: str) -> int:
        """In how many groups of one size, one behind the other, the tasks of :meth:`values` are a sample.

        The groups themselves are all that there are, such as the tasks of Meta-World, of whose goals some are played.
        """
        return 1

    @abstractmethod
    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """What the page says of how it was done, e.g. the settings that were chosen; may be empty."""


class FolderSource(Source):
    """One whose tasks are read from a folder of the user's, which a table cannot know."""

    @abstractmethod
    def reading(self, folder: str) -> FolderSource:
        """The same, reading ``folder``."""


def part(number: int, fraction: float) -> int:
    """As many of ``number`` tasks as a fraction of the budget leaves, at least 2."""
    return max(2, round(number * fraction))


@dataclass(frozen=True)
class TableCell:
    """One number of a table.

    Attributes:
        row: label of its row, which is also part of file names.
        column: label of its column.
        source: where its scores come from.
        seeds: what is run.
        published: the paper's number; None if it has none.
        not_comparable: why ours cannot be compared with it, e.g. another body; empty if it can.
        on_request: left out unless it is asked for, since it takes long.
        measure: which of several things that its run scores; cells of one row that have a measure share a run.
    """

    row: str
    column: str
    source: Source
    seeds: tuple[int, ...]
    published: Published | None = None
    not_comparable: str = ""
    on_request: bool = False
    measure: str = ""

    @property
    def key(self) -> str:
        """Its name: row/column."""
        return f"{self.row}/{self.column}"

    @property
    def run_key(self) -> str:
        """Name of what is run for it: its own, or that of the row if cells of the row share a run."""
        return self.row if self.measure else self.key

    def score_name(self, seed: int) -> str:
        """File name of the score of a seed."""
        return f"{safe_name(self.run_key)}-seed{seed}.json"

    def values(self, content: Mapping[str, Any]) -> Float:
        """Scores of single tasks, ``[task]``, in the content of a score."""
        return self.source.values(content, self.measure)

    def num_groups(self, content: Mapping[str, Any]) -> int:
        """In how many groups of one size they come."""
        return self.source.num_groups(content, self.measure)

    def remark(self, content: Mapping[str, Any]) -> str:
        """What the page says of how it was done."""
        return self.source.remark(content, self.measure)


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper, to be run again.

    Attributes:
        name: what users call it.
        title: the paper and what the table is of.
        about: what is measured and how, in Markdown.
        cells: row by row.
        metric: what the numbers are, with their unit.
        version: rises when the cells come to mean something else, so that old scores are not taken for new ones.
        small: the fraction of the budget that ``--budget small`` runs.
        small_seeds: the most seeds that it runs of a cell; None for all.
        published_tasks: tasks that a published mean is over, which says how certain it is; None if nobody knows.
        published_runs: training runs whose standard deviation the ± of a published mean over them is; None where that
            is half of a 95 % interval.
        aggregate: how the paper sums scores up; ``percent`` is a mean of percentages.
        notes: explanations by name of a cell, column or row; shown under the table where a cell is not within.
        requires: a package that the table needs and metarl's extra that brings it.
        data: where to get the data that it reads and how to lay it out; empty if it reads none.
        folder_of_data: where that lies, see :meth:`reading`.
    """

    name: str
    title: str
    about: str
    cells: tuple[TableCell, ...]
    metric: str
    version: int
    small: float
    small_seeds: int | None = None
    published_tasks: int | None = None
    published_runs: int | None = None
    aggregate: Aggregate = "mean"
    notes: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, str] | None = None
    data: str = ""
    folder_of_data: str | None = None

    @property
    def rows(self) -> list[str]:
        """Labels of the rows."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        """Labels of the columns."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    def fraction(self, budget: Budget) -> float:
        """Of the budget that is run."""
        return 1.0 if budget == "full" else self.small

    def folder(self, budget: Budget) -> str:
        """Name of the folder of its results."""
        return self.name if budget == "full" else f"{self.name}-{budget}"

    def select(self, patterns: Sequence[str]) -> list[TableCell]:
        """The cells that are asked for; without ``patterns`` all but those on request.

        Args:
            patterns: rows, columns or ``row/column``, in which ``*`` stands for anything.

        Raises:
            ConfigError: for a pattern that no cell has.
        """
        if not patterns:
            return [cell for cell in self.cells if not cell.on_request]
        chosen: set[str] = set()
        for pattern in patterns:
            found = [
                cell.key
                for cell in self.cells
                if any(fnmatchcase(name, pattern) for name in (cell.key, cell.row, cell.column))
            ]
            if not found:
                choices = (*self.columns, *self.rows, "ROW/COLUMN")
                raise unknown_name(f"cell of {self.name}", pattern, choices)
            chosen.update(found)
        return [cell for cell in self.cells if cell.key in chosen]

    def reading(self, folder: str) -> PaperTable:
        """The same table, whose data lies in ``folder``.

        Raises:
            ConfigError: if it reads no data, or there is no such folder.
        """
        if not self.data:
            raise ConfigError(f"the table {self.name} reads no data, got the folder {folder} (--data).")
        if not Path(folder).is_dir():
            raise ConfigError(f"there is no folder {folder} to read the data of {self.name} from. {self.data}")
        cells = (
            dataclasses.replace(cell, source=cell.source.reading(folder))
            if isinstance(cell.source, FolderSource)
            else cell
            for cell in self.cells
        )
        return dataclasses.replace(self, cells=tuple(cells), folder_of_data=folder)

    def runs(
        self, cells: Sequence[TableCell], budget: Budget, seeds: Sequence[int] = ()
    ) -> list[tuple[TableCell, int]]:
        """What is run for some cells, once each: the seed, and the first cell that it scores.

        Args:
            cells: cells of the table.
            budget: whose seeds.
            seeds: those of them that are wanted; empty for all.

        Raises:
            ConfigError: for a seed that none of the cells has.
        """
        num_seeds = self.small_seeds if budget == "small" else None
        chosen = [(cell, seed) for cell in cells for seed in cell.seeds[:num_seeds]]
        known = sorted({seed for _, seed in chosen})
        for seed in seeds:
            if seed not in known:
                raise unknown_name(f"seed of {self.name}", str(seed), [str(seed) for seed in known])
        found: dict[str, tuple[TableCell, int]] = {}
        for cell, seed in chosen:
            if not seeds or seed in seeds:
                found.setdefault(cell.score_name(seed), (cell, seed))
        return list(found.values())

    def groups(self, cells: Sequence[TableCell]) -> dict[str, list[TableCell]]:
        """Cells that are alike in what is run for them: those of a column, or of a row whose cells share a run."""
        found: dict[str, list[TableCell]] = {}
        for cell in cells:
            found.setdefault(cell.row if cell.measure else cell.column, []).append(cell)
        return found

    def require(self) -> None:
        """Refuse to run without the package or the data that the table needs.

        Raises:
            ConfigError: naming the package and the extra, or saying where to get the data.
        """
        if self.data and self.folder_of_data is None:
            raise ConfigError(f"the table {self.name} reads a folder of data, which --data FOLDER names. {self.data}")
        self.require_package()

    def require_package(self) -> None:
        """Refuse to run, or to estimate what running costs, without the package that the table needs.

        Raises:
            ConfigError: naming the package and the extra.
        """
        if self.requires is not None and importlib.util.find_spec(self.requires[0]) is None:
            raise missing_extra(*self.requires, f"the table {self.name}")

    def check(self) -> None:
        """Refuse a table that contradicts itself, before anything is run.

        Raises:
            ConfigError: for two cells of one name, files of one name, a cell without seeds, cells that share a run and
                differ in what they run, or notes on nothing.
        """
        files = Counter((cell.score_name(seed), cell.measure) for cell in self.cells for seed in cell.seeds)
        twice = sorted({name for (name, _), number in files.items() if number > 1})
        if twice:
            raise ConfigError(f"the table {self.name} has several cells for one score: {', '.join(twice)}.")
        runs: dict[str, TableCell] = {}
        for cell in self.cells:
            first = runs.setdefault(cell.run_key, cell)
            if (cell.source, cell.seeds, cell.on_request) != (first.source, first.seeds, first.on_request):
                raise ConfigError(
                    f"{cell.key} and {first.key} of the table {self.name} share the run {cell.run_key}, and differ in "
                    "what they run for it."
                )
        empty = [cell.key for cell in self.cells if not cell.seeds]
        if empty:
            raise ConfigError(f"the table {self.name} has cells without seeds: {', '.join(empty)}.")
        known = {name for cell in self.cells for name in (cell.key, cell.row, cell.column)}
        for name in self.notes:
            if name not in known:
                raise unknown_name(f"cell of {self.name} with a note", name, (*self.columns, *self.rows))
