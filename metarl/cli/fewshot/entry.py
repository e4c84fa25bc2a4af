"""The commands below ``metarl fewshot``."""

from __future__ import annotations

from collections.abc import Callable

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl.cli.fewshot.compare import compare
from metarl.cli.fewshot.evaluate import evaluate
from metarl.cli.fewshot.predict import predict
from metarl.cli.fewshot.train import train
from metarl.errors import unknown_name
from metarl.fewshot.learners import LEARNERS
from metarl.fewshot.tasks.registry import DESCRIPTIONS

_USAGE = """usage: metarl fewshot COMMAND ...

  train LEARNER TASKS        meta-train a learner; --ways 5 --shots 1 say how large a task is
  train --resume RUN         go on where a run stopped
  evaluate RUN               score a run's learner on test tasks
  compare TASKS              train and score all learners: one table, one figure
  predict RUN SUPPORT IMAGE... name the class of images, from a folder of class folders
  list                       learners and tasks

metarl fewshot COMMAND --help tells more. LEARNER and TASKS are names of `metarl fewshot list`, or module:attribute for
your own."""


def fewshot(words: list[str], console: Console) -> int:
    """Run the command with these words after ``fewshot``; returns the exit status."""
    commands: dict[str, Callable[[list[str], Console], int]] = {
        "train": train,
        "evaluate": evaluate,
        "compare": compare,
        "predict": predict,
        "list": _list,
    }
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if words else 2
    if words[0] not in commands:
        raise unknown_name("few-shot command", words[0], commands)
    return commands[words[0]](words[1:], console)


def _list(words: list[str], console: Console) -> int:
    def options() -> None:
        """List few-shot learners and tasks."""

    tyro.cli(options, args=words, prog="metarl fewshot list")
    for title, header, rows in (
        ("learners", "choose it when", [(name, kind.when) for name, kind in LEARNERS.items()]),
        ("tasks", "description", list(DESCRIPTIONS.items())),
    ):
        table = Table(title.removesuffix("s"), header, title=title)
        for name, text in rows:
            table.add_row(escape(name), escape(text))
        console.print(table)
    return 0
