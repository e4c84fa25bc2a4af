"""``metarl plot``: learning curves of runs and groups of runs, as a figure and as numbers."""

from __future__ import annotations

import dataclasses
import glob
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape

from metarl.config.train import FREE_ON_RESUME
from metarl.errors import ConfigError
from metarl.plotting import learning_figure
from metarl.runs.claims import is_run
from metarl.runs.curves import Axis, write_csv
from metarl.runs.files import shown
from metarl.runs.folder import RunFolder
from metarl.runs.published import is_published


@dataclass(frozen=True)
class PlotOptions:
    """Learning curves of runs in one figure, and their numbers as CSV beside it; seeds of one experiment are one line.

    Runs that differ by their seed alone are seeds of one experiment: the line is their interquartile mean (of fewer
    than four the mean) with its 95 % interval.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders, or folders of runs."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=GLOB: the runs that a pattern finds, or those in a folder, are one line, called NAME; once for each line."""
    metric: str | None = None
    """Draw this metric alone, e.g. test/return_1; default: training scores, and held-out ones after adaptation."""
    x: Axis = "steps"
    """What the curves lie over; steps are environment steps, hours leave evaluations out."""
    output: Path | None = None
    """The PNG; default: learning.png in the first folder. The CSV lies beside it."""


def plot(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    options = tyro.cli(PlotOptions, args=words, prog="metarl plot")
    if not options.runs and not options.label:
        raise ConfigError("plot needs at least one run folder: metarl plot RUN..., or --label NAME=GLOB.")
    groups = dict(_labelled(options.label))
    named = {run.path.resolve() for seeds in groups.values() for run in seeds}
    runs = [run for path in options.runs for run in RunFolder.find(path)]
    for label, seeds in by_experiment([run for run in runs if run.path.resolve() not in named]).items():
        if label in groups:
            raise ConfigError(
                f"--label {label} names a line as that of {seeds[0].path} is called; choose another name."
            )
        groups[label] = seeds
    for run in (run for seeds in groups.values() for run in seeds):
        if is_published(run.path):
            raise ConfigError(f"model:{run.path.name} is a published model, which has no metrics to plot.")
    figure = options.output or (options.runs[0] if options.runs else Path()) / "learning.png"
    numbers = figure.with_suffix(".csv")
    files = {label: [run.metrics for run in seeds] for label, seeds in groups.items()}
    write_csv(learning_figure(files, figure, metric=options.metric, axis=options.x), options.x, numbers)
    console.print(f"Figure: {escape(shown(figure))}, numbers: {escape(shown(numbers))}", soft_wrap=True)
    return 0


def _labelled(words: Sequence[str]) -> Iterator[tuple[str, list[RunFolder]]]:
    """The runs of each ``NAME=GLOB``.

    Raises:
        ConfigError: for a text of another form, a name that is there twice, a pattern that finds no run, a run with
            two names, or one seed of an experiment twice below a name.
    """
    names: dict[Path, str] = {}
    labels: set[str] = set()
    for word in words:
        label, _, pattern = word.partition("=")
        if not label or not pattern:
            raise ConfigError(f"--label takes NAME=GLOB, such as 'RL2=runs/rl2-bandit-*', got {word!r}.")
        if label in labels:
            raise ConfigError(f"--label {label} is there twice; one pattern may find more: {pattern.split('/')[0]}/*.")
        labels.add(label)
        # A folder of runs stands for them; what else a pattern finds, such as figures, is passed over.
        found = [Path(path) for path in sorted(glob.glob(pattern))]
        inside = [path for folder in found for path in ([folder] if is_run(folder) else sorted(folder.glob("*")))]
        runs = {path.resolve(): RunFolder(path) for path in inside if is_run(path)}
        if not runs:
            raise ConfigError(f"--label {word}: there is no run that {pattern!r} finds, from {Path.cwd()}.")
        for path in runs:
            if (other := names.setdefault(path, label)) != label:
                raise ConfigError(f"{shown(path)} is both {other} and {label}; a run has one label.")
        what = _alike(label, list(runs.values()))
        yield label if len(runs) == 1 else f"{label} ({len(runs)} {what})", list(runs.values())


def _alike(label: str, runs: Sequence[RunFolder]) -> str:
    """What the runs of one line are, seeds of each other or runs with several settings, which is warned of.

    Raises:
        ConfigError: for two runs of the same seed with the same settings, which would count twice, and for runs on
            several tasks.
    """
    seen: dict[tuple[str, Any], RunFolder] = {}
    first, _ = _settings(runs[0])
    different: set[str] = set()
    for run in runs:
        settings, seed = _settings(run)
        known = None not in (settings["agent"], settings["tasks"])
        other = seen.setdefault((_text(settings), seed), run)
        if known and other is not run:
            raise ConfigError(
                f"--label {label}: {shown(other.path)} and {shown(run.path)} have the same settings and seed: they "
                "would count as two seeds. Leave one of them out."
            )
        for name in ("tasks", "data"):
            if settings.get(name) != first.get(name):
                raise ConfigError(
                    f"--label {label}: {shown(runs[0].path)} is on {first.get(name)}, and {shown(run.path)} on "
                    f"{settings.get(name)}: their mean says nothing. Take a pattern that finds runs on one of them."
                )
        different |= {name for name in settings | first if settings.get(name) != first.get(name)}
    if not different:
        return "seeds"
    warnings.warn(
        f"--label {label}: its runs differ in {', '.join(sorted(different))}, so that the line is no mean over seeds "
        "alone.",
        stacklevel=2,
    )
    return "runs"


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
        alike = found.setdefault(_text(settings), [])
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
    if "data" in config:
        flat["data"] = config["data"]  # The folder of a few-shot learner's images.
    return {name: value for name, value in flat.items() if name not in ("seed", *FREE_ON_RESUME)}, flat.get("seed")


def _text(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings: an older metarl recorded 0 where a file said so, and 0.0 where a flag did."""
    return json.dumps(json.loads(json.dumps(settings), parse_int=float), sort_keys=True)


def _name(experiment: _Experiment, experiments: Sequence[_Experiment]) -> str:
    """Agent and tasks, and the settings in which others of the same agent and tasks differ."""
    mine = experiment.settings
    others = [
        each.settings for each in experiments if all(each.settings[key] == mine[key] for key in ("agent", "tasks"))
    ]
    different = [name for name in mine if any(other.get(name) != mine[name] for other in others)]
    told = "".join(f", {name} {mine[name]}" for name in different)
    return f"{mine['agent']} on {mine['tasks']}{told}"
