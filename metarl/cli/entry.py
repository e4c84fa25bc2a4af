"""The command line: train, evaluate, plot, render, list, check."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl.agents import AGENTS
from metarl.cli.evaluate import evaluate
from metarl.cli.output import standard_output
from metarl.cli.train import train
from metarl.errors import ConfigError, MetarlError, folded, told, unknown_name
from metarl.experiments.presets import PRESETS
from metarl.plotting import learning_figure
from metarl.runs.folder import RunFolder
from metarl.tasks.registry import load_distribution, registered
from metarl.testing import check_tasks

_USAGE = """usage: metarl COMMAND ...

  train [AGENT TASKS]    meta-train an agent; without names the main job (maml-trpo on cartpole-goal)
  train --config FILE    the same with agent, tasks and settings from a file (--print-config prints one)
  train --resume RUN     go on where a run stopped
  evaluate RUN           score a run's agent on held-out tasks
  plot RUN...            learning curves of runs, or of all runs in a folder
  render RUN             video of the agent before and after adaptation to one task
  list [WHAT]            agents and tasks; or presets, or those of one agent
  check MODULE:NAME      look for faults in a task distribution of your own

metarl COMMAND --help tells more, metarl --version which one this is. AGENT and TASKS are names of `metarl list`, or
module:attribute for your own.

Run folders and checkpoints are data: nothing in them is executed. A module that only a run's config.json names is
imported, which runs its code, if you name it too (--tasks, --agent) or say --trust-tasks; one inside the run never."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    commands: dict[str, Callable[[list[str], Console], int]] = {
        "train": train,
        "evaluate": evaluate,
        "plot": _plot,
        "render": _render,
        "list": _list,
        "check": _check,
    }
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with standard_output():
            if not words or words[0] in ("-h", "--help"):
                print(_USAGE)
                return 0 if words else 2
            if words[0] == "--version":
                print(f"metarl {version('metarl')}")
                return 0
            if words[0] not in commands:
                raise unknown_name("command", words[0], commands)
            return commands[words[0]](words[1:], Console())
    except MetarlError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(told(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted at once; what the last checkpoint holds is safe.")
        return 130


@dataclass(frozen=True)
class PlotOptions:
    """Learning curves of one or more runs in one figure."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of runs."""
    output: Path | None = None
    """The PNG; default: learning.png in the first folder."""


def _plot(words: list[str], console: Console) -> int:
    options = tyro.cli(PlotOptions, args=words, prog="metarl plot")
    if not options.runs:
        raise ConfigError("plot needs at least one run folder: metarl plot RUN...")
    runs = [run for path in options.runs for run in RunFolder.find(path)]
    output = options.output or options.runs[0] / "learning.png"
    learning_figure({run.path.name: run.metrics for run in runs}, output)
    console.print(f"Figure: {escape(str(output))}", soft_wrap=True)
    return 0


def _render(words: list[str], console: Console) -> int:
    # Its libraries are of no use to any other command.
    from metarl.cli.render import render

    return render(words, console)


def _list(words: list[str], console: Console) -> int:
    @dataclass(frozen=True)
    class Options:
        """List agents and tasks, presets, or the presets of one agent."""

        what: Annotated[str, tyro.conf.Positional] = "agents and tasks"
        """agents, tasks, presets, or the name of an agent."""

    what = tyro.cli(Options, args=words, prog="metarl list").what
    choices = ["agents", "tasks", "presets", *AGENTS]
    if what not in choices and what != Options.what:
        raise unknown_name("kind of list", what, choices)
    chosen = [what] if what in AGENTS else list(AGENTS)
    tables = {
        "agents": (("agent", "choose it when"), [(name, AGENTS[name].when) for name in chosen]),
        "tasks": (
            ("tasks", "description"),
            _by_text((name, d.description) for name, d in sorted(registered().items())),
        ),
        "presets": (
            ("agent: tasks", "what differs from the defaults"),
            [
                (f"{agent}: {', '.join(folded(names.split(', ')))}", text)
                for agent in chosen
                for names, text in _by_text(
                    (name.split(":")[1], f"{json.dumps({**p.train, **p.agent})}  ({p.source})")
                    for name, p in PRESETS.items()
                    if name.split(":")[0] == agent
                )
            ],
        ),
    }
    shown = ("agents", "presets") if what in AGENTS else ("agents", "tasks") if what == Options.what else (what,)
    for name in shown:
        header, rows = tables[name]
        table = Table(*header, title=name)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    if what == Options.what:
        console.print("Settings that differ from the defaults: metarl list presets, or metarl list AGENT.")
    return 0


def _by_text(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rows of a name and a text, one for each text, with its names joined."""
    names: dict[str, list[str]] = {}
    for name, text in rows:
        names.setdefault(text, []).append(name)
    return [(", ".join(found), text) for text, found in names.items()]


def _check(words: list[str], console: Console) -> int:
    @dataclass(frozen=True)
    class Options:
        """Look for faults in a task distribution: spaces, splits, resets, seeds, time limit."""

        tasks: tyro.conf.Positional[str]
        """An id, or module:attribute."""

    options = tyro.cli(Options, args=words, prog="metarl check")
    distribution = load_distribution(options.tasks)
    check_tasks(distribution)
    console.print(f"[green]{distribution.id}: no fault found.[/] {distribution.spec}")
    return 0
