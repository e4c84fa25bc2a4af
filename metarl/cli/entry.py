"""The command line: train, evaluate, plot, render, export, models, list, check, reproduce."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.markup import escape

from metarl.cli.evaluate import evaluate
from metarl.cli.export import export
from metarl.cli.fewshot import fewshot
from metarl.cli.listing import list_names
from metarl.cli.models import models
from metarl.cli.output import plain_warnings, standard_output
from metarl.cli.plot import plot
from metarl.cli.train import train
from metarl.distributed import Group, asked_for, join
from metarl.errors import ConfigError, MetarlError, told, unknown_name
from metarl.tasks.registry import load_distribution
from metarl.testing import check_tasks
from metarl.version import __version__

_USAGE = """usage: metarl COMMAND ...

  train [AGENT TASKS]    meta-train an agent; without names the main job (maml-trpo on cartpole-goal)
  train --config FILE    the same with agent, tasks and settings from a file (--print-config prints one)
  train --resume RUN     go on where a run stopped
  evaluate RUN           score a run's agent on held-out tasks
  plot RUN...            learning curves of runs, or of all runs in a folder
  render RUN             video of the agent before and after adaptation to one task
  export RUN FILE        the agent as a file that runs without metarl (torch.export or ONNX)
  models                 trained agents that come with metarl; each is a RUN called model:NAME
  list [WHAT]            agents and tasks; or presets, or those of one agent
  check MODULE:NAME      look for faults in a task distribution of your own
  reproduce TABLE        run a paper's table, ours beside the published numbers (--list shows all)
  fewshot COMMAND        few-shot learning: train, evaluate, compare, predict, list

metarl COMMAND --help tells more, metarl --version which one this is. AGENT and TASKS are names of `metarl list`, or
module:attribute for your own.

Run folders and checkpoints are data: nothing in them is executed. A module that only a run's config.json names is
imported, which runs its code, if you name it too (--tasks, --agent) or say --trust-tasks; one inside the run never."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    commands: dict[str, Callable[[list[str], Console], int]] = {
        "train": train,
        "evaluate": evaluate,
        "plot": plot,
        "render": _render,
        "export": export,
        "models": models,
        "list": list_names,
        "check": _check,
        "reproduce": _reproduce,
        "fewshot": fewshot,
    }
    words = list(sys.argv[1:] if arguments is None else arguments)
    group = Group()
    try:
        with standard_output(), plain_warnings():
            if not words or words[0] in ("-h", "--help"):
                print(_USAGE)
                return 0 if words else 2
            if words[0] == "--version":
                print(f"metarl {__version__}")
                return 0
            if words[0] not in commands:
                raise unknown_name("command", words[0], commands)
            if words[0] != "train" and words[:2] != ["fewshot", "train"]:
                _require_one_process(words[0])
                return commands[words[0]](words[1:], Console())
            with join() as group:
                return commands[words[0]](words[1:], Console(quiet=not group.is_first))
    except MetarlError as error:
        if group.is_echo(told(error)):
            return 2
        Console(stderr=True).print(f"[bold red]error:[/] {escape(told(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted at once; what the last checkpoint holds is safe.")
        return 130


def _require_one_process(command: str) -> None:
    if asked_for() > 1:
        raise ConfigError(
            f"WORLD_SIZE is {asked_for()}, but metarl {command} runs in one process: leave torchrun out. Only "
            "metarl train and metarl fewshot train share their tasks out over ranks."
        )


def _render(words: list[str], console: Console) -> int:
    # Its libraries are of no use to any other command.
    from metarl.cli.render import render

    return render(words, console)


def _reproduce(words: list[str], console: Console) -> int:
    # Benchmarks are of use to no other command.
    from metarl.cli.reproduce import reproduce

    return reproduce(words, console)


def _check(words: list[str], console: Console) -> int:
    @dataclass(frozen=True)
    class Options:
        """Look for faults in a task distribution: spaces, splits, resets, seeds, time limit."""

        tasks: tyro.conf.Positional[str]
        """An id, or module:attribute."""

    options = tyro.cli(Options, args=words, prog="metarl check")
    distribution = load_distribution(options.tasks)
    # Forty resets and more, of which each may take seconds.
    with console.status(f"{distribution.id}: drawing tasks") as status:
        num_distinct = check_tasks(
            distribution, on_reset=lambda resets: status.update(f"{distribution.id}: {resets} resets of environments")
        )
    console.print(f"[green]{distribution.id}: no fault found.[/] {distribution.spec}")
    console.print(
        f"Different tasks in 300 draws: {num_distinct['train']} to train on, {num_distinct['test']} to test on."
    )
    return 0
