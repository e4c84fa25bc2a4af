"""What the Meta-World benchmarks share: their options, and cells that are trained first and scored afterwards."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from metarl.agent import AgentConfig
from metarl.benchmarks.cells import EVALUATION_SEED, Cell, console, describe, open_experiment
from metarl.benchmarks.metaworld.references import REFERENCES, reference_scores
from metarl.benchmarks.metaworld.report import Split, write_report
from metarl.envs.metaworld.distributions import meta_world
from metarl.errors import ConfigError, told_errors
from metarl.experiments.official import evaluate_experiment
from metarl.experiments.presets import settings
from metarl.runs.files import write_atomically
from metarl.tasks.registry import load_distribution
from metarl.trainer import train

Settings = TypeVar("Settings", bound=AgentConfig)

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


@dataclass(frozen=True)
class Options(Generic[Settings]):
    """Train one agent with several seeds, then score it by the official protocol."""

    settings: Annotated[Settings, tyro.conf.arg(name="agent")]
    """Settings of the agent; default: those of its preset."""
    agent: str = "rl2"
    """Agent to train."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of training."""
    steps: int | None = None
    """Environment steps of training, adaptation included; default: the preset's budget, the official one."""
    meta_batch_size: int | None = None
    """Tasks in one meta-update; default: the preset's."""
    variant: str = ""
    """Name for settings other than the preset's; part of the names of scores and run folders."""
    goals: int | None = None
    """Goals of each task to score on; default: all, which alone is the official protocol."""
    train_only: bool = False
    """Stop after training; the same command without it goes on with the scores."""
    num_workers: int | None = None
    """Processes that step the simulations; default: one for each core that this process may use."""
    results: Path = Path("benchmarks/results")
    """Scores, table and figure go to a folder in here."""
    runs: Path = Path("runs/benchmark-metaworld")
    """Where the run folders go."""


def parse(words: Sequence[str], tasks: str, prog: str) -> tuple[Options[Any], list[Cell]]:
    """Options and cells of a command.

    Args:
        words: of the command.
        tasks: id of the distribution.
        prog: name of the command.

    Raises:
        ConfigError: for settings that cannot work, or others than the preset's without a variant's name.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--agent", default="rl2")
    agent = first.parse_known_args(list(words))[0].agent
    train_config, preset = settings(agent, tasks)
    generic: Any = Options  # The agent's settings are known only now, which no type checker can follow.
    options = tyro.cli(generic[type(preset)], args=list(words), prog=prog, default=Options(preset, agent))
    changed = {
        field.name: getattr(options.settings, field.name)
        for field in dataclasses.fields(preset)
        if getattr(options.settings, field.name) != getattr(preset, field.name)
    }
    train_changes: dict[str, Any] = {}
    if options.meta_batch_size is not None:
        train_changes["meta_batch_size"] = options.meta_batch_size
    if options.steps is not None:
        train_config = dataclasses.replace(train_config, **train_changes)
        train_changes["num_iterations"] = _iterations(options.steps, tasks, train_config.meta_batch_size, options)
    if (changed or "meta_batch_size" in train_changes) and not options.variant:
        named = ", ".join([*changed, *(["meta_batch_size"] if "meta_batch_size" in train_changes else [])])
        raise ConfigError(f"these settings differ from the preset's: {named}. Give them a name with --variant NAME.")
    cells = [Cell(agent, tasks, seed, train_changes, changed, options.variant) for seed in options.seeds]
    return options, cells


def _iterations(steps: int, tasks: str, meta_batch_size: int, options: Options[Any]) -> int:
    """Meta-updates for which ``steps`` suffice."""
    spec = load_distribution(tasks).spec
    agent = options.settings.build(spec, torch.device("cpu"), 0)
    each = meta_batch_size * agent.rollouts_per_task * (agent.num_adaptations + 1) * spec.horizon
    if steps < each:
        raise ConfigError(f"--steps must be {each} or more, the steps of one meta-update; got {steps}.")
    return int(steps // each)


def train_cells(cells: Sequence[Cell], options: Options[Any], results: Path) -> bool:
    """Train what is not trained yet and has no score, one cell after the other; returns whether all are done.

    Interrupt it at will: the same command goes on from the last checkpoint.
    """
    with Progress(*_COLUMNS, console=console) as bar:
        for cell in cells:
            if (results / f"{cell.name}.json").exists():
                continue
            experiment = open_experiment(cell, options.runs)
            wanted = experiment.train_config.num_iterations
            if max(experiment.run.checkpoints.iterations(), default=0) >= wanted:
                continue
            task = bar.add_task(cell.name, total=wanted)
            tasks = dataclasses.replace(meta_world(load_distribution(cell.tasks)), pool_workers=options.num_workers)
            distribution = experiment.seen(tasks)
            finished = train(
                experiment.build(),
                distribution,
                experiment.train_config,
                experiment.run,
                listener=lambda progress, task=task: bar.update(task, completed=progress.iteration),  # type: ignore[misc]
            )
            if not finished:
                console.print("Stopped; everything is saved. The same command goes on from here.")
                return False
    return True


def score_cells(cells: Sequence[Cell], options: Options[Any], results: Path, splits: Sequence[Split]) -> None:
    """Score the trained cells that have no score yet by the official protocol, and write ``<cell>.json``."""
    with Progress(*_COLUMNS, console=console, transient=True) as bar:
        for cell in cells:
            path = results / f"{cell.name}.json"
            if path.exists():
                continue
            experiment = open_experiment(cell, options.runs)
            agent, iteration = experiment.load()
            official = {}
            for split in splits:
                task = bar.add_task(f"{cell.name}, {split} goals", total=None)
                scores, _ = evaluate_experiment(
                    experiment,
                    agent,
                    iteration,
                    seed=EVALUATION_SEED,
                    split=split,
                    goals=options.goals,
                    num_workers=options.num_workers,
                    listener=lambda done, total, task=task: bar.update(task, completed=done, total=total),  # type: ignore[misc]
                )
                official[split] = scores.to_json()
            content = describe(cell, experiment) | {
                "variant": cell.variant,
                "changed": dict(cell.train) | dict(cell.settings),
                "official": official,
            }
            write_atomically(path, (json.dumps(content) + "\n").encode())


@told_errors()
def run(words: Sequence[str], tasks: str, prog: str, command: str, splits: Sequence[Split]) -> None:
    """Train, score and report the cells of a command.

    Args:
        words: of the command, those that name the tasks left out.
        tasks: id of the distribution.
        prog: name of the command for its help.
        command: what the page says to have been called, before the options.
        splits: to score on.
    """
    options, cells = parse(words, tasks, prog)
    results = options.results / tasks.replace("/", "-")
    if not train_cells(cells, options, results) or options.train_only:
        return
    results.mkdir(parents=True, exist_ok=True)
    score_cells(cells, options, results, splits)
    references = {
        (name, split): reference_scores(
            name,
            dataclasses.replace(meta_world(load_distribution(tasks)), pool_workers=options.num_workers),
            split,
            results / f"reference-{name.replace(' ', '-')}-{split}.json",
            goals=options.goals,
            seed=EVALUATION_SEED,
        )
        for name in REFERENCES
        for split in splits
    }
    console.print(write_report(results, tasks, command, splits, references), soft_wrap=True, markup=False)
