"""Figures, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metarl.errors import ConfigError
from metarl.runs.curves import Axis, Curve, Log, require_metric
from metarl.runs.files import write_atomically
from metarl.statistics import FEWEST_FOR_IQM, Interval

# Matplotlib is loaded by the first figure alone: every command would start half a second later.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    figure = _figure(6.4, 4.6)
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
    figure = _figure(6.4, 4.6)
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
    figure = _figure(6.4, 1.2 + 0.32 * len(rows))
    axes = figure.subplots()
    for place, (mean, low, high) in enumerate(rows.values()):
        axes.barh(place, mean, xerr=[[max(mean - low, 0.0)], [max(high - mean, 0.0)]], color="tab:blue", alpha=0.7)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(title=title, xlabel=xlabel)
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def learning_figure(
    runs: Mapping[str, Sequence[Path]], path: Path, *, metric: str | None = None, axis: Axis = "steps"
) -> list[Curve]:
    """Learning curves, of one metric or of training scores before and after adaptation and of held-out scores after it.

    Agents' scores are returns, few-shot learners' accuracies or errors. Success has a panel beside them where some run
    reported any. Several runs below one label are seeds of one experiment: they become one line, their interquartile
    mean, with its 95 % interval (:func:`metarl.statistics.seed_intervals`), where all of them are; the curves that are
    returned go on to the end of the longest.

    Args:
        runs: metrics files by label.
        path: the PNG.
        metric: the only metric to draw; default: scores.
        axis: what the curves lie over; steps are environment steps, or tasks of a few-shot learner.

    Returns:
        What is drawn, by label and metric.

    Raises:
        ConfigError: if a run has logged nothing yet or lacks the metric, if scores are of several kinds, or if the
            figure cannot be written.
    """
    read = {label: [Log.read(metrics) for metrics in files] for label, files in runs.items()}
    logs = [log for seeds in read.values() for log in seeds]
    kinds = {log.kind: log.path for log in logs}
    if len(kinds) > 1 and (metric is None or axis == "steps"):
        told = ", ".join(f"{kind.score} in {path}" for kind, path in kinds.items())
        raise ConfigError(f"one figure shows one kind of score, got {told}.")
    kind = logs[0].kind
    if metric is not None:
        require_metric(logs, metric)
    success = any(name.startswith("train/success_") for log in logs for name in log.names)
    quantities = [kind.score, *(["success"] if success else [])] if metric is None else [metric]
    figure = _figure(7.2 if len(quantities) == 1 else 11.0, 5.2)
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    drawn: list[Curve] = []
    for quantity, axes in zip(quantities, panels, strict=True):
        of_panel = [
            curve
            for index, (label, seeds) in enumerate(read.items())
            for curve in _draw_learning(axes, label, seeds, quantity, metric is not None, axis, _color(index))
        ]
        drawn += of_panel
        # An interval over few seeds may be far wider than what they did, which must stay readable.
        seen = np.concatenate([curve.shown for curve in of_panel])
        margin = 0.05 * float(np.ptp(seen)) or 1.0
        axes.set_ylim(float(seen.min()) - margin, float(seen.max()) + margin)
        axes.set(xlabel=_XLABELS.get(axis, kind.cost), ylabel=quantity)
        axes.grid(alpha=0.3)
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=_color(index), label=label) for index, label in enumerate(read)]
    names = {curve.metric for curve in drawn}
    styles = []
    if metric is None:
        styles.append(Line2D([], [], color="0.3", label=f"training, {_shots(log.last for log in logs)}"))
    if metric is None and any(log.last > 0 and f"train/{kind.score}_0" in names for log in logs):
        styles.append(Line2D([], [], color="0.3", linestyle=":", label="training, before adaptation"))
    if metric is None and any(name.startswith(f"{kind.held_out}/") for name in names):
        told = f"held-out tasks, {_shots(log.last_held_out for log in logs)}"
        styles.append(Line2D([], [], color="0.3", marker="s", linestyle="none", label=told))
    figure.legend(
        handles=[*lines, *styles],
        loc="outside lower center",
        ncols=2,
        fontsize="small",
        title=_aggregates([len(seeds) for seeds in read.values()]),
        title_fontsize="small",
    )
    save_figure(figure, path)
    return drawn


_XLABELS = {"iterations": "iterations", "hours": "hours of training, without evaluations"}
"""What the axis is called; that of steps depends on what is trained."""


def _shots(numbers: Iterable[int]) -> str:
    """The last shots of some runs; held-out tasks may have more than training."""
    last = sorted(set(numbers))
    return f"shot {last[0]}" if len(last) == 1 else f"last shot ({', '.join(map(str, last))})"


def _aggregates(counts: Sequence[int]) -> str | None:
    """What lines and bands of groups with so many seeds show; None where each is one run."""
    few = "mean over seeds, 95 % t interval" if any(1 < count < FEWEST_FOR_IQM for count in counts) else ""
    many = "IQM over seeds, 95 % bootstrap interval" if max(counts) >= FEWEST_FOR_IQM else ""
    if few and many:
        return f"{many}; {few} of fewer than {FEWEST_FOR_IQM}"
    return many or few or None


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure in one step, in the format of the path's suffix (PNG without one).

    Raises:
        ConfigError: for an unknown format, or if the file cannot be written.
    """
    data = io.BytesIO()
    try:
        figure.savefig(data, dpi=dpi, format=path.suffix[1:] or "png")
        write_atomically(path, data.getvalue())
    except ValueError as error:  # A suffix that is no image format.
        raise ConfigError(f"cannot write the figure {path}: {error}.") from error
    except OSError as error:
        raise ConfigError(
            f"cannot write the figure {path}: {error.strerror or error}. Name a file in a folder that exists, and that "
            "you may write to, with --output."
        ) from error


def _draw_learning(
    axes: Axes, label: str, logs: Sequence[Log], quantity: str, alone: bool, axis: Axis, color: Any
) -> list[Curve]:
    """Draw the lines of one label; returns the curves behind them.

    Args:
        axes: to draw on.
        label: of the runs.
        logs: of its runs.
        quantity: a kind of score, or a metric.
        alone: whether it is a metric.
        axis: what the curves lie over.
        color: of all lines.
    """
    first, kind = logs[0], logs[0].kind
    styles: dict[str, dict[str, Any]] = {quantity: {}}
    if not alone:
        styles = {f"train/{quantity}_{first.last}": {}}
        if first.last > 0:
            styles[f"train/{quantity}_0"] = {"linestyle": ":"}
        styles[f"{kind.held_out}/{quantity}_{first.last_held_out}"] = {"marker": "s", "linestyle": "none"}
    curves = []
    for metric, style in styles.items():
        if not any(metric in log.names for log in logs):
            continue
        curve = Curve.of(label, logs, metric, axis)
        curves.append(curve)
        if curve.whole == slice(0):
            # Seeds that share no place, such as those with a single evaluation after different numbers of steps.
            axes.plot(curve.x, curve.values.T, color=color, marker=style.get("marker", "."), linestyle="none")
            continue
        x, centre, low, high = (column[curve.whole] for column in (curve.x, curve.centre, curve.low, curve.high))
        axes.plot(x, centre, color=color, **style)
        if len(logs) > 1 and "marker" in style:
            axes.vlines(x, low, high, color=color, linewidth=1.5)
        elif len(logs) > 1 and "linestyle" not in style:
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    return curves


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _color(index: int) -> Any:
    import matplotlib as mpl

    colors = mpl.color_sequences["tab10"]
    return colors[index % len(colors)]
