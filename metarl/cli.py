"""The command line: train, evaluate, plot, render, list, check."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from metarl import official
from metarl import session as sessions
from metarl.agent import Agent, AgentConfig
from metarl.agents import AGENTS
from metarl.config import TrainConfig, choose_device
from metarl.errors import ConfigError, MetarlError, folded, unknown_name
from metarl.official_scores import markdown, print_table
from metarl.plotting import learning_figure
from metarl.presets import PRESETS, settings
from metarl.run_folder import RunFolder
from metarl.session import Row, Session
from metarl.tasks import TaskDistribution, registered
from metarl.testing import check_tasks

MAIN_JOB = ("maml-trpo", "cartpole-goal")
"""What ``metarl train`` does without arguments."""

_EVALUATION_SEED = 2_000_003
"""Far from the seeds that anybody trains with: held-out tasks are drawn from it and nothing is ever tuned on it."""

_USAGE = """usage: metarl COMMAND ...

  train [AGENT TASKS]    meta-train an agent; without names the main job (maml-trpo on cartpole-goal)
  train --resume RUN     go on where a run stopped
  evaluate RUN           score a run's agent on held-out tasks
  plot RUN...            learning curves of runs
  render RUN             video of the agent before and after adaptation to one task
  list                   agents, tasks and presets
  check MODULE:NAME      look for faults in a task distribution of your own

metarl COMMAND --help tells more. TASKS is an id of `metarl list`, or module:attribute for your own."""

console = Console()
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": _evaluate,
        "plot": _plot,
        "render": _render,
        "list": _list,
        "check": _check,
    }
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if words else 2
    try:
        if words[0] not in commands:
            raise unknown_name("command", words[0], commands)
        return commands[words[0]](words[1:])
    except MetarlError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted at once; what the last checkpoint holds is safe.")
        return 130


# train --------------------------------------------------------------------------------------------------------------


def _train(words: list[str]) -> int:
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), words[:2]))
    rest = words[len(names) :]
    if len(names) == 1:
        raise ConfigError(f"train takes AGENT and TASKS, got only {names[0]!r}. Agents: {', '.join(sorted(AGENTS))}.")
    resume = _value_of("--resume", rest)
    if resume is not None:
        if names:
            raise ConfigError(f"--resume {resume} brings its own agent and tasks; leave out {' '.join(names)!r}.")
        known = Session.open(Path(resume))
        agent, task_name = known.name, known.task_name
        train_config, agent_config = known.train_config, known.agent_config
    else:
        agent, task_name = names or MAIN_JOB
        train_config, agent_config = settings(agent, task_name, _value_of("--preset", rest))
        distribution = sessions.load_distribution(task_name)
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
            sessions.reference_config(agent, options.agent)
        run = RunFolder.create(options.runs, f"{agent}-{task_name}-seed{options.train.seed}")
        this = Session.create(agent, task_name, options.train, options.agent, run)
    else:
        if options.preset is not None:
            raise ConfigError(f"--preset {options.preset} is for new runs; --resume brings its own settings.")
        _check_resume(known, options.train.num_iterations, options.checkpoint)
        this = known.reconfigured(options.train, options.agent)
    wants_reference = options.reference or (this.pretrained_path / "config.json").is_file()
    return _train_and_report(this, options.checkpoint, wants_reference)


def _check_resume(known: Session, num_iterations: int, checkpoint: Path | None) -> None:
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


def _train_and_report(this: Session, checkpoint: Path | None, wants_reference: bool) -> int:
    console.print(
        f"[bold]{this.name}[/] on [bold]{this.task_name}[/], run folder {escape(str(this.run.path))}", soft_wrap=True
    )
    reference = sessions.pretrained_reference(this) if wants_reference else None
    started = time.perf_counter()
    parts = [(this, "meta-training")] + ([(reference, "reference: one policy for all tasks")] if reference else [])
    for session, label in parts:
        if not _with_progress(session, label, checkpoint if session is this else None):
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
        rows = sessions.evaluation_rows(
            this,
            agent,
            this.distribution,
            num_tasks=this.train_config.eval_tasks,
            seed=_EVALUATION_SEED,
            pretrained=reference,
        )
    except KeyboardInterrupt:
        console.print(f"Training is done and saved. The table comes with:\n  metarl evaluate {run}", soft_wrap=True)
        return 130
    _report(
        this.name,
        this.distribution,
        rows,
        this.run.path / "adaptation",
        {"seed": _EVALUATION_SEED, "training_seconds": seconds},
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


def _with_progress(session: Session, label: str, checkpoint: Path | None) -> bool:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[returns]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=session.train_config.num_iterations, returns="")
        invalid = 0

        def listen(progress: sessions.Progress) -> None:
            nonlocal invalid
            invalid += int(progress.metrics["train/invalid_episodes"])
            # In the order of the trainer, which is that of the shots.
            shots = [value for name, value in progress.metrics.items() if name.startswith("train/return_")]
            text = f"return {shots[0]:.1f}" + (f" -> {shots[-1]:.1f} adapted" if len(shots) > 1 else "")
            bar.update(task, completed=progress.iteration, returns=text)

        done = session.train(listen, checkpoint)
    _warn_of_invalid(invalid, label)
    return done


def _report(
    agent: str, distribution: TaskDistribution, rows: Sequence[Row], path: Path, details: dict[str, Any]
) -> None:
    by_episode = AGENTS[agent].shot == "episode"
    most = max(len(row.intervals) for row in rows)
    num_tasks = len(rows[0].evaluation.returns)
    table = Table(
        title=f"Return on {num_tasks} held-out tasks of {distribution.id}",
        caption="mean and 95 % bootstrap interval over tasks",
    )
    table.add_column("in episode:" if by_episode else "after gradient steps:")
    for index in range(most):
        table.add_column(str(index + 1 if by_episode else index), justify="right")
    for row in rows:
        table.add_row(row.label, *(f"{mean:.1f}\n{low:.1f} .. {high:.1f}" for mean, low, high in row.intervals))
    console.print(table)
    xlabel = "episodes of the trial before" if by_episode else "gradient steps"
    figure = sessions.write_report(rows, distribution, path, xlabel, details)
    cost = sum(row.evaluation.num_env_steps for row in rows)
    console.print(f"Figure: {escape(str(figure))}   (this table cost {cost:,} environment steps)", soft_wrap=True)
    _warn_of_invalid(sum(row.evaluation.num_invalid for row in rows), "this table")


def _warn_of_invalid(count: int, what: str) -> None:
    if count:
        console.print(
            f"[yellow]warning:[/] in {count} episode(s) of {what} the simulation diverged; they were cut off there, "
            "and count as no success.",
            soft_wrap=True,
        )


# evaluate, plot, list, check ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateOptions:
    """Score the agent of RUN on held-out tasks."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    tasks: str | None = None
    """Another distribution with the same spaces, by id or module:attribute."""
    num_tasks: int = 40
    """Held-out tasks."""
    num_adaptations: int | None = None
    """Gradient steps, or episodes - 1 for memory agents; default: what the agent asks for."""
    seed: int = _EVALUATION_SEED
    """Of tasks, environments and actions."""
    checkpoint: Path | None = None
    """A checkpoint file; default: the newest."""
    best: bool = False
    """Take the checkpoint with the best training return."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Where networks run; default: as in training."""
    official: bool = False
    """Meta-World's protocol: every goal of the split, 10 adaptation and 3 evaluation episodes each."""
    goals: int | None = None
    """With --official: only so many goals of each task, which is not the official protocol any more."""
    split: Literal["train", "test"] = "test"
    """With --official: which goals."""
    upstream: bool = False
    """With --official: also run metaworld's own evaluation function, and print its figure beside ours."""


def _evaluate(words: list[str]) -> int:
    options = tyro.cli(EvaluateOptions, args=words, prog="metarl evaluate")
    if options.num_tasks < 1 or (options.num_adaptations is not None and options.num_adaptations < 0):
        raise ConfigError(
            f"--num-tasks must be above 0 and --num-adaptations 0 or more, got {options.num_tasks} and "
            f"{options.num_adaptations}."
        )
    if options.seed < 0:
        raise ConfigError(f"--seed must be 0 or more, got {options.seed}.")
    if options.best and options.checkpoint is not None:
        raise ConfigError(f"--best and --checkpoint {options.checkpoint} name two checkpoints; give one of them.")
    _check_official(options)
    this = Session.open(options.run)
    reference = this.trained_reference()
    if options.device is not None:
        this, reference = this.on(options.device), reference and reference.on(options.device)
    checkpoint = this.run.checkpoints.best_path if options.best else options.checkpoint
    agent, iteration = this.load(checkpoint)
    if options.official:
        return _evaluate_official(options, this, agent, iteration)
    distribution = this.seen(sessions.load_distribution(options.tasks)) if options.tasks else this.distribution
    rows = sessions.evaluation_rows(
        this,
        agent,
        distribution,
        num_tasks=options.num_tasks,
        seed=options.seed,
        num_adaptations=options.num_adaptations,
        pretrained=reference,
    )
    name = f"evaluation-{distribution.id.replace('/', '-')}-iteration{iteration}-seed{options.seed}"
    _report(this.name, distribution, rows, this.run.path / name, {"seed": options.seed, "iteration": iteration})
    return 0


def _check_official(options: EvaluateOptions) -> None:
    """Refuse options that would do nothing."""
    default = EvaluateOptions(options.run)
    names = ("num_tasks", "num_adaptations") if options.official else ("goals", "split", "upstream")
    for name in names:
        if getattr(options, name) != getattr(default, name):
            flag = f"--{name.replace('_', '-')}"
            if options.official:
                raise ConfigError(f"--official knows its own episodes; leave {flag} out, or use --goals for fewer.")
            raise ConfigError(f"{flag} is for Meta-World's protocol; add --official.")


def _evaluate_official(options: EvaluateOptions, this: Session, agent: Agent[Any], iteration: int) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("tasks", total=None)
        scores, path = official.evaluate_session(
            this,
            agent,
            iteration,
            seed=options.seed,
            split=options.split,
            goals=options.goals,
            tasks=options.tasks,
            upstream=options.upstream,
            listener=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print_table(scores, this.name, console)
    text = path.with_suffix(".md")
    text.write_text(markdown(scores, this.name))
    console.print(f"Scores: {escape(str(path))}, as Markdown: {escape(str(text))}", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class PlotOptions:
    """Learning curves of one or more runs in one figure."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    output: Path | None = None
    """The PNG; default: learning.png in the first run's folder."""


def _plot(words: list[str]) -> int:
    options = tyro.cli(PlotOptions, args=words, prog="metarl plot")
    if not options.runs:
        raise ConfigError("plot needs at least one run folder: metarl plot RUN...")
    runs = [RunFolder.open(path) for path in options.runs]
    output = options.output or runs[0].path / "learning.png"
    learning_figure({run.path.name: run.metrics for run in runs}, output)
    console.print(f"Figure: {escape(str(output))}", soft_wrap=True)
    return 0


def _render(words: list[str]) -> int:
    # Its libraries are of no use to any other command.
    from metarl.render_command import render

    return render(words, console)


def _list(words: list[str]) -> int:
    @dataclass(frozen=True)
    class Options:
        """List agents, tasks and presets."""

        what: Annotated[Literal["all", "agents", "tasks", "presets"], tyro.conf.Positional] = "all"
        """What to list."""

    what = tyro.cli(Options, args=words, prog="metarl list").what
    tables = {
        "agents": (("agent", "choose it when"), [(name, entry.when) for name, entry in AGENTS.items()]),
        "tasks": (
            ("tasks", "description"),
            _by_text((name, d.description) for name, d in sorted(registered().items())),
        ),
        "presets": (
            ("agent: tasks", "what differs from the defaults"),
            [
                (f"{agent}: {', '.join(folded(names.split(', ')))}", text)
                for agent in AGENTS
                for names, text in _by_text(
                    (name.split(":")[1], f"{json.dumps({**p.train, **p.agent})}  ({p.source})")
                    for name, p in PRESETS.items()
                    if name.split(":")[0] == agent
                )
            ],
        ),
    }
    for name, (header, rows) in tables.items():
        if what in ("all", name):
            table = Table(*header, title=name)
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)
    return 0


def _by_text(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rows of a name and a text, one for each text, with its names joined."""
    names: dict[str, list[str]] = {}
    for name, text in rows:
        names.setdefault(text, []).append(name)
    return [(", ".join(found), text) for text, found in names.items()]


def _check(words: list[str]) -> int:
    @dataclass(frozen=True)
    class Options:
        """Look for faults in a task distribution: spaces, splits, resets, seeds, time limit."""

        tasks: tyro.conf.Positional[str]
        """An id, or module:attribute."""

    options = tyro.cli(Options, args=words, prog="metarl check")
    distribution = sessions.load_distribution(options.tasks)
    check_tasks(distribution)
    console.print(f"[green]{distribution.id}: no fault found.[/] {distribution.spec}")
    return 0


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
