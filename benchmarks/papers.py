"""Published results, ``papers.csv``: what papers and replications report, each with its source, to read ours beside."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

from metarl.errors import CheckpointError, ConfigError, unknown_name
from metarl.runs.files import read_regular, shown

Confidence = Literal["high", "medium", "low"]

PAPERS = Path(__file__).with_name("papers.csv")
"""The rows that metarl comes with."""

_COLUMNS = (
    "paper",
    "arxiv",
    "table",
    "benchmark",
    "setting",
    "method",
    "metric",
    "value",
    "ci",
    "confidence",
    "source",
)
_MAY_BE_EMPTY = ("setting", "ci")


@dataclass(frozen=True)
class Published:
    """One number of a paper.

    Attributes:
        paper: its short name.
        arxiv: its number there; a dash for what is not there.
        table: the table or figure of the paper, or where else the number stands.
        benchmark: the family of tasks.
        setting: their size, or the split; may be empty.
        method: as the paper calls it.
        metric: what was measured, with its unit.
        value: the number; the least that it is, if ``at_least``.
        at_least: whether the source gives a lower bound alone.
        rounding: the most that it is rounded by: half a unit of its last digit.
        half_interval: half of the interval that the source gives; None without one.
        confidence: how sure it is that the number stands there.
        source: where it was read.
    """

    paper: str
    arxiv: str
    table: str
    benchmark: str
    setting: str
    method: str
    metric: str
    value: float
    at_least: bool
    rounding: float
    half_interval: float | None
    confidence: Confidence
    source: str

    @property
    def text(self) -> str:
        """The number as it was published, with its interval if it has one."""
        decimals = max(0, round(-math.log10(2 * self.rounding)))
        half = "" if self.half_interval is None else f" ± {self.half_interval:.{decimals}f}"
        return f"{'≥ ' if self.at_least else ''}{self.value:.{decimals}f}{half}"

    @property
    def reference(self) -> str:
        """Where it was published, in short."""
        number = f" (arXiv {self.arxiv})" if self.arxiv != "-" else ""
        return f"{self.paper}{number}, {self.table}"


@cache
def read_papers(path: Path = PAPERS) -> tuple[Published, ...]:
    """All rows of a file of published results, in its order.

    Raises:
        CheckpointError: if the file cannot be read.
        ConfigError: for another header, or a row that cannot be, naming file, line, what came and what was expected.
    """
    try:
        text = read_regular(path).decode()
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(path)}: expected UTF-8, got {error}.") from error
    lines = csv.reader(io.StringIO(text, newline=""))
    header = next(lines, [])
    if tuple(header) != _COLUMNS:
        raise ConfigError(
            f"{shown(path)}, line 1: expected the columns {', '.join(_COLUMNS)}, got {', '.join(header) or 'nothing'}."
        )
    return tuple(_published(row, f"{shown(path)}, line {lines.line_num}") for row in lines)


def _published(row: Sequence[str], where: str) -> Published:
    if len(row) != len(_COLUMNS):
        raise ConfigError(f"{where}: expected {len(_COLUMNS)} fields, got {len(row)}.")
    fields = dict(zip(_COLUMNS, row, strict=True))
    for name, text in fields.items():
        if not text and name not in _MAY_BE_EMPTY:
            raise ConfigError(f"{where}: {name} is empty; expected text.")
    confidence = fields.pop("confidence")
    if confidence not in get_args(Confidence):
        raise ConfigError(f"{where}: confidence must be {', '.join(get_args(Confidence))}, got {confidence!r}.")
    value, ci = fields.pop("value"), fields.pop("ci")
    half_interval = _number(ci, "ci", "a number of 0 or more, or nothing", where) if ci else None
    if half_interval is not None and half_interval < 0:
        raise ConfigError(f"{where}: ci must be a number of 0 or more, or nothing, got {ci!r}.")
    return Published(
        **fields,
        value=_number(value.removeprefix(">="), "value", "a number, or >= and a number", where),
        at_least=value.startswith(">="),
        rounding=0.5 * 10.0 ** -len(value.partition(".")[2]),
        half_interval=half_interval,
        confidence=cast(Confidence, confidence),
    )


def _number(text: str, name: str, expected: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{where}: {name} must be {expected}, got {text!r}.")
    return value


def rows_of(paper: str, table: str, benchmark: str | None = None) -> Mapping[tuple[str, str], Published]:
    """One table of a paper by setting and method.

    Args:
        paper: its short name, as in ``papers.csv``.
        table: the table's name there; it has one metric.
        benchmark: the part of a table that is over several families of tasks.

    Raises:
        ConfigError: for a paper or table that is not there, or one with several numbers for a setting and method.
    """
    by_paper = [row for row in read_papers() if row.paper == paper]
    if not by_paper:
        raise unknown_name("paper", paper, dict.fromkeys(row.paper for row in read_papers()))
    chosen = [row for row in by_paper if row.table == table]
    if not chosen:
        raise unknown_name(f"table of {paper}", table, dict.fromkeys(row.table for row in by_paper))
    if benchmark is not None:
        in_table, chosen = chosen, [row for row in chosen if row.benchmark == benchmark]
        if not chosen:
            choices = dict.fromkeys(row.benchmark for row in in_table)
            raise unknown_name(f"benchmark of {paper}, {table}", benchmark, choices)
    found = {(row.setting, row.method): row for row in chosen}
    if len(found) < len(chosen):
        raise ConfigError(f"{paper}, {table} has several numbers for one setting and method: name rows by hand.")
    return found
