"""The progress bar of training."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from metarl.runs.outer_loop import Progress


def with_progress(
    train: Callable[[Callable[[Progress], None]], bool],
    num_iterations: int,
    label: str,
    describe: Callable[[Progress], str],
    console: Console,
) -> bool:
    """Train with a bar; returns what ``train`` returns, whether all iterations were done.

    Args:
        train: is given a listener to call after every iteration.
        num_iterations: in all.
        label: what stands before the bar.
        describe: what stands behind it after an iteration.
        console: where it is drawn.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Bars(*columns, console=console) as bars:
        task = bars.add_task(label, total=num_iterations, now="")
        return train(lambda progress: bars.update(task, completed=progress.iteration, now=describe(progress)))
