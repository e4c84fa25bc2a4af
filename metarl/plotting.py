"""Figures, as PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metarl.errors import ConfigError
from metarl.runs.files import typed, write_atomically
from metarl.runs.logger import read_metrics
from metarl.statistics import Float, Interval, mean_interval

Rows = Sequence[Mapping[str, Any]]


def adaptation_figure(rows: Mapping[str, Sequence[Interval]], path: Path, title: str, xlabel: str) -> None:
    """Return over shots, one line per agent with its interval; an agent with one shot is drawn as a level.

    Where no agent has more than one shot there is no line to draw: each is a point with its interval.

    Args:
        rows: one interval per shot, by label.
        path: the PNG.
        title: above the axes.
        xlabel: what a shot is, e.g. ``"gradient steps"``.

    Raises:
        ConfigError: if the figure cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    most = max(len(intervals) for intervals in rows.values())
    for index, (label, intervals) in enumerate(rows.items()):
        mean, low, high = (np.array(column) for column in zip(*intervals, strict=True))
        color = _color(index)
        if most == 1:
            axes.errorbar(index, mean, [mean - low, high - mean], color=color, marker="o", markersize=8, capsize=6)
        elif len(mean) == 1:
            axes.axhline(mean[0], color=color, linestyle="--", label=label)
            axes.axhspan(low[0], high[0], color=color, alpha=0.15, linewidth=0)
        else:
            shots = list(range(len(mean)))
            axes.plot(shots, mean, color=color, marker="o", label=label)
            axes.fill_between(shots, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set(title=title, ylabel="return (mean, 95 % interval over tasks)")
    if most == 1:
        # The names stand where the points do, one word below the other.
        axes.set_xticks(range(len(rows)), [label.replace(" ", "\n") for label in rows])
        axes.set_xlim(-0.6, len(rows) - 0.4)
    else:
        axes.set_xlabel(xlabel)
        axes.set_xticks(range(most))
        figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def steps_figure(rows: Mapping[str, Mapping[int, Interval]], path: Path, title: str, xlabel: str, score: str) -> None:
    """Scores over steps of adaptation, which need not be evenly spaced; one line with its interval for each label.

    Args:
        rows: for each label, intervals by the number of steps.
        path: the PNG.
        title: above the axes.
        xlabel: what a step is.
        score: what is scored.

    Raises:
        ConfigError: if the figure cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, (label, curve) in enumerate(rows.items()):
        mean, low, high = np.array([*curve.values()]).T
        axes.plot([*curve], mean, color=_color(index), marker="o", label=label)
        axes.fill_between([*curve], low, high, color=_color(index), alpha=0.2, linewidth=0)
    axes.set(title=title, xlabel=xlabel, ylabel=f"{score} (mean, 95 % interval over tasks)")
    if max(step for curve in rows.values() for step in curve) > 20:
        axes.set_xscale("symlog", linthresh=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, path)


def bar_figure(rows: Mapping[str, Interval], path: Path, title: str, xlabel: str) -> None:
    """One score with its interval for each label, the first on top.

    Args:
        rows: intervals by label.
        path: the PNG.
        title: above the axes.
        xlabel: what the score is.

    Raises:
        ConfigError: if the figure cannot be written.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (mean, low, high) in enumerate(rows.values()):
        axes.barh(place, mean, xerr=[[max(mean - low, 0.0)], [max(high - mean, 0.0)]], color="tab:blue", alpha=0.7)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(title=title, xlabel=xlabel)
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def learning_figure(runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Training scores before and after adaptation, and held-out scores after it, over what they cost.

    Agents' scores are returns over environment steps, few-shot learners' accuracies or errors over tasks. Success has a
    panel beside it where some run reported any. Several runs below one label are seeds of one experiment: they become
    one line, their mean, with its 95 % interval over seeds, as far as the shortest of them goes.

    Args:
        runs: metrics files by label.
        path: the PNG.

    Raises:
        ConfigError: if a run has logged nothing yet, if scores are of several kinds, or if the figure cannot be
            written.
    """
    read = {label: [_read(metrics) for metrics in files] for label, files in runs.items()}
    kinds = {log.kind: log.path for logs in read.values() for log in logs}
    if len(kinds) > 1:
        told = ", ".join(f"{kind.score} in {path}" for kind, path in kinds.items())
        raise ConfigError(f"one figure shows one kind of score, got {told}.")
    (kind,) = kinds
    known = {name for logs in read.values() for log in logs for row in log.rows for name in row}
    quantities = [kind.score, *(["success"] if any(name.startswith("train/success_") for name in known) else [])]
    figure = Figure(figsize=(7.2 if len(quantities) == 1 else 11.0, 5.2), layout="constrained")
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    for quantity, axes in zip(quantities, panels, strict=True):
        seen = [
            x for index, logs in enumerate(read.values()) for x in _draw_learning(axes, logs, quantity, _color(index))
        ]
        # An interval over few seeds may be far wider than what they did, which must stay readable.
        margin = 0.05 * (max(seen) - min(seen)) or 1.0
        axes.set_ylim(min(seen) - margin, max(seen) + margin)
        axes.set(xlabel=kind.xlabel, ylabel=quantity)
        axes.grid(alpha=0.3)
    lines = [Line2D([], [], color=_color(index), label=label) for index, label in enumerate(read)]
    styles = [Line2D([], [], color="0.3", label="training, last shot")]
    if any(name == f"train/{kind.score}_0" for name in known) and any(
        log.last > 0 for logs in read.values() for log in logs
    ):
        styles.append(Line2D([], [], color="0.3", linestyle=":", label="training, before adaptation"))
    if any(name.startswith(f"{kind.held_out}/") for name in known):
        styles.append(Line2D([], [], color="0.3", marker="s", linestyle="none", label="held-out tasks, last shot"))
    figure.legend(handles=[*lines, *styles], loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure in one step, in the format of the path's suffix (PNG without one).

    Raises:
        ConfigError: for an unknown format, or if the file cannot be written.
    """
    data = io.BytesIO()
    try:
        figure.savefig(data, dpi=dpi, format=path.suffix[1:] or "png")
        write_atomically(path, data.getvalue())
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no image format.
        raise ConfigError(f"cannot write the figure {path}: {error}.") from error


@dataclass(frozen=True)
class _Kind:
    """What a run's metrics are called: scores in training and on held-out tasks, and what they cost."""

    score: str
    held_out: str
    counter: str
    xlabel: str


_KINDS = (
    _Kind("return", "test", "env_steps", "environment steps, adaptation included"),
    _Kind("accuracy", "validation", "tasks", "training tasks"),
    _Kind("error", "validation", "tasks", "training tasks"),
)


@dataclass(frozen=True)
class _Log:
    """The metrics of one run.

    Attributes:
        path: the file.
        rows: of the iterations.
        kind: what they are called.
        last: number of the last shot in training.
        last_held_out: the same on held-out tasks.
    """

    path: Path
    rows: Rows
    kind: _Kind
    last: int
    last_held_out: int

    def column(self, name: str, iterations: Sequence[int]) -> list[float]:
        """A metric in these iterations; 0 for success that was not told, as some environments tell of it alone."""
        by_iteration = {row["iteration"]: row for row in self.rows}
        where = f"{self.path}, iteration"
        return [
            0.0
            if "/success_" in name and name not in by_iteration[number]
            else typed(by_iteration[number], name, float, f"{where} {number},")
            for number in iterations
        ]


def _read(metrics: Path) -> _Log:
    rows = read_metrics(metrics)
    if not rows:
        raise ConfigError(f"{metrics} holds no iteration yet: nothing to plot.")
    for kind in _KINDS:
        shots = _shots(rows[:1], f"train/{kind.score}")
        if shots:
            held_out = _shots(rows, f"{kind.held_out}/{kind.score}")
            return _Log(metrics, rows, kind, max(shots), max(held_out, default=max(shots)))
    expected = " or ".join(f"'train/{kind.score}_0'" for kind in _KINDS)
    raise ConfigError(f"{metrics}, line 1 lacks {expected}: these are no metrics of a training.")


def _shots(rows: Rows, name: str) -> set[int]:
    """Numbers of the shots whose metric ``name_K`` is in any of the rows."""
    found = (re.fullmatch(rf"{name}_(\d+)", key) for row in rows for key in row)
    return {int(match[1]) for match in found if match}


def _draw_learning(axes: Axes, logs: Sequence[_Log], quantity: str, color: Any) -> list[float]:
    """Draw the lines of one label; returns all numbers behind them."""
    last = logs[0].last
    if quantity == "success" and not any(f"train/success_{last}" in row for log in logs for row in log.rows):
        return []
    shared = set.intersection(*({row["iteration"] for row in log.rows} for log in logs))
    iterations = sorted(shared)
    steps, values = _series(logs, f"train/{quantity}_{last}", iterations)
    axes.plot(steps, values.mean(0), color=color)
    kind, before = logs[0].kind, np.empty((0, 0))
    if last > 0 and f"train/{quantity}_0" in logs[0].rows[0]:
        before = _series(logs, f"train/{quantity}_0", iterations)[1]
        axes.plot(steps, before.mean(0), color=color, linestyle=":")
    held_out_name = f"{kind.held_out}/{quantity}_{logs[0].last_held_out}"
    told_by = f"{kind.held_out}/{kind.score}_{logs[0].last_held_out}"
    tested = [{row["iteration"] for row in log.rows if told_by in row} for log in logs]
    points, held_out = _series(logs, held_out_name, sorted(shared.intersection(*tested)))
    axes.plot(points, held_out.mean(0), color=color, marker="s", linestyle="none")
    if len(logs) > 1:
        for where, of_seeds in ((steps, values), (points, held_out)):
            _, low, high = np.array([mean_interval(column) for column in of_seeds.T]).reshape(-1, 3).T
            if of_seeds is values:
                axes.fill_between(where, low, high, color=color, alpha=0.15, linewidth=0)
            else:
                axes.vlines(where, low, high, color=color, linewidth=1.5)
    return [*values.flat, *before.flat, *held_out.flat]


def _series(logs: Sequence[_Log], name: str, iterations: Sequence[int]) -> tuple[Float, Float]:
    """Cost ``[iteration]``, its mean as seeds differ where episodes end early; ``[seed, iteration]``."""
    steps = np.array([log.column(log.kind.counter, iterations) for log in logs])
    return steps.mean(0), np.array([log.column(name, iterations) for log in logs])


def _color(index: int) -> Any:
    colors = mpl.color_sequences["tab10"]
    return colors[index % len(colors)]
