"""``metarl models``: trained agents that come with metarl, with their scores and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl.runs.published import PREFIX, Score, published_models
from metarl.statistics import Interval, interval_texts


@dataclass(frozen=True)
class ModelsOptions:
    """List the trained agents that come with metarl: scores on held-out tasks, and the commands that made them."""


def models(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    tyro.cli(ModelsOptions, args=words, prog="metarl models")
    found = published_models()
    header = ("model", "before adaptation", "after it")
    table = Table(*header, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for model in found:
        score = model.score
        first = _text(score, score.by_shot[0]) if len(score.by_shot) > 1 else ""
        table.add_row(*map(escape, (model.name, first, _text(score, score.last))))
    console.print(table)
    console.print(
        "\nReturn, or success (in %), with its 95 % interval over held-out tasks; before: in its first episode for a "
        "memory. For evaluation, in the place of a run:\n"
        f"  metarl evaluate {PREFIX}NAME      metarl.load({PREFIX + 'NAME'!r})",
        highlight=False,
    )
    for model in found:
        size, what = f"{model.num_bytes / 1000:.0f} kB", "goals" if model.score.official else "tasks"
        console.print(
            f"\n[bold]{escape(model.name)}[/]: {model.score.num_tasks:,} {what}, {size}, seed {model.training_seed}, "
            f"commit {model.commit[:12]}",
            highlight=False,
        )
        for command in (model.command, model.evaluate_command):
            console.print(f"  {escape(command)}", highlight=False, soft_wrap=True)
    return 0


def _text(score: Score, interval: Interval) -> str:
    """A mean with its interval."""
    mean, low, high = interval
    factor = 100.0 if score.official else 1.0
    texts = interval_texts((factor * mean, factor * low, factor * high))
    return "{} [{}..{}]".format(*texts) + " %" * score.official
