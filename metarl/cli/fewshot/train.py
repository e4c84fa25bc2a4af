"""``metarl fewshot train``: meta-train a learner, or go on where a run stopped, then score it."""

from __future__ import annotations

import itertools
import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape

from metarl.cli.fewshot.report import (
    EVALUATION_SEED,
    evaluate_with_progress,
    require_training_seeds,
    score_text,
    show_scores,
)
from metarl.cli.progress import with_progress
from metarl.config import TrainConfig
from metarl.distributed import current
from metarl.errors import ConfigError
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.learners import LEARNERS, load_learner
from metarl.fewshot.objective import score_name
from metarl.fewshot.setup import Given, resolve
from metarl.runs.files import shown

MAIN_JOB = ("maml", "glyphs")
"""What ``metarl fewshot train`` does without arguments."""


@dataclass(frozen=True)
class Source:
    """Where learner, tasks and their settings come from; parsed first, as it decides which other options there are."""

    ways: int | None = None
    """Classes in a task; default: what is usual for TASKS."""
    shots: int | None = None
    """Labelled examples of each class."""
    queries: int | None = None
    """Examples of each class to be predicted."""
    data: str | None = None
    """Folder that TASKS are read from, for those that are; with --resume where it lies now."""
    preset: str | None = None
    """Start from this preset's settings instead of those of LEARNER:TASKS."""
    config: Path | None = None
    """Start from the settings in this file: a run's config.json, or YAML or JSON with some of its keys."""
    resume: Path | None = None
    """Go on with the run in this folder; give no LEARNER and TASKS then."""
    trust_tasks: bool = False
    """With --resume or --config: import the modules that the file names, which runs their code."""


@dataclass(frozen=True)
class TrainOptions:
    """Meta-train LEARNER on TASKS, then score it on test tasks."""

    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    settings: tyro.conf.OmitArgPrefixes[LearnerConfig]
    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    checkpoint: Path | None = None
    """With --resume: the checkpoint to start from; default: the newest."""
    runs: Path = Path("runs")
    """Folder in which a new run gets its own folder."""
    test_tasks: int = 1000
    """Test tasks that the trained learner is scored on."""
    print_config: bool = False
    """Print every setting as a file for --config, and train nothing."""


def train(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    # What the user's own modules do, to change the working directory for one, comes after this.
    here = Path.cwd()
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), words[:2]))
    rest = words[len(names) :]
    prog = " ".join(["metarl fewshot train", *names])
    # An error in another option is told by the second parser, which knows them all.
    source, _ = tyro.cli(Source, args=rest, prog=prog, return_unknown_args=True, add_help=False)
    if source.resume is not None:
        return _resume(source, names, rest, prog, here, console)
    if len(names) == 1:
        load_learner(names[0])  # A name that is none is the nearer mistake.
        raise ConfigError(
            f"fewshot train takes LEARNER and TASKS, got only {names[0]!r}. Learners: {', '.join(sorted(LEARNERS))}."
        )
    if not names and source.config is None:
        names = list(MAIN_JOB)
    learner, tasks = names or (None, None)
    given = Given(
        learner,
        tasks,
        source.data,
        source.ways,
        source.shots,
        source.queries,
        source.preset,
        source.config,
        source.trust_tasks,
    )
    base = resolve(given)
    # tyro takes the learner's options from the type of the default.
    default = TrainOptions(base.train_config, base.learner_config)
    options = tyro.cli(TrainOptions, args=rest, prog=prog, default=default)
    if options.checkpoint is not None:
        raise ConfigError(f"--checkpoint {options.checkpoint} needs --resume RUN.")
    require_training_seeds([options.train.seed])
    setup = base.given(options.train, options.settings)
    if options.print_config:
        setup.check()
        print(json.dumps(setup.to_json(), indent=2))
        return 0
    _require_test_tasks(options.test_tasks)
    return _train_and_report(Experiment.start(setup, here / options.runs), None, options.test_tasks, console)


def _resume(source: Source, names: list[str], rest: list[str], prog: str, here: Path, console: Console) -> int:
    assert source.resume is not None
    if names:
        raise ConfigError(f"--resume {source.resume} brings its own learner and tasks; leave out {' '.join(names)!r}.")
    for what in ("preset", "config", "ways", "shots", "queries"):
        if getattr(source, what) is not None:
            raise ConfigError(f"--{what} {getattr(source, what)} is for new runs; --resume brings its own settings.")
    known = Experiment.open(here / source.resume, data=source.data, trust=source.trust_tasks)
    default = TrainOptions(known.setup.train_config, known.setup.learner_config)
    options = tyro.cli(TrainOptions, args=rest, prog=prog, default=default)
    if options.print_config:
        raise ConfigError(f"--print-config is for new runs; the settings of this one are {known.run.path}/config.json.")
    if options.runs != TrainOptions.runs:
        raise ConfigError(f"--runs {options.runs} is for new runs; this one goes on in {known.run.path}.")
    checkpoint = options.checkpoint and here / options.checkpoint
    _require_test_tasks(options.test_tasks)
    this = known.reconfigured(options.train, options.settings, checkpoint)
    return _train_and_report(this, checkpoint, options.test_tasks, console)


def _require_test_tasks(count: int) -> None:
    if count < 2:
        raise ConfigError(f"--test-tasks must be 2 or more, got {count}.")


def _train_and_report(this: Experiment, checkpoint: Path | None, test_tasks: int, console: Console) -> int:
    setup, run = this.setup, escape(shlex.quote(shown(this.run.path)))
    trust = this.run.checkpoints.resume_options
    console.print(
        f"[bold]{escape(setup.name)}[/] on [bold]{escape(setup.task_name)}[/] ({setup.size}), run folder {run}",
        soft_wrap=True,
    )
    name = score_name(setup.kind)
    started = time.perf_counter()
    if not with_progress(
        lambda listener: this.train(listener, checkpoint),
        setup.train_config.num_iterations,
        "meta-training",
        lambda progress: score_text(progress, name),
        console,
    ):
        console.print(
            f"Stopped after the iteration in hand; everything is saved. Go on with:\n"
            f"  metarl fewshot train --resume {run}{trust}",
            soft_wrap=True,
        )
        return 130
    seconds = time.perf_counter() - started
    learner, iteration = this.load()
    try:
        rows = {
            setup.name: evaluate_with_progress(setup, learner, num_tasks=test_tasks, seed=EVALUATION_SEED),
            f"{setup.name}, untrained": evaluate_with_progress(
                setup, setup.build(), num_tasks=test_tasks, seed=EVALUATION_SEED
            ),
        }
    except KeyboardInterrupt:
        console.print(
            f"Training is done and saved. The table comes with:\n  metarl fewshot evaluate {run}{trust}",
            soft_wrap=True,
        )
        return 130
    if not current().is_first:
        return 0
    monitored = "validation" if "validation" in setup.tasks.splits else "train"
    details = {"seed": EVALUATION_SEED, "iteration": iteration, "training_seconds": this.training_seconds}
    show_scores(setup, rows, this.run.path / "adaptation", details, console)
    more = 2 * setup.train_config.num_iterations
    last = setup.learner_config.last_iteration
    go_on = f"  metarl fewshot train --resume {run}{trust} --num-iterations {more}\n"
    console.print(
        f"Trained in {seconds:.0f} s. What to try next:\n"
        f"  metarl plot {run}                              learning curves\n"
        f"  metarl fewshot evaluate {run}{trust} --split {monitored}\n"
        f"{go_on if last is None or more <= last else ''}"
        "  metarl fewshot list                            other learners and tasks",
        soft_wrap=True,
    )
    return 0
