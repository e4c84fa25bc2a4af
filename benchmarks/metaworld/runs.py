"""What the Meta-World benchmarks share: their options, and cells that are trained and scored by the protocol."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from metarl.agent import AgentConfig
from metarl.benchmarks.cells import BENCHMARK_SEED, Cell, console, describe, open_experiment
from metarl.benchmarks.engines import LOCAL, Engine, Job, Report, run_jobs
from metarl.benchmarks.metaworld.references import REFERENCES, reference_scores
from metarl.benchmarks.metaworld.report import Split, write_success_page
from metarl.envs.metaworld.distributions import meta_world
from metarl.errors import ConfigError, told_errors
from metarl.experiments import Experiment, resolve
from metarl.experiments.official import evaluate_experiment
from metarl.runs.files import safe_name, write_atomically
from metarl.tasks.registry import load_distribution
from metarl.trainer import train


@dataclass(frozen=True)
class Chosen:
    """What decides which settings there are; parsed first."""

    agent: str = "rl2"
    """Agent to train."""


@dataclass(frozen=True)
class Options:
    """Train one agent with several seeds, then score it by the official protocol."""

    settings: Annotated[AgentConfig, tyro.conf.arg(name="agent")]
    """Settings of the agent; default: those of its preset."""
    chosen: tyro.conf.OmitArgPrefixes[Chosen] = Chosen()
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
    """Processes that step the simulations; default: one for each core that this process may use, or that a cell of
    several has."""
    results: Path = Path("benchmarks/results")
    """Scores, table and figure go to a folder in here."""
    runs: Path = Path("runs/benchmark-metaworld")
    """Where the run folders go."""
    engine: tyro.conf.OmitArgPrefixes[Engine] = LOCAL


def parse(words: Sequence[str], tasks: str, prog: str) -> tuple[Options, list[Cell]]:
    """Options and cells of a command.

    Args:
        words: the command's words.
        tasks: id of the distribution.
        prog: name of the command.

    Raises:
        ConfigError: for settings that cannot work, or others than the preset's without a variant's name.
    """
    chosen, _ = tyro.cli(Chosen, args=list(words), prog=prog, return_unknown_args=True, add_help=False)
    preset = resolve(chosen.agent, tasks)
    # tyro takes the agent's options from the type of the default.
    options = tyro.cli(Options, args=list(words), prog=prog, default=Options(preset.agent_config))
    defaults = dataclasses.asdict(preset.agent_config)
    changed = {name: value for name, value in dataclasses.asdict(options.settings).items() if value != defaults[name]}
    train: dict[str, Any] = {}
    if options.meta_batch_size is not None:
        train["meta_batch_size"] = options.meta_batch_size
    if (changed or train) and not options.variant:
        named = ", ".join([*changed, *train])
        raise ConfigError(f"these settings differ from the preset's: {named}. Give them a name with --variant NAME.")
    if options.steps is not None:
        each = resolve(chosen.agent, tasks, train=train, settings=changed).steps_per_iteration
        if options.steps < each:
            raise ConfigError(f"--steps must be {each} or more, the steps of one meta-update; got {options.steps}.")
        train["num_iterations"] = options.steps // each
    cells = [Cell(chosen.agent, tasks, seed, train, changed, options.variant) for seed in options.seeds]
    return options, cells


def run_cells(cells: Sequence[Cell], options: Options, results: Path, splits: Sequence[Split]) -> bool:
    """Train what is not trained yet, and score it by the official protocol unless ``options`` ask for training alone.

    Interrupt it at will: the same command goes on from the last checkpoints.

    Args:
        cells: each with a score, ``<cell>.json``, is done.
        options: of the command.
        results: folder of the scores.
        splits: the splits to score on.

    Returns:
        Whether all are done.
    """
    results, runs = results.absolute(), options.runs.absolute()
    engine, num_workers = options.engine, options.num_workers
    if num_workers is None and not engine.in_process:
        num_workers = engine.cpus_per_run  # The other cores are those of other cells.
    goals = None if options.train_only else Goals(results, splits, options.goals)
    return run_jobs(
        [
            Job(cell.name, _run_cell, (cell, runs, num_workers, goals))
            for cell in cells
            if not (results / f"{cell.name}.json").exists()
        ],
        engine,
        (runs,) if goals is None else (runs, results),
        console,
    )


@dataclass(frozen=True)
class Goals:
    """What cells are scored on.

    Attributes:
        results: folder of the scores.
        splits: the splits.
        per_task: goals of each task; default: all.
    """

    results: Path
    splits: Sequence[Split]
    per_task: int | None


def _run_cell(cell: Cell, runs: Path, num_workers: int | None, goals: Goals | None, report: Report) -> bool:
    if goals is None:
        return train_cell(cell, runs, num_workers, report) is not None
    content = train_and_score(cell, runs, num_workers, goals.splits, goals.per_task, report)
    if content is None:
        return False
    goals.results.mkdir(parents=True, exist_ok=True)
    write_atomically(goals.results / f"{cell.name}.json", (json.dumps(content) + "\n").encode())
    return True


def train_cell(cell: Cell, runs: Path, num_workers: int | None, report: Report) -> Experiment | None:
    """Train a cell to its end, its simulations in ``num_workers`` processes; None if it was interrupted."""
    experiment = open_experiment(cell, runs)
    wanted = experiment.train_config.num_iterations
    if max(experiment.run.checkpoints.iterations(), default=0) < wanted:
        tasks = dataclasses.replace(meta_world(load_distribution(cell.tasks)), pool_workers=num_workers)
        if not train(
            experiment.build(),
            experiment.seen(tasks),
            experiment.train_config,
            experiment.run,
            listener=lambda progress: report("training", progress.iteration, wanted),
        ):
            return None
    return experiment


def train_and_score(
    cell: Cell, runs: Path, num_workers: int | None, splits: Sequence[Split], goals: int | None, report: Report
) -> dict[str, Any] | None:
    """Train a cell to its end, and score it by the official protocol on the first ``goals`` goals of each task.

    Returns:
        Its score; None if training was interrupted.
    """
    experiment = train_cell(cell, runs, num_workers, report)
    if experiment is None:
        return None
    agent, iteration = experiment.load()
    official = {}
    for split in splits:
        scores, _ = evaluate_experiment(
            experiment,
            agent,
            iteration,
            seed=BENCHMARK_SEED,
            split=split,
            goals=goals,
            num_workers=num_workers,
            listener=partial(report, f"{split} goals"),
        )
        official[split] = scores.to_json()
    return describe(cell, experiment) | {
        "variant": cell.variant,
        "changed": dict(cell.train) | dict(cell.settings),
        "official": official,
    }


@told_errors()
def run(words: Sequence[str], tasks: str, prog: str, command: str, splits: Sequence[Split]) -> None:
    """Train, score and report the cells of a command.

    Args:
        words: the command's words without those that name the tasks.
        tasks: id of the distribution.
        prog: name of the command for its help.
        command: what the page says to have been called, before the options.
        splits: the splits to score on.
    """
    options, cells = parse(words, tasks, prog)
    results = options.results / safe_name(tasks)
    if not run_cells(cells, options, results, splits) or options.train_only:
        return
    references = {
        (name, split): reference_scores(
            name,
            dataclasses.replace(meta_world(load_distribution(tasks)), pool_workers=options.num_workers),
            split,
            results / f"reference-{safe_name(name)}-{split}.json",
            goals=options.goals,
            seed=BENCHMARK_SEED,
        )
        for name in REFERENCES
        for split in splits
    }
    console.print(write_success_page(results, tasks, command, splits, references), soft_wrap=True, markup=False)
