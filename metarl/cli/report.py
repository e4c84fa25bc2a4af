"""Scores on held-out tasks: of an agent and its references, as a table, as JSON and as a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl.agent import Agent
from metarl.agents import RandomConfig
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import Evaluation, evaluate
from metarl.experiments import Experiment
from metarl.plotting import adaptation_figure
from metarl.runs.files import shown, write_atomically
from metarl.statistics import Interval, interval_texts, number_text, share_interval
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task

EVALUATION_SEED = 2_000_003
"""Far from the seeds that anybody trains with: held-out tasks are drawn from it and nothing is ever tuned on it."""


@dataclass(frozen=True)
class Row:
    """One line of the final table.

    Attributes:
        label: the agent.
        evaluation: its scores.
    """

    label: str
    evaluation: Evaluation

    @property
    def intervals(self) -> list[Interval]:
        """Mean return and its 95 % interval at every shot."""
        return [self.evaluation.interval(shot) for shot in range(self.evaluation.returns.shape[1])]

    @property
    def success_intervals(self) -> list[Interval]:
        """Share of episodes with success and its 95 % interval at every shot; empty where none was ever reported."""
        success = self.evaluation.success
        return [] if success is None else [share_interval(column) for column in success.T]


def evaluation_rows(
    experiment: Experiment,
    agent: Agent[Any],
    distribution: TaskDistribution,
    *,
    num_tasks: int,
    tasks: Sequence[Task] | None = None,
    seed: int,
    num_adaptations: int | None = None,
    rollouts_per_task: int | None = None,
    pretrained: Experiment | None = None,
) -> list[Row]:
    """Evaluate ``agent`` and its references on the same held-out tasks.

    Args:
        experiment: the agent's experiment.
        agent: trained.
        distribution: the tasks.
        num_tasks: held-out tasks.
        tasks: chosen ones in their place.
        seed: seed for the evaluation; best another one than any training's.
        num_adaptations: default: what each agent asks for.
        rollouts_per_task: episodes per task and shot, for all of them; default: as ``agent`` has in training.
        pretrained: the experiment of the policy that was trained over all tasks, if any.
    """

    def score(label: str, who: Agent[Any], adaptations: int | None = num_adaptations) -> Row:
        return Row(
            label,
            evaluate(
                who,
                distribution,
                num_tasks=num_tasks if tasks is None else None,
                tasks=tasks,
                seed=seed,
                num_adaptations=adaptations,
                rollouts_per_task=agent.rollouts_per_task if rollouts_per_task is None else rollouts_per_task,
            ),
        )

    rows = [score(experiment.name, agent)]
    if pretrained is not None:
        single = pretrained.load()[0]
        rows.append(score("single policy, not adapted", single, 0))
        rows.append(score("single policy, fine-tuned", single))
    if experiment.name != "random":
        rows.append(score(f"{experiment.name}, untrained", experiment.build()))
        rows.append(score("random policy", RandomConfig().build(distribution.spec, agent.device, seed), 0))
    return rows


def write_adaptation(
    rows: Sequence[Row],
    distribution: TaskDistribution,
    path: Path,
    xlabel: str,
    details: dict[str, Any],
    which: str = "held-out",
) -> Path:
    """Write scores as ``PATH.json`` and the adaptation curve as ``PATH.png``; returns the figure's path.

    Raises:
        ConfigError: if they cannot be written.
    """
    content = {
        "tasks": distribution.id,
        **details,
        "rows": [
            {
                "label": row.label,
                # JSON has no NaN, which the ends of one task's interval are.
                "intervals": [[None if math.isnan(end) else end for end in interval] for interval in row.intervals],
                "returns": row.evaluation.returns.tolist(),
                "success": row.evaluation.mean_success,
                "episodes_per_shot": row.evaluation.episodes_per_shot,
                "num_env_steps": row.evaluation.num_env_steps,
                "invalid_episodes": row.evaluation.num_invalid,
                "distinct_tasks": row.evaluation.num_distinct,
            }
            for row in rows
        ],
    }
    scores = path.with_suffix(".json")
    try:
        write_atomically(scores, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"cannot write the scores {scores}: {error.strerror or error}.") from error
    figure = path.with_suffix(".png")
    title = f"{rows[0].label} on {which} {distribution.id}"
    adaptation_figure({row.label: row.intervals for row in rows}, figure, title, xlabel)
    return figure


def show_adaptation(
    experiment: Experiment,
    distribution: TaskDistribution,
    rows: Sequence[Row],
    path: Path,
    details: dict[str, Any],
    console: Console,
    which: str = "held-out",
) -> None:
    """Print scores as a table, write them with :func:`write_adaptation`, and say where.

    Args:
        experiment: the experiment of the first row's agent, which says what lies between two shots.
        rows: scores on the same held-out tasks.
        distribution: the tasks.
        path: where they are written, without suffix.
        details: what else the JSON tells.
        console: where the table is printed.
        which: what tasks these are.

    Raises:
        ConfigError: if they cannot be written.
    """
    by_episode = experiment.agent_config.adapts_by == "episode"
    num_tasks = len(rows[0].evaluation.returns)
    one = num_tasks == 1
    distinct = rows[0].evaluation.num_distinct
    repeated = "" if distinct == num_tasks else f" ({distinct:,} distinct)"
    title = f"on {num_tasks:,} {which} task{'' if one else 's'}{repeated} of {distribution.id}"
    header = "in episode:" if by_episode else "after gradient steps:"
    first = 1 if by_episode else 0
    returns = [(row.label, [_cell(interval, one) for interval in row.intervals]) for row in rows]
    caption = "mean over episodes; one task has no interval over tasks" if one else "mean and 95 % interval over tasks"
    for table in _tables(f"Return {title}", caption, header, first, returns, console.width):
        console.print(table)
    success = [
        (row.label, [_cell((100 * mean, 100 * low, 100 * high), one) for mean, low, high in row.success_intervals])
        for row in rows
        if row.success_intervals
    ]
    if success:
        for table in _tables(f"Success in % {title}", caption, header, first, success, console.width):
            console.print(table)
    xlabel = "episodes of the trial before" if by_episode else "gradient steps"
    figure = write_adaptation(rows, distribution, path, xlabel, details, which)
    cost = sum(row.evaluation.num_env_steps for row in rows)
    console.print(f"Figure: {escape(shown(figure))}   (this table cost {cost:,} environment steps)", soft_wrap=True)
    warn_of_invalid(sum(row.evaluation.num_invalid for row in rows), "this table", console)


def _cell(interval: Interval, alone: bool) -> str:
    """A mean above its interval, or ``alone``."""
    if alone:
        return number_text(interval[0])
    mean, low, high = interval_texts(interval)
    # Without spaces four shots fit into 80 characters.
    return f"{mean}\n{low}..{high}"


_LABEL = 14
"""Characters that the column of labels keeps, in which longer ones break at spaces."""


def _tables(
    title: str, caption: str, header: str, first: int, rows: Sequence[tuple[str, Sequence[str]]], width: int
) -> Iterator[Table]:
    """Rows of cells, one for each shot, in as many tables below each other as keep every line of a cell whole.

    Args:
        title: above the first table.
        caption: below the last one.
        header: what the columns count.
        first: number of the first shot.
        rows: label and cells; some rows have fewer.
        width: characters in a line.
    """
    most = max(len(cells) for _, cells in rows)
    lines = [line for _, cells in rows for cell in cells for line in cell.split("\n")]
    # A column takes its padding and a border besides.
    each = max(map(len, lines)) + 3
    fitting = max(1, (width - _LABEL - 4) // each)
    number = -(-most // fitting)
    size = -(-most // number)
    for start in range(0, most, size):
        table = Table(title=title if start == 0 else None, caption=caption if start + size >= most else None)
        table.add_column(header, min_width=_LABEL)
        for shot in range(start, min(start + size, most)):
            table.add_column(str(first + shot), justify="right", no_wrap=True)
        for label, cells in rows:
            if cells[start : start + size]:
                table.add_row(label, *cells[start : start + size])
        yield table


def warn_of_invalid(count: int, what: str, console: Console) -> None:
    """Tell of episodes whose simulation diverged, if there were any."""
    if count:
        console.print(
            f"[yellow]warning:[/] in {count} episode(s) of {what} the simulation diverged; they were cut off there, "
            "and count as no success.",
            soft_wrap=True,
        )
