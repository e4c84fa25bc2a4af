"""``metarl train``: meta-train an agent, or go on where a run stopped, then show how it adapts."""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from metarl import trainer
from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.cli.report import EVALUATION_SEED, evaluation_rows, show_report, warn_of_invalid
from metarl.config import TrainConfig, choose_device
from metarl.errors import ConfigError
from metarl.experiments import experiment as experiments
from metarl.experiments.experiment import Experiment
from metarl.experiments.presets import settings
from metarl.runs.folder import RunFolder
from metarl.tasks.registry import load_distribution

MAIN_JOB = ("maml-trpo", "cartpole-goal")
"""What ``metarl train`` does without arguments."""

Settings = TypeVar("Settings", bound=AgentConfig)


@dataclass(frozen=True)
class TrainOptions(Generic[Settings]):
    """Meta-train AGENT on TASKS, then show how it adapts to held-out tasks."""

    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    agent: tyro.conf.OmitArgPrefixes[Settings]
    preset: str | None = None
    """Start from this preset's settings instead of those of AGENT:TASKS (see `metarl list`)."""
    resume: Path | None = None
    """Go on with the run in this folder; give no AGENT and TASKS then."""
    checkpoint: Path | None = None
    """With --resume: the checkpoint to start from; default: the newest."""
    runs: Path = Path("runs")
    """Folder in which a new run gets its own folder."""
    reference: bool = False
    """Also train one policy over all tasks for as many episodes, as a reference for the final table (MAML only)."""


def train(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), words[:2]))
    rest = words[len(names) :]
    if len(names) == 1:
        raise ConfigError(f"train takes AGENT and TASKS, got only {names[0]!r}. Agents: {', '.join(sorted(AGENTS))}.")
    resume = _value_of("--resume", rest)
    if resume is not None:
        if names:
            raise ConfigError(f"--resume {resume} brings its own agent and tasks; leave out {' '.join(names)!r}.")
        known = Experiment.open(Path(resume))
        agent, task_name = known.name, known.task_name
        train_config, agent_config = known.train_config, known.agent_config
    else:
        agent, task_name = names or MAIN_JOB
        train_config, agent_config = settings(agent, task_name, _value_of("--preset", rest))
        distribution = load_distribution(task_name)
    generic: Any = TrainOptions  # The agent's settings are known only now, which no type checker can follow.
    options = tyro.cli(
        generic[type(agent_config)],
        args=rest,
        prog="metarl train" if resume else f"metarl train {agent} {task_name}",
        default=TrainOptions(train_config, agent_config, reference=not names and resume is None),
    )
    if options.resume is None:
        if options.checkpoint is not None:
            raise ConfigError(f"--checkpoint {options.checkpoint} needs --resume RUN.")
        # What cannot work must fail before there is a run folder.
        options.agent.build(distribution.spec, choose_device(options.train.device), options.train.seed)
        distribution.sample_meta_batch(options.train.meta_batch_size, np.random.default_rng(0))
        if options.reference:
            experiments.reference_config(agent, options.agent)
        run = RunFolder.create(options.runs, f"{agent}-{task_name}-seed{options.train.seed}")
        this = Experiment.create(agent, task_name, options.train, options.agent, run)
    else:
        if options.preset is not None:
            raise ConfigError(f"--preset {options.preset} is for new runs; --resume brings its own settings.")
        _check_resume(known, options.train.num_iterations, options.checkpoint, console)
        this = known.reconfigured(options.train, options.agent)
    wants_reference = options.reference or (this.pretrained_path / "config.json").is_file()
    return _train_and_report(this, options.checkpoint, wants_reference, console)


def _check_resume(known: Experiment, num_iterations: int, checkpoint: Path | None, console: Console) -> None:
    """Refuse what cannot be resumed before anything in the run is changed."""
    store = known.run.checkpoints
    if checkpoint is not None:
        done, _ = store.load(checkpoint)
        console.print(f"Going back to iteration {done}; what came later is kept in {known.run.path}/abandoned.")
    else:
        done = max(store.iterations(), default=0)
        if not done and known.run.metrics.exists() and known.run.metrics.stat().st_size:
            store.load_latest()
    if done > num_iterations:
        raise ConfigError(
            f"{known.run.path} has done {done} iterations already, more than --num-iterations {num_iterations}. "
            "Ask for more, or go back with --checkpoint."
        )


def _train_and_report(this: Experiment, checkpoint: Path | None, wants_reference: bool, console: Console) -> int:
    console.print(
        f"[bold]{this.name}[/] on [bold]{this.task_name}[/], run folder {escape(str(this.run.path))}", soft_wrap=True
    )
    reference = experiments.pretrained_reference(this) if wants_reference else None
    started = time.perf_counter()
    parts = [(this, "meta-training")] + ([(reference, "reference: one policy for all tasks")] if reference else [])
    for experiment, label in parts:
        if not _with_progress(experiment, label, checkpoint if experiment is this else None, console):
            console.print(
                f"Stopped after the iteration in hand; everything is saved. Go on with:\n"
                f"  metarl train --resume {_quoted(this.run.path)}",
                soft_wrap=True,
            )
            return 130
    seconds = time.perf_counter() - started
    agent, _ = this.load()
    run = _quoted(this.run.path)
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
        console.print(f"Training is done and saved. The table comes with:\n  metarl evaluate {run}", soft_wrap=True)
        return 130
    show_report(
        this.name,
        this.distribution,
        rows,
        this.run.path / "adaptation",
        {"seed": EVALUATION_SEED, "training_seconds": seconds},
        console,
    )
    console.print(
        f"Trained in {seconds:.0f} s. What to try next:\n"
        f"  metarl evaluate {run} --num-tasks 100          more held-out tasks\n"
        f"  metarl plot {run}                              learning curves\n"
        f"  metarl train --resume {run} --num-iterations {2 * this.train_config.num_iterations}\n"
        f"  tensorboard --logdir {_quoted(this.run.tensorboard)}\n"
        "  metarl list                                    other agents and tasks",
        soft_wrap=True,
    )
    return 0


def _with_progress(experiment: Experiment, label: str, checkpoint: Path | None, console: Console) -> bool:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[returns]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=experiment.train_config.num_iterations, returns="")
        invalid = 0

        def listen(progress: trainer.Progress) -> None:
            nonlocal invalid
            invalid += int(progress.metrics["train/invalid_episodes"])
            # In the order of the trainer, which is that of the shots.
            shots = [value for name, value in progress.metrics.items() if name.startswith("train/return_")]
            text = f"return {shots[0]:.1f}" + (f" -> {shots[-1]:.1f} adapted" if len(shots) > 1 else "")
            bar.update(task, completed=progress.iteration, returns=text)

        done = experiment.train(listen, checkpoint)
    warn_of_invalid(invalid, label, console)
    return done


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    """The value of ``flag`` in ``words``, needed before the other options can be parsed."""
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return None


def _quoted(path: Path) -> str:
    """For a shell, by way of rich: square brackets are markup there."""
    return escape(shlex.quote(str(path)))
