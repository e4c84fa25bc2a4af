"""Scores of few-shot learners, as a table, as JSON and as a figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from metarl.distributed import current
from metarl.errors import ConfigError
from metarl.fewshot.evaluation import Evaluation, evaluate
from metarl.fewshot.learner import Learner
from metarl.fewshot.objective import score_name
from metarl.fewshot.setup import Setup
from metarl.fewshot.types import EpisodeConfig, Split
from metarl.plotting import steps_figure
from metarl.runs.files import shown, write_atomically
from metarl.runs.outer_loop import Progress
from metarl.statistics import Interval, number_text

EVALUATION_SEED = 2_000_003
"""Far from the seeds that anybody trains with; test tasks are drawn from it and nothing is ever tuned on it."""


def require_training_seeds(seeds: Iterable[int]) -> None:
    """Refuse to train on the tasks that are scored in the end.

    Raises:
        ConfigError: if one of the seeds is that of test tasks.
    """
    if EVALUATION_SEED in seeds:
        raise ConfigError(f"the seed {EVALUATION_SEED} is that of test tasks, which training would draw; give another.")


def evaluate_with_progress(
    setup: Setup,
    learner: Learner[Any],
    *,
    num_tasks: int,
    seed: int,
    episode: EpisodeConfig | None = None,
    split: Split = "test",
    num_adaptations: int | None = None,
) -> Evaluation:
    """Score a learner with a bar; see :func:`metarl.fewshot.evaluation.evaluate`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, transient=True, disable=not current().is_first) as bar:
        task = bar.add_task(f"{split} tasks", total=num_tasks)
        return evaluate(
            learner,
            setup.tasks,
            episode or setup.episode,
            num_tasks=num_tasks,
            seed=seed,
            split=split,
            num_adaptations=num_adaptations,
            listener=lambda done: bar.update(task, completed=done),
        )


def score_text(progress: Progress, name: str) -> str:
    """What stands behind the bar of training: the score after adaptation."""
    return next(f"{name} {number_text(x)}" for key, x in progress.metrics.items() if key.startswith(f"train/{name}_"))


def interval_cell(interval: Interval, kind: str) -> str:
    """Mean and half-width, in per cent for accuracies."""
    mean, low, high = interval
    if kind == "classification":
        return f"{100 * mean:.1f} ± {50 * (high - low):.1f}"
    return f"{number_text(mean)} ± {number_text((high - low) / 2)}"


def show_scores(
    setup: Setup, rows: Mapping[str, Evaluation], path: Path, details: Mapping[str, Any], console: Console
) -> None:
    """Print scores as a table, write them as ``PATH.json`` with a figure ``PATH.png``, and say where.

    Raises:
        ConfigError: if they cannot be written.
    """
    kind = next(iter(rows.values())).kind
    name = "Accuracy (%)" if kind == "classification" else "Mean squared error"
    columns = sorted({step for row in rows.values() for step in row.steps})
    num_tasks = len(next(iter(rows.values())).scores)
    table = Table(
        title=f"{name} on {num_tasks} {details.get('split', 'test')} tasks of {escape(setup.task_name)}, {setup.size}",
        caption="mean and 95 % interval over tasks, by steps of adaptation",
    )
    cells = {
        label: dict(zip(row.steps, (interval_cell(interval, kind) for interval in row.intervals), strict=True))
        for label, row in rows.items()
    }
    label_width = min(max(map(len, rows)), 24)
    cell_width = max(len(cell) for own in cells.values() for cell in own.values())
    # Of many steps some are left out where they do not fit; the figure and the file have all.
    room = max(2, (console.width - label_width - 4) // (cell_width + 3))
    chosen = sorted({round(place) for place in np.linspace(0, len(columns) - 1, min(room, len(columns)))})
    table.add_column("steps:", min_width=label_width, overflow="fold")
    for place in chosen:
        table.add_column(str(columns[place]), justify="right", no_wrap=True)
    for label, own in cells.items():
        table.add_row(escape(label), *(own.get(columns[place], "") for place in chosen))
    console.print(table)
    content = {
        "tasks": setup.task_name,
        "episode": setup.to_json()["episode"],
        "score": score_name(kind),
        **details,
        "rows": [
            {"label": label, "steps": row.steps, "intervals": row.intervals, "scores": row.scores.tolist()}
            for label, row in rows.items()
        ],
    }
    scores = path.with_suffix(".json")
    try:
        write_atomically(scores, (json.dumps(content, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"cannot write the scores {scores}: {error.strerror or error}.") from error
    figure = path.with_suffix(".png")
    title = f"{next(iter(rows))} on {setup.task_name}, {setup.size}"
    curves = {label: dict(zip(row.steps, row.intervals, strict=True)) for label, row in rows.items()}
    steps_figure(curves, figure, title, "steps of adaptation", score_name(kind))
    console.print(f"Figure: {escape(shown(figure))}", soft_wrap=True)
