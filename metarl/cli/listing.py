"""``metarl list``: what there is, on one screen; and agents, tasks and presets in full."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl.agents import AGENTS
from metarl.errors import ConfigError, folded, unknown_name
from metarl.experiments.presets import PRESETS
from metarl.tasks.registry import registered

_OVERVIEW = "agents and families of tasks"


@dataclass(frozen=True)
class ListOptions:
    """List agents and families of tasks; or tasks, presets, or the presets of one agent."""

    what: Annotated[str, tyro.conf.Positional] = _OVERVIEW
    """agents, tasks, presets, or the name of an agent."""
    family: Annotated[str | None, tyro.conf.Positional] = None
    """With tasks: those of one family alone, e.g. ml1."""


def list_names(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    options = tyro.cli(ListOptions, args=words, prog="metarl list")
    what, choices = options.what, ["agents", "tasks", "presets", *AGENTS]
    if what not in choices and what != _OVERVIEW:
        raise unknown_name("kind of list", what, choices)
    if options.family is not None and what != "tasks":
        raise ConfigError(f"a family belongs to tasks: metarl list tasks {options.family}; got list {what}.")
    if what == _OVERVIEW:
        _overview(console)
    if what == "agents" or what in AGENTS:
        _table("agents", ("agent", "choose it when"), _agents([what] if what in AGENTS else AGENTS), console)
    if what == "tasks":
        _table("tasks", ("tasks", "description"), _tasks(options.family), console)
    if what == "presets" or what in AGENTS:
        rows = _presets([what] if what in AGENTS else AGENTS)
        _table("presets", ("agent: tasks", "what differs from the defaults"), rows, console)
    return 0


def _overview(console: Console) -> None:
    """Everything in short, on 24 lines of 80 characters."""
    table = Table("agent", "choose it when", box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for row in _agents(AGENTS):
        table.add_row(*map(escape, row))
    console.print(table)
    names = [
        family if len(members) == 1 else f"{family}{'/' if family not in members else ''}* ({len(members)})"
        for family, members in _families().items()
    ]
    console.print("\n[bold]tasks[/] (one by one: metarl list tasks; those of a family: metarl list tasks ml1)")
    console.print(escape(", ".join(names)), highlight=False)
    console.print("\nSettings unlike the defaults: metarl list presets, or metarl list AGENT.")


def _table(title: str, header: tuple[str, str], rows: Iterable[tuple[str, str]], console: Console) -> None:
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _agents(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, AGENTS[name].when) for name in names]


def _families() -> dict[str, list[str]]:
    """Names of tasks by what they have in common: ``a`` for ``a`` and ``a-b``, and for ``a/b``."""
    families: dict[str, list[str]] = {}
    for name in sorted(registered()):
        above = (family for family in families if name.startswith((f"{family}-", f"{family}/")))
        families.setdefault(next(above, name.split("/")[0]), []).append(name)
    return families


def _tasks(family: str | None) -> list[tuple[str, str]]:
    """Names and descriptions, of one family or all."""
    names: Sequence[str] = sorted(registered())
    if family is not None:
        families = _families()
        if family not in families:
            raise unknown_name("family of tasks", family, families)
        names = families[family]
    return _by_text((name, registered()[name].description) for name in names)


def _presets(agents: Iterable[str]) -> list[tuple[str, str]]:
    """One row for each text; of a variant, which must be asked for, with the option that does."""
    found = []
    for agent in agents:
        own = {tuple(name.split(":")[1:]): preset for name, preset in PRESETS.items() if name.split(":")[0] == agent}
        for variant in dict.fromkeys(key[1:] for key in own):
            asked = "".join(f"  (--preset {agent}:TASKS:{name})" for name in variant)
            rows = _by_text(
                (key[0], f"{json.dumps({**preset.train, **preset.agent})}  ({preset.source})")
                for key, preset in own.items()
                if key[1:] == variant
            )
            found += [(f"{agent}: {', '.join(folded(names.split(', ')))}{asked}", text) for names, text in rows]
    return found


def _by_text(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rows of a name and a text, one for each text, with its names joined."""
    names: dict[str, list[str]] = {}
    for name, text in rows:
        names.setdefault(text, []).append(name)
    return [(", ".join(found), text) for text, found in names.items()]
