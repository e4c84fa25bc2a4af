"""Pages of few-shot benchmarks: a table beside published numbers, figures, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metarl.benchmarks.fewshot.cells import Cell
from metarl.benchmarks.fewshot.published import OMNIGLOT, SINUSOID
from metarl.benchmarks.report import notes, provenance
from metarl.errors import ConfigError
from metarl.plotting import save_figure
from metarl.runs.files import write_atomically
from metarl.statistics import Interval, crossed_interval, number_text

Scores = Mapping[Cell, Mapping[str, Any]]


def write_page(scores: Scores, folder: Path, title: str, commands: Sequence[str]) -> str:
    """Write ``README.md``, ``scores.png`` and ``learning.png`` into ``folder``; returns the page's text.

    Args:
        scores: of all cells of one family.
        folder: the folder of the results.
        title: the page's title.
        commands: that made the scores.
    """
    kind = next(iter(scores.values()))["kind"]
    table = _by_steps(scores, folder) if kind == "regression" else _by_size(scores, folder)
    _draw_learning(scores, folder / "learning.png")
    num_tasks = len(next(iter(scores.values()))["scores"])
    text = "\n".join(
        [
            f"# {title}",
            "",
            "Commands; the test tasks of a size are the same for all:",
            "",
            *(f"    {command}" for command in commands),
            "",
            f"Mean over {num_tasks:,} test tasks and training seeds with a 95 % interval, in which both are sources of "
            "error; with one seed the interval is over tasks alone. Published numbers stand in brackets.",
            "",
            *table,
            "",
            "![scores](scores.png)",
            "",
            "![learning](learning.png)",
            "",
            *(["![fits](fits.png)", ""] if (folder / "fits.png").exists() else []),
            *_costs(scores),
            "",
            *notes(folder),
            provenance(scores.values()),
            "",
        ]
    )
    write_atomically(folder / "README.md", text.encode())
    return text


def _chosen(scores: Scores, learner: str, size: str) -> list[Mapping[str, Any]]:
    return [score for cell, score in scores.items() if (cell.learner, cell.size) == (learner, size)]


def _interval(chosen: Sequence[Mapping[str, Any]], column: int) -> Interval:
    """Over seeds and tasks, of one of the scored steps."""
    if len({tuple(score["steps"]) for score in chosen}) > 1:
        raise ConfigError("scores of one learner were taken after other steps; remove those of other settings.")
    return crossed_interval([np.array([score["scores"] for score in chosen])[:, :, column]])


def _label(learner: str) -> str:
    """Short for one that is named by its module."""
    return learner.rpartition(":")[2]


def _learners(scores: Scores) -> list[str]:
    return list(dict.fromkeys(cell.learner for cell in scores))


def _by_size(scores: Scores, folder: Path) -> list[str]:
    """Learners by sizes of tasks: accuracy after all steps, and before them in the figure."""
    sizes = list(dict.fromkeys(cell.size for cell in sorted(scores, key=lambda cell: (cell.ways, cell.test_shots))))
    lines = [f"| learner | {' | '.join(sizes)} | seeds |", "|---|" + "---|" * (len(sizes) + 1)]
    intervals: dict[str, dict[str, Interval]] = {size: {} for size in sizes}
    omniglot = next(iter(scores)).tasks.startswith("omniglot")
    for learner in _learners(scores):
        cells = []
        for size in sizes:
            chosen = _chosen(scores, learner, size)
            published = OMNIGLOT.get(learner, {}).get(size) if omniglot else None
            if not chosen:
                cells.append(f"not run ({published})" if published else "")
                continue
            mean, low, high = _interval(chosen, -1)
            intervals[size][learner] = (100 * mean, 100 * low, 100 * high)
            cells.append(f"{100 * mean:.1f} ± {50 * (high - low):.1f}" + (f" ({published})" if published else ""))
        seeds = sorted({cell.seed for cell in scores if cell.learner == learner})
        lines.append(f"| {_label(learner)} | {' | '.join(cells)} | {', '.join(map(str, seeds))} |")
    figure = Figure(figsize=(3.4 * len(sizes) + 1.6, 1.4 + 0.32 * len(_learners(scores))), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    names = _learners(scores)
    for size, axes in zip(sizes, panels, strict=True):
        for learner, (mean, low, high) in intervals[size].items():
            axes.barh(names.index(learner), mean, xerr=[[mean - low], [high - mean]], color="tab:blue", alpha=0.7)
        axes.set_yticks(range(len(names)), map(_label, names))
        axes.axvline(100 / int(size.split("way")[0]), color="0.3", linestyle=":")
        axes.set(title=size, xlabel="accuracy (%); dots: chance")
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    save_figure(figure, folder / "scores.png", dpi=130)
    return lines


def _by_steps(scores: Scores, folder: Path) -> list[str]:
    """Learners by steps of adaptation: mean squared error."""
    steps = sorted({step for score in scores.values() for step in score["steps"]})
    lines = [
        f"| learner | test | {' | '.join(map(str, steps))} | after all, by seed |",
        "|---|---|" + "---|" * (len(steps) + 1),
    ]
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for learner, size in dict.fromkeys((cell.learner, cell.size) for cell in scores):
        chosen = _chosen(scores, learner, size)
        curve = {step: _interval(chosen, column) for column, step in enumerate(chosen[0]["steps"])}
        published = SINUSOID.get(learner, {})
        cells = []
        for step in steps:
            if step not in curve:
                cells.append("")
                continue
            mean, low, high = curve[step]
            paper = f" ({published[step]:.2f})" if step in published else ""
            cells.append(f"{number_text(mean)} ± {number_text((high - low) / 2)}{paper}")
        by_seed = ", ".join(number_text(float(np.mean(score["scores"], axis=0)[-1])) for score in chosen)
        lines.append(f"| {_label(learner)} | {size.split('-')[1]} | {' | '.join(cells)} | {by_seed} |")
        mean, low, high = np.array([*curve.values()]).T
        axes.errorbar(
            [*curve], mean, [mean - low, high - mean], marker="o", capsize=3, label=f"{_label(learner)}, {size}"
        )
    axes.set(xlabel="gradient steps", ylabel="mean squared error on test tasks", yscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, folder / "scores.png", dpi=130)
    return lines


def _draw_learning(scores: Scores, path: Path) -> None:
    """Scores in training over iterations, one line for each learner and size, means over seeds."""
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    for learner, size in dict.fromkeys((cell.learner, cell.size) for cell in scores):
        curves = [score["curve"] for score in _chosen(scores, learner, size)]
        shortest = min(len(curve["score"]) for curve in curves)
        mean = np.mean([curve["score"][:shortest] for curve in curves], axis=0)
        axes.plot(curves[0]["iteration"][:shortest], mean, label=f"{_label(learner)}, {size}")
    axes.set(xlabel="iterations", ylabel="score on training tasks", xscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    save_figure(figure, path, dpi=130)


def _costs(scores: Scores) -> list[str]:
    lines = ["| learner | test tasks | iterations | tasks an iteration | minutes a seed |", "|---|---|---|---|---|"]
    for learner, size in dict.fromkeys((cell.learner, cell.size) for cell in scores):
        chosen = _chosen(scores, learner, size)
        minutes = np.mean([score["seconds"] for score in chosen]) / 60
        batch = chosen[0]["config"]["train"]["meta_batch_size"]
        lines.append(
            f"| {_label(learner)} | {size} | {chosen[0]['iterations']:,} | {batch} | {number_text(float(minutes))} |"
        )
    return lines
