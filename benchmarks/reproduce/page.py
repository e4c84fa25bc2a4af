"""The page of a table: ours beside the published numbers in Markdown, CSV and a figure."""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metarl.benchmarks.report import notes, provenance, smooth
from metarl.benchmarks.reproduce.scores import Scores, seconds_of, values_by_seed
from metarl.benchmarks.reproduce.table import Budget, PaperTable
from metarl.benchmarks.reproduce.verdicts import Kind, Result, results_of
from metarl.plotting import save_figure
from metarl.runs.files import write_atomically
from metarl.statistics import interval_texts, number_text

_MARKS: Mapping[Kind, str] = {"within": "", "above": " ▲", "below": " ▼", "not comparable": " ~", "not run": ""}

_AGGREGATES = {
    "mean": "Mean over tasks and seeds with its 95 % interval, in which both are sources of error; with one seed the "
    "interval is over tasks alone.",
    "percent": "Mean over tasks and seeds with its 95 % interval, in which both are sources of error; it is never "
    "narrower than Wilson's over tasks alone.",
    "iqm": "Interquartile mean over seeds and tasks with its 95 % interval by the stratified bootstrap.",
}


_MOST_COLUMNS = 9
"""Tables with more are printed with rows for columns."""

_LEGEND = (
    " Published numbers stand in brackets. ▲ above, ▼ below: by more than three standard errors of the difference, of "
    "which ours is that half of the interval which faces the published number, by 1.96, and what that is rounded by; ~ "
    "not comparable, see below; no mark: within."
)


def write_page(table: PaperTable, scores: Scores, budget: Budget, folder: Path) -> str:
    """Write ``README.md``, ``table.csv``, ``scores.csv`` and ``table.png`` into ``folder``.

    Where scores have a ``curve``, lists by name, ``learning.png`` shows the last over the first.

    Args:
        table: the table.
        scores: all that there are.
        budget: that they were run with.
        folder: the folder of the results.

    Returns:
        The page's text.
    """
    results = results_of(table, scores, budget)
    _draw(table, results, folder / "table.png")
    write_atomically(folder / "table.csv", _csv(_table_rows(results)))
    write_atomically(folder / "scores.csv", _csv(_score_rows(table, scores)))
    curves = _draw_curves(table, scores, folder / "learning.png")
    part = f", {table.small:.3g} of the budget" if budget == "small" else ""
    text = "\n".join(
        [
            f"# {table.title}{part}",
            "",
            *(f"    {command}" for command in _commands(table, scores, budget)),
            "",
            table.about,
            "",
            *([f"**Here all of that is cut to {table.small:.3g}, training and tests.**", ""] if part else []),
            f"{table.metric[0].upper()}{table.metric[1:]}. {_AGGREGATES[table.aggregate]}"
            + (_LEGEND if any(cell.published for cell in table.cells) else ""),
            "",
            *_matrix(table, results),
            "",
            f"{counted(results).capitalize()}.",
            "",
            "![ours beside the published numbers](table.png)",
            "",
            *(["![learning](learning.png)", ""] if curves else []),
            *_explained(table, results),
            "## Every cell",
            "",
            *_listing(results),
            "",
            "The same as data: [table.csv](table.csv), and by seed [scores.csv](scores.csv).",
            "",
            *notes(folder),
            *([provenance(scores.values()), ""] if scores else []),
        ]
    )
    write_atomically(folder / "README.md", text.encode())
    return text


def _commands(table: PaperTable, scores: Scores, budget: Budget) -> list[str]:
    """What runs the cells that have scores."""
    words = f"metarl reproduce {table.name}" + (f" --budget {budget}" if budget != "full" else "")
    words += " --data FOLDER" if table.data else ""
    asked = dict.fromkeys(cell.run_key for cell, _ in scores if cell.on_request)
    return [words] + ([f"{words} --cells {shlex.join(asked)}"] if asked else [])


def counted(results: Sequence[Result]) -> str:
    """How many cells have which verdict, e.g. ``cells: 61 within, 2 below, 13 not run``."""
    counts = Counter(result.kind for result in results)
    return "cells: " + ", ".join(f"{counts[kind]} {kind}" for kind in _MARKS if counts[kind])


def _matrix(table: PaperTable, results: Sequence[Result]) -> list[str]:
    """The table as the paper prints it, ours ± half of the interval and the published number; on its side if wide."""
    by_place = {(result.cell.row, result.cell.column): result for result in results}
    texts = {place: _short(result) for place, result in by_place.items()}
    across, down = table.columns, table.rows
    if len(across) > _MOST_COLUMNS:
        across, down = down, across
        texts = {(column, row): text for (row, column), text in texts.items()}
    lines = [f"| | {' | '.join(across)} |", f"|---|{'---:|' * len(across)}"]
    return lines + [f"| {line} | {' | '.join(texts.get((line, name), '') for name in across)} |" for line in down]


def _short(result: Result) -> str:
    theirs = "" if result.cell.published is None else f" ({result.cell.published.text})"
    if result.interval is None:
        return f"–{theirs}"
    mean, low, high = result.interval
    mark = _MARKS[result.kind] if theirs else ""
    if result.num_tasks == 1:
        return f"{number_text(low)}{theirs}{mark}"
    texts = interval_texts(result.interval)
    if abs((high - mean) - (mean - low)) > 0.2 * (high - low):
        return f"{texts[0]} ({texts[1]} .. {texts[2]}){theirs}{mark}"
    return f"{texts[0]} ± {number_text((high - low) / 2)}{theirs}{mark}"


def _explained(table: PaperTable, results: Sequence[Result]) -> list[str]:
    """Why cells that were run are not within, where the table knows."""
    lines = []
    for name, text in table.notes.items():
        concerned = [
            result.cell.key
            for result in results
            if name in (result.cell.key, result.cell.row, result.cell.column)
            and result.kind in ("above", "below", "not comparable")
        ]
        if concerned:
            lines.append(f"- {', '.join(concerned)}: {text}")
    return ["## Cells that are off", "", *lines, ""] if lines else []


def _listing(results: Iterable[Result]) -> list[str]:
    names = ("cell", "ours", "95 % interval", "seeds", "tasks", "published", "source", "verdict", "how")
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for result in results:
        published = result.cell.published
        ours = ("", "", "", "")
        if result.interval is not None:
            mean, low, high = interval_texts(result.interval)
            ours = mean, f"{low} to {high}", str(len(result.seeds)), f"{result.num_tasks:,}"
            if result.num_tasks == 1:
                ours = number_text(result.interval[0]), "", ours[2], ""
        theirs = ("", "") if published is None else (published.text, published.reference)
        lines.append(f"| {' | '.join([result.cell.key, *ours, *theirs, result.verdict, result.remark])} |")
    return lines


def _table_rows(results: Iterable[Result]) -> Iterable[dict[str, Any]]:
    for result in results:
        mean, low, high = (None, None, None) if result.interval is None else result.interval
        published = result.cell.published
        yield {
            "row": result.cell.row,
            "column": result.cell.column,
            "ours": mean,
            "low": low,
            "high": high,
            "seeds": len(result.seeds),
            "tasks": result.num_tasks,
            "published": None if published is None else published.value,
            "published_half_interval": None if published is None else published.half_interval,
            "reference": None if published is None else published.reference,
            "source": None if published is None else published.source,
            "confidence": None if published is None else published.confidence,
            "verdict": result.kind,
            "reason": result.reason,
            "remark": result.remark,
        }


def _score_rows(table: PaperTable, scores: Scores) -> Iterable[dict[str, Any]]:
    for cell in table.cells:
        for seed, values in zip(*values_by_seed(scores, cell), strict=True):
            yield {
                "row": cell.row,
                "column": cell.column,
                "seed": seed,
                "mean": values.mean(),
                "standard_deviation": values.std(ddof=1) if len(values) > 1 else None,
                "tasks": len(values),
                "seconds": round(seconds_of(scores[cell, seed]), 1),
            }


def _csv(rows: Iterable[dict[str, Any]]) -> bytes:
    listed = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(listed[0]) if listed else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue().encode()


def _draw(table: PaperTable, results: Sequence[Result], path: Path) -> None:
    """A panel for each row: ours with the interval, and the published number as a cross."""
    across = min(3, len(table.rows))
    down = -(-len(table.rows) // across)
    size = (3.6 * across + 0.8, down * (0.9 + 0.22 * len(table.columns)) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flat
    for axes in panels[len(table.rows) :]:
        axes.set_visible(False)
    for row, axes in zip(table.rows, panels, strict=False):
        for result in (result for result in results if result.cell.row == row):
            height = table.columns.index(result.cell.column)
            if result.interval is not None:
                mean, low, high = result.interval
                color = "tab:orange" if result.kind in ("above", "below") else "tab:blue"
                axes.errorbar(mean, height, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color=color)
            if result.cell.published is not None:
                axes.plot(result.cell.published.value, height, marker="x", color="0.2", markersize=8)
        axes.set(title=row, yticks=range(len(table.columns)), ylim=(len(table.columns) - 0.5, -0.5))
        if table.aggregate == "percent":
            axes.set_xlim(-4.0, 104.0)
        axes.set_yticklabels(table.columns)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{table.metric}; dots: ours (orange: off), crosses: published")
    save_figure(figure, path, dpi=110)


def _draw_curves(table: PaperTable, scores: Scores, path: Path) -> bool:
    """A panel for each row, in it a line for each run, the mean over its seeds; False if no score has a curve.

    What is not trained has one of a single point, which is none to look at.
    """
    runs: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for cell, seed in table.runs(table.cells, "full"):
        curve = scores.get((cell, seed), {}).get("curve", {})
        if curve and min(map(len, curve.values())) > 1:
            label = cell.column if cell.run_key == cell.key else cell.row
            runs.setdefault(cell.row, {}).setdefault(label, []).append(curve)
    if not runs:
        return False
    across = min(4, len(runs))
    down = -(-len(runs) // across)
    figure = Figure(figsize=(3.4 * across + 0.6, 2.5 * down + 0.4), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    for (row, lines), axes in zip(runs.items(), panels, strict=False):
        for label, curves in lines.items():
            x, *_, y = curves[0]
            shortest = min(len(curve[y]) for curve in curves)
            mean = np.mean([smooth(curve[y][:shortest]) for curve in curves], axis=0)
            axes.plot(curves[0][x][:shortest], mean, label=label)
            axes.set(xlabel=x.replace("_", " "), ylabel=f"{y} in training")
        axes.set_title(row, fontsize="medium")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize="small")
    save_figure(figure, path, dpi=110)
    return True
