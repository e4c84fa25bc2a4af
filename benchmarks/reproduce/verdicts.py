"""Ours beside the published number: the interval, and whether the two agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metarl.benchmarks.reproduce.scores import Scores, values_by_seed
from metarl.benchmarks.reproduce.table import Aggregate, Budget, PaperTable, TableCell
from metarl.statistics import (
    Float,
    Interval,
    bootstrap_interval,
    crossed_interval,
    crossed_share_interval,
    interquartile_mean,
)

Kind = Literal["within", "above", "below", "not comparable", "not run"]

_NORMAL = 1.959964
"""Half of a 95 % interval in standard errors."""

_ERRORS = 3.0
"""Standard errors that ours may be off. By chance alone one cell in 370 is off by more where there is one seed; the
intervals of a few seeds are Student's, and their standard deviation is a guess: one in 14, 30 and 67 with 2, 3 and 5 of
them, where seeds vary as much as tasks."""


@dataclass(frozen=True)
class Result:
    """What a cell came to.

    Attributes:
        cell: the cell.
        kind: the verdict.
        reason: why it cannot be compared; empty if it can.
        seeds: that are done.
        num_tasks: that each was scored on.
        interval: ours with its 95 % interval; None if nothing was run.
        remark: what its source says of it.
    """

    cell: TableCell
    kind: Kind
    reason: str = ""
    seeds: tuple[int, ...] = ()
    num_tasks: int = 0
    interval: Interval | None = None
    remark: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


def results_of(table: PaperTable, scores: Scores, budget: Budget) -> list[Result]:
    """The results of all cells, in the table's order."""
    return [_result(table, cell, scores, budget) for cell in table.cells]


def _result(table: PaperTable, cell: TableCell, scores: Scores, budget: Budget) -> Result:
    seeds, values = values_by_seed(scores, cell)
    if not seeds:
        return Result(cell, "not run")
    interval = aggregated(values, table.aggregate, cell.num_groups(scores[cell, seeds[0]]))
    remarks = dict.fromkeys(cell.remark(scores[cell, seed]) for seed in seeds)
    reason = _why_not(table, cell, budget)
    kind: Kind = "not comparable" if reason else compare(table, cell, values, interval)
    return Result(
        cell, kind, reason, seeds, values.shape[1], interval, "; ".join(remark for remark in remarks if remark)
    )


def _why_not(table: PaperTable, cell: TableCell, budget: Budget) -> str:
    """Why a cell cannot be compared; empty if it can."""
    if cell.published is None:
        return "nothing was published"
    small = "" if budget == "full" or not cell.source.trained else f"{table.fraction(budget):.3g} of the budget"
    return "; ".join(filter(None, (cell.not_comparable, small)))


def aggregated(values: Float, aggregate: Aggregate, num_groups: int = 1) -> Interval:
    """Scores ``[seed, task]`` summed up, with a 95 % interval.

    Tasks are a sample on which all seeds are scored, so that the interval of a mean takes both as crossed effects; a
    bootstrap that is stratified by task would be too narrow (:mod:`metarl.statistics`). It is for the interquartile
    mean, which the papers that report it use over the whole of a benchmark. The interval of a percentage is no point
    where all tasks agree: by chance, some other task might not. One number of each seed is no sample: its interval is
    the mean over seeds itself.

    Args:
        values: scores.
        aggregate: how they are summed up.
        num_groups: of tasks, see :meth:`metarl.benchmarks.reproduce.table.Source.num_groups`; for percentages.
    """
    if values.shape[1] == 1:
        mean = float(values.mean())
        return mean, mean, mean
    if aggregate == "iqm":
        return bootstrap_interval(interquartile_mean, values)
    if aggregate == "mean":
        return crossed_interval([values])
    mean, low, high = crossed_share_interval(np.split(values / 100.0, num_groups, axis=1))
    return 100.0 * mean, 100.0 * low, 100.0 * high


def compare(table: PaperTable, cell: TableCell, values: Float, interval: Interval) -> Kind:
    """Whether ours is within three standard errors of the published number, plus what that is rounded by.

    The published number has the error that its source gives; without one, that of a mean over as many tasks as the
    paper had, which vary as ours do.

    Args:
        table: says how many tasks that were, and what kind of error the source gives.
        cell: with a published number.
        values: our scores, ``[seed, task]``.
        interval: of ours.
    """
    published = cell.published
    assert published is not None
    mean, low, high = interval
    theirs = 0.0
    if published.half_interval is not None:
        runs = table.published_runs
        theirs = published.half_interval / (_NORMAL if runs is None else math.sqrt(runs))
    elif table.published_tasks is not None and values.shape[1] > 1:
        theirs = float(np.std(values, axis=1, ddof=1).mean()) / math.sqrt(table.published_tasks)
    ours = (high - mean if mean < published.value else mean - low) / _NORMAL
    allowed = _ERRORS * math.hypot(ours, theirs) + published.rounding
    if mean < published.value - allowed:
        return "below"
    return "above" if mean > published.value + allowed and not published.at_least else "within"
