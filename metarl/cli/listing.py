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
from metarl.experiments.presets import PRESETS, Preset
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
    if what == "presets":
        _table(
            "presets", ("name", "tasks"), _by_text(row for agent in AGENTS for row in _names_of_presets(agent)), console
        )
        console.print("What differs from the defaults, and why: metarl list AGENT.")
    if what in AGENTS:
        _table("presets", ("tasks", "what differs from the defaults"), _presets(what), console)
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


def _variants(agent: str) -> dict[str, dict[str, Preset]]:
    """An agent's presets by tasks, for each variant; that without a name is taken where none is asked for."""
    found: dict[str, dict[str, Preset]] = {}
    for name, preset in PRESETS.items():
        owner, tasks, *variant = name.split(":")
        if owner == agent:
            found.setdefault("".join(variant), {})[tasks] = preset
    return found


def _names_of_presets(agent: str) -> list[tuple[str, str]]:
    """A row for each variant: its name, and the tasks that it is for."""
    return [
        (f"{agent}:TASKS{variant and f':{variant}'}", ", ".join(folded(list(presets))))
        for variant, presets in _variants(agent).items()
    ]


def _presets(agent: str) -> list[tuple[str, str]]:
    """A row for all tasks with the same settings of the agent; of a variant, with the option that asks for it.

    Budgets, which differ more often, stand by tasks within a row.
    """
    rows = []
    for variant, presets in _variants(agent).items():
        asked = variant and f"  (--preset {agent}:TASKS:{variant})"
        alike: dict[tuple[str, str], list[str]] = {}
        for tasks, preset in presets.items():
            alike.setdefault((json.dumps(preset.agent), preset.source), []).append(tasks)
        for (settings, source), names in alike.items():
            budgets = _by_text((name, json.dumps(presets[name].train)) for name in names)
            told = [budget if len(budgets) == 1 else f"{_folded(names)}: {budget}" for names, budget in budgets]
            text = [line for line in (settings, *told) if line != "{}"]
            rows.append((f"{_folded(', '.join(names))}{asked}", "\n".join([*text, f"({source})"])))
    return rows


def _folded(names: str) -> str:
    return ", ".join(folded(names.split(", ")))


def _by_text(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rows of a name and a text, one for each text, with its names joined."""
    names: dict[str, list[str]] = {}
    for name, text in rows:
        names.setdefault(text, []).append(name)
    return [(", ".join(found), text) for text, found in names.items()]
