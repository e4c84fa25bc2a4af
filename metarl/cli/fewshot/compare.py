"""``metarl fewshot compare``: learners on the same tasks, in one table and one figure."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl.cli.fewshot.report import (
    EVALUATION_SEED,
    evaluate_with_progress,
    interval_cell,
    require_training_seeds,
    score_text,
)
from metarl.cli.progress import with_progress
from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.learners import LEARNERS
from metarl.fewshot.objective import score_name
from metarl.fewshot.setup import Given, Setup, resolve
from metarl.plotting import bar_figure
from metarl.runs.files import read_json, safe_name, shown, write_atomically, write_json
from metarl.statistics import Interval, crossed_interval


@dataclass(frozen=True)
class CompareOptions:
    """Train and score learners on TASKS; what is done already is not done again."""

    tasks: tyro.conf.Positional[str]
    """Name of the family."""
    learners: tuple[str, ...] | None = None
    """Which learners; default: all that take these tasks."""
    seeds: tuple[int, ...] = (1,)
    """Training seeds of each."""
    ways: int | None = None
    """Classes in a task; default: what is usual for TASKS."""
    shots: int | None = None
    """Labelled examples of each class."""
    queries: int | None = None
    """Examples of each class to be predicted."""
    data: str | None = None
    """Folder that TASKS are read from, for those that are."""
    num_iterations: int | None = None
    """Meta-updates of every learner; default: those of its preset."""
    test_tasks: int = 1000
    """Test tasks that all are scored on, the same for all."""
    runs: Path = Path("runs")
    """Folder in which the comparison gets its own folder, with a run for every learner and seed."""


@dataclass(frozen=True)
class _Result:
    """Scores of one learner, ``[seed, task]``, before adaptation and after it, and the seconds of training a seed."""

    before: np.ndarray[Any, np.dtype[np.float64]]
    after: np.ndarray[Any, np.dtype[np.float64]]
    seconds: float


def compare(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    # What the user's own modules do, to change the working directory for one, comes after this.
    here = Path.cwd()
    options = tyro.cli(CompareOptions, args=words, prog="metarl fewshot compare")
    if options.test_tasks < 2 or not options.seeds or min(options.seeds) < 0:
        raise ConfigError(
            f"--test-tasks must be 2 or more and --seeds hold numbers of 0 or more, got {options.test_tasks} and "
            f"{options.seeds}."
        )
    require_training_seeds(options.seeds)
    learners = LEARNERS if options.learners is None else options.learners
    if not learners:
        raise ConfigError(f"--learners needs at least one; leave it out to compare all: {', '.join(LEARNERS)}.")
    for what, values in (("--seeds", options.seeds), ("--learners", tuple(learners))):
        if len(set(values)) < len(values):
            raise ConfigError(f"{what} must hold each value once, got {' '.join(map(str, values))}.")
    for name in learners:
        if name not in LEARNERS and ":" not in name:
            raise unknown_name("learner", name, LEARNERS)
    data = options.data and str(here / Path(options.data).expanduser())
    setups: dict[str, Setup] = {}
    for name in learners:
        given = Given(name, options.tasks, data, options.ways, options.shots, options.queries)
        train = {} if options.num_iterations is None else {"num_iterations": options.num_iterations}
        setup = resolve(given, train=train)
        try:
            setup.check()
        except ConfigError as error:
            if options.learners is not None:
                raise
            console.print(f"[yellow]{escape(name)} is left out:[/] {escape(str(error))}", soft_wrap=True)
        else:
            setups[name] = setup
    if not setups:
        raise ConfigError(f"no learner takes {options.tasks} of this size; the reasons stand above.")
    some = next(iter(setups.values()))
    folder = here / options.runs / safe_name(f"compare-{options.tasks}-{some.episode.ways}way-{some.episode.shots}shot")
    results: dict[str, _Result] = {}
    for name, setup in setups.items():
        rows = [_one(setup, seed, folder, options.test_tasks, console) for seed in options.seeds]
        if None in rows:
            console.print(f"Stopped; everything is saved in {escape(shown(folder))}. The same command goes on.")
            return 130
        done = [row for row in rows if row is not None]
        results[name] = _Result(
            np.array([row["before"] for row in done]),
            np.array([row["after"] for row in done]),
            float(np.mean([row["seconds"] for row in done])),
        )
    _show(some, results, options, folder, console)
    return 0


def _one(setup: Setup, seed: int, root: Path, test_tasks: int, console: Console) -> dict[str, Any] | None:
    """Scores of one run, trained as far as it is not; None after an interruption."""
    setup = dataclasses.replace(setup, train_config=dataclasses.replace(setup.train_config, seed=seed))
    name = safe_name(f"{setup.name}-seed{seed}")
    this = Experiment.begin(setup, root, name)
    label = f"{setup.name}, seed {seed}"
    key = score_name(setup.kind)
    path = this.run.path / f"scores-{test_tasks}-tasks.json"
    iterations = max(this.run.checkpoints.iterations(), default=0)
    if path.is_file() and iterations == setup.train_config.num_iterations:
        known = read_json(path)
        if known.get("iteration") == iterations and known.get("digests") == dict(setup.tasks.digests):
            return known
    if not with_progress(
        lambda listener: this.train(listener),
        setup.train_config.num_iterations,
        label,
        lambda progress: score_text(progress, key),
        console,
    ):
        return None
    learner, iteration = this.load()
    found = evaluate_with_progress(setup, learner, num_tasks=test_tasks, seed=EVALUATION_SEED)
    scores = {
        "iteration": iteration,
        "seconds": this.training_seconds,
        "seed": EVALUATION_SEED,
        "digests": dict(setup.tasks.digests),
        "before": found.scores[:, 0].tolist(),
        "after": found.scores[:, -1].tolist(),
    }
    write_json(path, scores)
    return scores


def _show(setup: Setup, results: dict[str, _Result], options: CompareOptions, folder: Path, console: Console) -> None:
    kind = setup.kind
    what = "Accuracy (%)" if kind == "classification" else "Mean squared error"
    title = f"{what} on {options.test_tasks} test tasks of {options.tasks}, {setup.size}"
    seeds = ", ".join(map(str, options.seeds))
    over = f"tasks and seeds {seeds}" if len(options.seeds) > 1 else f"tasks, of seed {seeds}"
    caption = f"mean and 95 % interval over {over}"
    table = Table(title=escape(title), caption=caption)
    table.add_column("learner")
    for header in ("not adapted", "adapted", "seconds a seed"):
        table.add_column(header, justify="right", no_wrap=True)
    after: dict[str, Interval] = {}
    better = -1 if kind == "classification" else 1
    for name in sorted(results, key=lambda name: better * float(results[name].after.mean())):
        result = results[name]
        before, after[name] = crossed_interval([result.before]), crossed_interval([result.after])
        table.add_row(
            escape(name), interval_cell(before, kind), interval_cell(after[name], kind), f"{result.seconds:.0f}"
        )
    console.print(table)
    content = {
        "tasks": options.tasks,
        "episode": dataclasses.asdict(setup.episode),
        "score": score_name(kind),
        "seeds": options.seeds,
        "test_tasks": options.test_tasks,
        "learners": {
            name: {
                "interval": after[name],
                "by_seed": results[name].after.mean(1).tolist(),
                "before": float(results[name].before.mean()),
                "seconds": results[name].seconds,
            }
            for name in after
        },
    }
    path = folder / "comparison.json"
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    figure = path.with_suffix(".png")
    bar_figure(after, figure, f"{options.tasks}, {setup.size}", f"{score_name(kind)} (mean, 95 % interval)")
    console.print(f"Scores: {escape(shown(path))}, figure: {escape(shown(figure))}", soft_wrap=True)
