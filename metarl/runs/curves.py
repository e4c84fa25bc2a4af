"""Learning curves of runs: a metric over what it cost, aggregated over seeds, and the numbers as CSV."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metarl.errors import ConfigError, unknown_name
from metarl.runs.files import typed, write_atomically
from metarl.runs.logger import iteration_seconds, read_metrics
from metarl.statistics import FEWEST_FOR_IQM, Float, seed_intervals

Axis = Literal["iterations", "steps", "hours"]
"""What a curve lies over: iterations that are done, what they cost, or hours of collecting, adapting and updating."""


@dataclass(frozen=True)
class Kind:
    """What a run's metrics are called: scores in training and on held-out tasks, and what they cost."""

    score: str
    held_out: str
    counter: str
    cost: str


_KINDS = (
    Kind("return", "test", "env_steps", "environment steps, adaptation included"),
    Kind("accuracy", "validation", "tasks", "training tasks"),
    Kind("error", "validation", "tasks", "training tasks"),
)


@dataclass(frozen=True)
class Log:
    """The metrics of one run.

    Attributes:
        path: the file.
        rows: of the iterations.
        kind: what they are called.
        last: number of the last shot in training.
        last_held_out: the same on held-out tasks.
    """

    path: Path
    rows: Sequence[Mapping[str, Any]]
    kind: Kind
    last: int
    last_held_out: int

    @classmethod
    def read(cls, metrics: Path) -> Log:
        """The log in a ``metrics.jsonl``.

        Raises:
            ConfigError: if the run has logged nothing yet, or is no training.
            CheckpointError: if the file cannot be read.
        """
        rows = read_metrics(metrics)
        if not rows:
            raise ConfigError(f"{metrics} holds no iteration yet: nothing to plot.")
        for kind in _KINDS:
            shots = _shots(rows[:1], f"train/{kind.score}")
            if shots:
                held_out = _shots(rows, f"{kind.held_out}/{kind.score}")
                return cls(metrics, rows, kind, max(shots), max(held_out, default=max(shots)))
        expected = " or ".join(f"'train/{kind.score}_0'" for kind in _KINDS)
        raise ConfigError(f"{metrics}, line 1 lacks {expected}: these are no metrics of a training.")

    @property
    def names(self) -> set[str]:
        """Metrics that any of its iterations has."""
        return {name for row in self.rows for name in row if name not in ("iteration", "wall_time")}

    def points(self, metric: str, axis: Axis) -> tuple[Float, Float]:
        """Where a metric was logged, and what it was.

        Success counts as 0 where the score beside it was logged alone, as some environments tell of success only.

        Raises:
            CheckpointError: if an iteration does not say what it cost.
        """
        beside = metric.replace("/success_", f"/{self.kind.score}_")
        told = [(beside if beside in self.names else metric) in row for row in self.rows]
        values = [float(row.get(metric, 0.0)) for row, here in zip(self.rows, told, strict=True) if here]
        return np.array(list(itertools.compress(self._places(axis), told))), np.array(values)

    def _places(self, axis: Axis) -> list[float]:
        where = f"{self.path}, iteration"
        if axis == "iterations":
            return [float(row["iteration"] + 1) for row in self.rows]
        if axis == "steps":
            return [typed(row, self.kind.counter, float, f"{where} {row['iteration']},") for row in self.rows]
        # Not the clock's: a run may have been stopped for a night.
        seconds = [iteration_seconds(row) for row in self.rows]
        if not all(seconds):
            raise ConfigError(f"{self.path} has no seconds/...: its iterations do not say how long they took.")
        return list(itertools.accumulate(value / 3600 for value in seconds))


def _shots(rows: Sequence[Mapping[str, Any]], name: str) -> set[int]:
    """Numbers of the shots whose metric ``name_K`` is in any of the rows."""
    found = (re.fullmatch(rf"{name}_(\d+)", key) for row in rows for key in row)
    return {int(match[1]) for match in found if match}


@dataclass(frozen=True)
class Curve:
    """A metric of several runs, which are seeds of one experiment, over what it cost.

    Attributes:
        label: of the runs.
        metric: its name.
        x: ``[point]``.
        values: ``[seed, point]``; NaN where a run had not begun or had ended.
        centre: ``[point]``, the interquartile mean over the seeds that are there; of fewer than four it is the mean.
        low: ``[point]``, low end of its 95 % interval; NaN for one seed.
        high: ``[point]``, high end.
    """

    label: str
    metric: str
    x: Float
    values: Float
    centre: Float
    low: Float
    high: Float

    @classmethod
    def of(cls, label: str, logs: Sequence[Log], metric: str, axis: Axis) -> Curve:
        """The curve of some runs; without points where none of them has the metric.

        Between two iterations in which a run logged it, it is taken to change linearly; beyond them it is nothing.
        """
        points = [log.points(metric, axis) for log in logs]
        x = _common([where for where, _ in points])
        values = np.array([_inside(x, *each) for each in points])
        return cls(label, metric, x, values, *seed_intervals(values))

    @property
    def num_seeds(self) -> list[int]:
        """Runs behind each point."""
        return [int(count) for count in np.isfinite(self.values).sum(0)]

    @property
    def shown(self) -> Float:
        """What the seeds did where all are there, or wherever they are, if they never are together."""
        together = self.values[:, self.whole]
        return together.ravel() if together.size else self.values[np.isfinite(self.values)]

    @property
    def whole(self) -> slice:
        """The points at which all runs are there: elsewhere a curve may jump because another run joins or ends."""
        inside = np.flatnonzero(np.isfinite(self.values).all(0))
        return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0)


def _common(axes: Sequence[Float]) -> Float:
    """The points of a curve.

    Where runs logged at the same places, their last ones apart, those. Elsewhere as many as the longest run has, evenly
    over what all runs cover; and before and after it the runs' own.
    """
    union = np.unique(np.concatenate(axes))
    longest = max(map(len, axes))
    if len(union) <= longest + len(axes) or not all(map(len, axes)):
        return union
    low, high = max(where[0] for where in axes), min(where[-1] for where in axes)
    if low >= high:
        return union
    return np.concatenate([union[union < low], np.linspace(low, high, longest), union[union > high]])


def _inside(x: Float, where: Float, values: Float) -> Float:
    if not len(where):
        return np.full(len(x), np.nan)
    return np.interp(x, where, values, left=np.nan, right=np.nan)


def require_metric(logs: Iterable[Log], metric: str) -> None:
    """Refuse a metric that one of the runs lacks.

    Raises:
        ConfigError: naming the metrics that all of them have, and the runs that lack it, if not all do.
    """
    logs = list(logs)
    lacking = [log for log in logs if metric not in log.names]
    if not lacking:
        return
    shared = sorted(set.intersection(*(log.names for log in logs)))
    error = unknown_name("metric", metric, shared)
    if len(lacking) < len(logs):
        told = ", ".join(str(log.path.parent) for log in lacking)
        raise ConfigError(f"{metric} is not logged by {told}. All of these runs have: {', '.join(shared)}.")
    raise error


def write_csv(curves: Sequence[Curve], axis: Axis, path: Path) -> None:
    """Write one line for each point of each curve.

    Columns: label, metric, the axis, num_seeds, aggregate, value, low, high. The ends of the interval are empty for one
    seed.

    Raises:
        ConfigError: if it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "metric", axis, "num_seeds", "aggregate", "value", "low", "high"])
    for curve in curves:
        rows = zip(curve.x, curve.num_seeds, curve.centre, curve.low, curve.high, strict=True)
        for x, count, *numbers in rows:
            told = ["" if np.isnan(number) else float(number) for number in numbers]
            writer.writerow([curve.label, curve.metric, float(x), count, aggregate_name(count), *told])
    try:
        write_atomically(path, text.getvalue().encode())
    except OSError as error:
        raise ConfigError(f"cannot write the numbers {path}: {error.strerror or error}.") from error


def aggregate_name(num_seeds: int) -> str:
    """What a curve shows of so many seeds: see :func:`metarl.statistics.seed_intervals`."""
    return "IQM" if num_seeds >= FEWEST_FOR_IQM else "mean"
