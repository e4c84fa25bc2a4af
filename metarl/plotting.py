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


def learning_figure(runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Training return before and after adaptation, and held-out return after it, over environment steps.

    Success has a panel beside it where some run reported any. Several runs below one label are seeds of one experiment:
    they become one line, their mean, with its 95 % interval over seeds, as far as the shortest of them goes.

    Args:
        runs: metrics files by label.
        path: the PNG.

    Raises:
        ConfigError: if a run has logged nothing yet, or the figure cannot be written.
    """
    read = {label: [_read(metrics) for metrics in files] for label, files in runs.items()}
    known = {name for logs in read.values() for log in logs for row in log.rows for name in row}
    quantities = ["return", *(["success"] if any(name.startswith("train/success_") for name in known) else [])]
    figure = Figure(figsize=(7.2 if len(quantities) == 1 else 11.0, 5.2), layout="constrained")
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    for quantity, axes in zip(quantities, panels, strict=True):
        seen = [
            x for index, logs in enumerate(read.values()) for x in _draw_learning(axes, logs, quantity, _color(index))
        ]
        # An interval over few seeds may be far wider than what they did, which must stay readable.
        margin = 0.05 * (max(seen) - min(seen)) or 1.0
        axes.set_ylim(min(seen) - margin, max(seen) + margin)
        axes.set(xlabel="environment steps, adaptation included", ylabel=quantity)
        axes.grid(alpha=0.3)
    lines = [Line2D([], [], color=_color(index), label=label) for index, label in enumerate(read)]
    styles = [Line2D([], [], color="0.3", label="training, last shot")]
    if any(log.last > 0 for logs in read.values() for log in logs):
        styles.append(Line2D([], [], color="0.3", linestyle=":", label="training, before adaptation"))
    if any(name.startswith("test/") for name in known):
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
class _Log:
    """The metrics of one run; ``last`` is the number of the last shot of its training trials."""

    path: Path
    rows: Rows
    last: int

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
    shots = [int(name[13:]) for name in rows[0] if re.fullmatch(r"train/return_\d+", name)]
    if not shots:
        raise ConfigError(f"{metrics}, line 1 lacks 'train/return_0': these are no metrics of a training.")
    return _Log(metrics, rows, max(shots))


def _draw_learning(axes: Axes, logs: Sequence[_Log], quantity: str, color: Any) -> list[float]:
    """Draw the lines of one label; returns all numbers behind them."""
    last = logs[0].last
    if quantity == "success" and not any(f"train/success_{last}" in row for log in logs for row in log.rows):
        return []
    shared = set.intersection(*({row["iteration"] for row in log.rows} for log in logs))
    iterations = sorted(shared)
    steps, values = _series(logs, f"train/{quantity}_{last}", iterations)
    axes.plot(steps, values.mean(0), color=color)
    before = _series(logs, f"train/{quantity}_0", iterations)[1]
    if last > 0:
        axes.plot(steps, before.mean(0), color=color, linestyle=":")
    tested = [{row["iteration"] for row in log.rows if f"test/return_{last}" in row} for log in logs]
    points, held_out = _series(logs, f"test/{quantity}_{last}", sorted(shared.intersection(*tested)))
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
    """Environment steps ``[iteration]``, their mean as seeds differ where episodes end early; ``[seed, iteration]``."""
    steps = np.array([log.column("env_steps", iterations) for log in logs])
    return steps.mean(0), np.array([log.column(name, iterations) for log in logs])


def _color(index: int) -> Any:
    colors = mpl.color_sequences["tab10"]
    return colors[index % len(colors)]
