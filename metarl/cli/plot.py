"""``metarl plot``: learning curves of runs, in which runs that differ by their seed alone are one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape

from metarl.config.train import FREE_ON_RESUME
from metarl.errors import ConfigError
from metarl.plotting import learning_figure
from metarl.runs.files import shown
from metarl.runs.folder import RunFolder


@dataclass(frozen=True)
class PlotOptions:
    """Learning curves of one or more runs in one figure; seeds of one experiment become one line."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of runs."""
    output: Path | None = None
    """The PNG; default: learning.png in the first folder."""


def plot(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    options = tyro.cli(PlotOptions, args=words, prog="metarl plot")
    if not options.runs:
        raise ConfigError("plot needs at least one run folder: metarl plot RUN...")
    runs = [run for path in options.runs for run in RunFolder.find(path)]
    output = options.output or options.runs[0] / "learning.png"
    learning_figure({label: [run.metrics for run in seeds] for label, seeds in by_experiment(runs).items()}, output)
    console.print(f"Figure: {escape(shown(output))}", soft_wrap=True)
    return 0


@dataclass
class _Experiment:
    """Runs that differ by their seed alone.

    Attributes:
        settings: what they share, flat.
        by_seed: the runs.
    """

    settings: Mapping[str, Any]
    by_seed: dict[Any, RunFolder] = dataclasses.field(default_factory=dict)


def by_experiment(runs: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """Runs by the label that they are drawn under, those that differ by their seed alone under one.

    A run that shares its experiment with no other is called as its folder is. Several are called after agent and tasks,
    and after the settings that tell them from others of these.

    Raises:
        CheckpointError: for a config.json that cannot be read.
    """
    found: dict[str, list[_Experiment]] = {}
    for run in {run.path.resolve(): run for run in runs}.values():
        settings, seed = _settings(run)
        # A second run of the same seed, or one whose agent or tasks nobody can name, is an experiment of its own.
        alike = found.setdefault(json.dumps(settings, sort_keys=True), [])
        known = None not in (settings["agent"], settings["tasks"])
        free = next((each for each in alike if known and seed not in each.by_seed), None)
        if free is None:
            alike.append(free := _Experiment(settings))
        free.by_seed[seed] = run
    experiments = [each for alike in found.values() for each in alike]
    labels: dict[str, list[RunFolder]] = {}
    for each in experiments:
        seeds = list(each.by_seed.values())
        label = seeds[0].path.name if len(seeds) == 1 else f"{_name(each, experiments)} ({len(seeds)} seeds)"
        if label in labels:
            label = str(seeds[0].path)
        labels[label] = seeds
    return labels


def _settings(run: RunFolder) -> tuple[dict[str, Any], Any]:
    """What decides what a run learns, flat, without its seed; and the seed."""
    config = run.read_config()
    flat: dict[str, Any] = {}
    for section in config.values():
        flat |= section if isinstance(section, dict) else {}
    flat |= {"agent": config.get("agent", config.get("learner")), "tasks": config.get("tasks")}
    return {name: value for name, value in flat.items() if name not in ("seed", *FREE_ON_RESUME)}, flat.get("seed")


def _name(experiment: _Experiment, experiments: Sequence[_Experiment]) -> str:
    """Agent and tasks, and the settings in which others of the same agent and tasks differ."""
    mine = experiment.settings
    others = [
        each.settings for each in experiments if all(each.settings[key] == mine[key] for key in ("agent", "tasks"))
    ]
    different = [name for name in mine if any(other.get(name) != mine[name] for other in others)]
    told = "".join(f", {name} {mine[name]}" for name in different)
    return f"{mine['agent']} on {mine['tasks']}{told}"
