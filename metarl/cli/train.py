"""``metarl train``: meta-train an agent, or go on where a run stopped, then show how it adapts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape

from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.agents.registry import load_agent
from metarl.callbacks import Callback, EarlyStopping, TimeLimit, Wandb
from metarl.cli.progress import with_progress
from metarl.cli.report import EVALUATION_SEED, evaluation_rows, show_adaptation, warn_of_invalid
from metarl.config import TrainConfig
from metarl.distributed import current
from metarl.errors import ConfigError
from metarl.experiments import Experiment, Setup, resolve
from metarl.experiments.experiment import pretrained_reference, reference_config
from metarl.rollouts.host_actor import ActOn
from metarl.runs.files import shown
from metarl.runs.logger import iteration_seconds, read_metrics
from metarl.runs.outer_loop import Progress
from metarl.statistics import number_text

MAIN_JOB = ("maml-trpo", "cartpole-goal")
"""What ``metarl train`` does without arguments."""


@dataclass(frozen=True)
class Source:
    """Where agent, tasks and their settings come from; parsed first, as it decides which other options there are."""

    preset: str | None = None
    """Start from this preset's settings instead of those of AGENT:TASKS (see `metarl list`)."""
    config: Path | None = None
    """Start from the settings in this file: a run's config.json, or YAML or JSON with some of its keys."""
    resume: Path | None = None
    """Go on with the run in this folder; give no AGENT and TASKS then."""
    agent: str | None = None
    """Same as AGENT; with --resume for a script's run whose config.json does not name it."""
    tasks: str | None = None
    """Same as TASKS; with --resume for a script's run whose config.json does not name them."""
    trust_tasks: bool = False
    """With --resume or --config: import the modules that the file names for tasks and agent, which runs their code."""


@dataclass(frozen=True)
class TrainOptions:
    """Meta-train AGENT on TASKS, then show how it adapts to held-out tasks."""

    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    settings: tyro.conf.OmitArgPrefixes[AgentConfig]
    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    checkpoint: Path | None = None
    """With --resume: the checkpoint to start from; default: the newest."""
    runs: Path = Path("runs")
    """Folder in which a new run gets its own folder."""
    reference: bool = False
    """Also train one policy over all tasks for as many episodes, as a reference for the final table (MAML only)."""
    max_hours: float | None = None
    """End training, saved, after so many hours, e.g. before a job's time is up; --resume goes on."""
    patience: int | None = None
    """End training after so many iterations without a better training return, averaged over the last ten."""
    act_on: ActOn = "device"
    """cpu: act on the processor, beside the simulations, while updates run on the GPU; results differ by rounding."""
    wandb: str | None = None
    """Send the metrics to this project of Weights & Biases as well (pip install 'metarl-torch[wandb]')."""
    print_config: bool = False
    """Print every setting as a file for --config, and train nothing."""


def train(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    # What the user's own modules and environments do, to change the working directory for one, comes after this.
    here = Path.cwd()
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), words[:2]))
    rest = words[len(names) :]
    prog = " ".join(["metarl train", *names])
    # An error in another option is told by the second parser, which knows them all.
    source, _ = tyro.cli(Source, args=rest, prog=prog, return_unknown_args=True, add_help=False)
    base, main_job = _base(names, source)
    _check_flags(base)
    # tyro takes the agent's options from the type of the default.
    options = tyro.cli(
        TrainOptions,
        args=rest,
        prog=prog,
        default=TrainOptions(base.train_config, base.agent_config, reference=main_job),
    )
    checkpoint = options.checkpoint and here / options.checkpoint
    # What cannot work must fail before there is a run folder.
    callbacks = _callbacks(options)
    if isinstance(base, Experiment):
        if options.runs != TrainOptions.runs:
            raise ConfigError(f"--runs {options.runs} is for new runs; this one goes on in {base.run.path}.")
        if options.print_config:
            raise ConfigError(
                f"--print-config is for new runs; the settings of this one are {base.run.path}/config.json."
            )
        _check_resume(base, options.train.num_iterations, checkpoint)
        this = base.reconfigured(options.train, options.settings, checkpoint)
        if checkpoint is not None:
            console.print(_going_back(this, checkpoint), soft_wrap=True)
    else:
        if checkpoint is not None:
            raise ConfigError(f"--checkpoint {options.checkpoint} needs --resume RUN.")
        setup = dataclasses.replace(base, train_config=options.train, agent_config=options.settings)
        if options.reference:
            reference_config(setup.name, setup.agent_config)
        if options.print_config:
            setup.check()
            print(json.dumps(setup.to_json(), indent=2))
            return 0
        this = Experiment.start(setup, here / options.runs, reference=options.reference)
    wants_reference = options.reference or (this.pretrained_path / "config.json").is_file()
    return _train_and_report(this, checkpoint, wants_reference, callbacks, options.act_on, console)


def _base(names: list[str], source: Source) -> tuple[Setup, bool]:
    """What the options start from, an experiment if it is to be resumed, and whether it is the main job."""
    if source.resume is not None:
        for what in ("preset", "config"):
            if getattr(source, what) is not None:
                raise ConfigError(
                    f"--{what} {getattr(source, what)} is for new runs; --resume brings its own settings."
                )
        if names:
            raise ConfigError(
                f"--resume {source.resume} brings its own agent and tasks; leave out {' '.join(names)!r}."
            )
        known = Experiment.open(source.resume, agent=source.agent, tasks=source.tasks, trust=source.trust_tasks)
        if source.tasks is not None and source.tasks != known.task_name:
            raise ConfigError(f"the run's tasks are {known.task_name!r}, got --tasks {source.tasks!r}. Leave it out.")
        return known, False
    if len(names) == 1:
        load_agent(names[0])  # A name that is none is the nearer mistake.
        raise ConfigError(f"train takes AGENT and TASKS, got only {names[0]!r}. Agents: {', '.join(sorted(AGENTS))}.")
    flags = (source.agent, source.tasks)
    if names and flags != (None, None):
        raise ConfigError(f"agent and tasks are {' '.join(names)!r} already; leave out --agent and --tasks.")
    main_job = not names and flags == (None, None) and source.config is None
    agent, tasks = MAIN_JOB if main_job else (tuple(names) or flags)
    return resolve(agent, tasks, preset=source.preset, file=source.config, trust=source.trust_tasks), main_job


def _check_flags(setup: Setup) -> None:
    """Refuse an agent of the user's own with a setting that would have the flag of another one."""
    ours = {field.name for kind in (TrainConfig, Source, TrainOptions) for field in dataclasses.fields(kind)}
    if taken := sorted(ours & {field.name for field in dataclasses.fields(setup.agent_config)}):
        raise ConfigError(
            f"{type(setup.agent_config).__name__}.{taken[0]} would be the flag --{taken[0].replace('_', '-')}, which "
            "metarl train has already; give the field another name."
        )


def _check_resume(known: Experiment, num_iterations: int, checkpoint: Path | None) -> None:
    """Refuse what cannot be resumed before anything in the run is changed."""
    known.run.require_trainable()
    store = known.run.checkpoints
    if checkpoint is not None:
        done, _ = store.load(checkpoint)
    else:
        done = max(store.iterations(), default=0)
        if not done and known.run.metrics.exists() and known.run.metrics.stat().st_size:
            store.load_latest()
    if done > num_iterations:
        raise ConfigError(
            f"{known.run.path} has done {done} iterations already, more than --num-iterations {num_iterations}. "
            "Ask for more, or go back with --checkpoint."
        )


def _going_back(this: Experiment, checkpoint: Path) -> str:
    """Where training goes on from, and where what came later will be."""
    done, _ = this.run.checkpoints.load(checkpoint)
    later = any(known > done for known in this.run.checkpoints.iterations())
    kept = f" What came later is kept in {escape(shown(this.run.next_abandoned))}." if later else ""
    return f"Going back to iteration {done}.{kept}"


def _callbacks(options: TrainOptions) -> list[Callback]:
    """What the options ask for in every iteration; metrics are sent before anything ends training."""
    callbacks: list[Callback] = []
    if options.wandb is not None:
        callbacks.append(Wandb(options.wandb))
    if options.patience is not None:
        callbacks.append(EarlyStopping(options.patience))
    if options.max_hours is not None:
        callbacks.append(TimeLimit(options.max_hours))
    return callbacks


def _train_and_report(
    this: Experiment,
    checkpoint: Path | None,
    wants_reference: bool,
    callbacks: Sequence[Callback],
    act_on: ActOn,
    console: Console,
) -> int:
    console.print(
        f"[bold]{this.name}[/] on [bold]{this.task_name}[/], run folder {escape(shown(this.run.path))}", soft_wrap=True
    )
    reference = pretrained_reference(this) if wants_reference else None
    started = time.perf_counter()
    parts = [(this, "meta-training")] + ([(reference, "reference: one policy for all tasks")] if reference else [])
    for experiment, label in parts:
        own = (
            (checkpoint, callbacks)
            if experiment is this
            else (None, [c for c in callbacks if isinstance(c, TimeLimit)])
        )
        if not _with_progress(experiment, label, *own, act_on, console):
            beside = " --act-on cpu" if act_on == "cpu" else ""
            console.print(
                f"Stopped after the iteration in hand; everything is saved. Go on with:\n"
                f"  metarl train --resume {_quoted(this.run.path)}{_trust(this)}{beside}",
                soft_wrap=True,
            )
            return 130
    seconds = time.perf_counter() - started
    agent, _ = this.load()
    run, trust, more = _quoted(this.run.path), _trust(this), max(100, 2 * this.train_config.eval_tasks)
    try:
        rows = evaluation_rows(
            this,
            agent,
            this.distribution,
            num_tasks=this.train_config.eval_tasks,
            seed=EVALUATION_SEED,
            pretrained=reference,
        )
    except KeyboardInterrupt:
        console.print(
            f"Training is done and saved. The table comes with:\n  metarl evaluate {run}{trust}", soft_wrap=True
        )
        return 130
    if not current().is_first:
        return 0
    show_adaptation(
        this,
        this.distribution,
        rows,
        this.run.path / "adaptation",
        {"seed": EVALUATION_SEED, "training_seconds": sum(map(iteration_seconds, read_metrics(this.run.metrics)))},
        console,
    )
    console.print(
        f"Trained in {seconds:.0f} s. What to try next:\n"
        f"  metarl evaluate {run}{trust} --num-tasks {more:<10}   more held-out tasks\n"
        f"  metarl plot {run}                              learning curves\n"
        f"  metarl train --resume {run}{trust} --num-iterations {2 * this.train_config.num_iterations}\n"
        f"  tensorboard --logdir {_quoted(this.run.tensorboard)}\n"
        "  metarl list                                    other agents and tasks",
        soft_wrap=True,
    )
    return 0


def _with_progress(
    experiment: Experiment,
    label: str,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
    act_on: ActOn,
    console: Console,
) -> bool:
    invalid = 0

    def describe(progress: Progress) -> str:
        nonlocal invalid
        invalid += int(progress.metrics["train/invalid_episodes"])
        # In the order of the trainer, which is that of the shots.
        shots = [value for name, value in progress.metrics.items() if name.startswith("train/return_")]
        return f"return {number_text(shots[0])}" + (f" -> {number_text(shots[-1])} adapted" if len(shots) > 1 else "")

    num_iterations = experiment.train_config.num_iterations
    done = with_progress(
        lambda listener: experiment.train(listener, checkpoint, callbacks=callbacks, act_on=act_on),
        num_iterations,
        label,
        describe,
        console,
    )
    iterations = max(experiment.run.checkpoints.iterations(), default=0)
    if done and iterations < num_iterations:
        console.print(f"Ended early, after {iterations} of {num_iterations} iterations.")
    warn_of_invalid(invalid, label, console)
    return done


def _trust(this: Experiment) -> str:
    """The option with which other commands import the user's own modules again, if the run needs any."""
    return this.run.checkpoints.resume_options


def _quoted(path: Path) -> str:
    """For a shell, by way of rich: square brackets are markup there."""
    return escape(shlex.quote(shown(path)))
