"""Figures, as PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from metarl.errors import ConfigError
from metarl.runs.files import typed, write_atomically
from metarl.runs.logger import read_metrics
from metarl.statistics import Interval


def adaptation_figure(
    rows: Mapping[str, Sequence[Interval]], path: Path, title: str, xlabel: str, score: str = "return"
) -> None:
    """Scores over shots, one line per agent with its interval; an agent with one shot is drawn as a level.

    Args:
        rows: one interval per shot, by label.
        path: the PNG.
        title: above the axes.
        xlabel: what a shot is, e.g. ``"gradient steps"``.
        score: what is scored.

    Raises:
        ConfigError: if the figure cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    colors = mpl.color_sequences["tab10"]
    most = max(len(intervals) for intervals in rows.values())
    for index, (label, intervals) in enumerate(rows.items()):
        mean, low, high = (list(column) for column in zip(*intervals, strict=True))
        color = colors[index % len(colors)]
        if len(mean) == 1:
            axes.axhline(mean[0], color=color, linestyle="--", label=label)
            axes.axhspan(low[0], high[0], color=color, alpha=0.15, linewidth=0)
        else:
            shots = list(range(len(mean)))
            axes.plot(shots, mean, color=color, marker="o", label=label)
            axes.fill_between(shots, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set(title=title, xlabel=xlabel, ylabel=f"{score} (mean, 95 % interval over tasks)")
    axes.set_xticks(range(most))
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


def learning_figure(runs: Mapping[str, Path], path: Path) -> None:
    """Training return before and after adaptation, and held-out return after it, over environment steps.

    Args:
        runs: metrics files by label.
        path: the PNG.

    Raises:
        ConfigError: if a run has logged nothing yet, or the figure cannot be written.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    colors = mpl.color_sequences["tab10"]
    for index, (label, metrics) in enumerate(runs.items()):
        rows = read_metrics(metrics)
        if not rows:
            raise ConfigError(f"{metrics} holds no iteration yet: nothing to plot.")
        color = colors[index % len(colors)]
        shots = sorted(int(name[13:]) for name in rows[0] if re.fullmatch(r"train/return_\d+", name))
        if not shots:
            raise ConfigError(f"{metrics}, line 1 lacks 'train/return_0': these are no metrics of a training.")
        steps = _column(rows, "env_steps", metrics)
        axes.plot(
            steps, _column(rows, f"train/return_{shots[-1]}", metrics), color=color, label=f"{label}, train, last shot"
        )
        if len(shots) > 1:
            first = _column(rows, "train/return_0", metrics)
            axes.plot(steps, first, color=color, linestyle=":", label=f"{label}, train, before adaptation")
        tested = [row for row in rows if f"test/return_{shots[-1]}" in row]
        axes.plot(
            _column(tested, "env_steps", metrics),
            _column(tested, f"test/return_{shots[-1]}", metrics),
            color=color,
            marker="s",
            linestyle="none",
            label=f"{label}, held-out, same shot",
        )
    axes.set(xlabel="environment steps, adaptation included", ylabel="return")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
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


def _column(rows: Sequence[Mapping[str, Any]], name: str, metrics: Path) -> list[float]:
    return [typed(row, name, float, f"{metrics}, iteration {row['iteration']},") for row in rows]
