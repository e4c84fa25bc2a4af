"""``metarl evaluate``: score a run's agent on held-out tasks, or by Meta-World's protocol."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from metarl.agent import Agent
from metarl.cli.report import EVALUATION_SEED, evaluation_rows, show_adaptation
from metarl.cli.task_choice import chosen_tasks
from metarl.config import Device
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import require_same_spaces
from metarl.evaluation.metaworld_scores import markdown, print_table
from metarl.experiments import Experiment
from metarl.experiments.memory import require_memory
from metarl.experiments.official import evaluate_experiment
from metarl.runs.files import require_writable, safe_name, shown, write_atomically
from metarl.tasks.registry import load_distribution


@dataclass(frozen=True)
class EvaluateOptions:
    """Score the agent of RUN on held-out tasks."""

    run: tyro.conf.Positional[Path]
    """Run folder, or model:NAME for a published model (metarl models)."""
    tasks: str | None = None
    """Another distribution with the same spaces, by id or module:attribute."""
    agent: str | None = None
    """For a script's run whose config.json does not name its agent: a name, or module:attribute of its config."""
    trust_tasks: bool = False
    """Import the modules that the run's config.json names for its tasks and agent, which runs their code."""
    num_tasks: int = 40
    """Held-out tasks."""
    task: tuple[str, ...] = ()
    """Score on these instead: names of Meta-World tasks, of whose goals --num-tasks are taken; or tasks in JSON."""
    num_adaptations: int | None = None
    """Gradient steps, or episodes - 1 for memory agents; default: what the agent asks for."""
    rollouts_per_task: int | None = None
    """Episodes per task and shot, which adaptation learns from; default: as in training."""
    seed: int = EVALUATION_SEED
    """Seed for tasks, environments and actions."""
    checkpoint: Path | None = None
    """A checkpoint file; default: the newest."""
    best: bool = False
    """Take the checkpoint with the best training return."""
    device: Device | None = None
    """Where networks run; default: as in training."""
    output: Path | None = None
    """Folder for scores and figure, made if need be; default: RUN, which must then be writable, or model-NAME here."""
    official: bool = False
    """Meta-World's protocol: every goal of the split, 10 adaptation and 3 evaluation episodes each."""
    goals: int | None = None
    """With --official: only so many goals of each task, which is not the official protocol any more."""
    split: Literal["train", "test"] = "test"
    """With --official: which goals to score on."""
    upstream: bool = False
    """With --official: also run metaworld's own evaluation function, and print its figure beside ours."""


def evaluate(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    # What the user's own modules and environments do, to change the working directory for one, comes after this.
    here = Path.cwd()
    options = tyro.cli(EvaluateOptions, args=words, prog="metarl evaluate")
    if options.num_tasks < 1 or (options.num_adaptations is not None and options.num_adaptations < 0):
        raise ConfigError(
            f"--num-tasks must be above 0 and --num-adaptations 0 or more, got {options.num_tasks} and "
            f"{options.num_adaptations}."
        )
    if options.rollouts_per_task is not None and options.rollouts_per_task < 1:
        raise ConfigError(f"--rollouts-per-task must be above 0, got {options.rollouts_per_task}.")
    if not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed must be 0 or more and below 2^63, got {options.seed}.")
    if options.best and options.checkpoint is not None:
        raise ConfigError(f"--best and --checkpoint {options.checkpoint} name two checkpoints; give one of them.")
    _check_official(options)
    this = Experiment.open(options.run, agent=options.agent, tasks=options.tasks, trust=options.trust_tasks)
    output = this.run.output_folder(here) if options.output is None else here / options.output
    require_writable(output, "Give another folder with --output FOLDER.")
    reference = this.trained_reference()
    if options.device is not None:
        this, reference = this.on(options.device), reference and reference.on(options.device)
    checkpoint = this.best_checkpoint if options.best else options.checkpoint and here / options.checkpoint
    agent, iteration = this.load(checkpoint)
    if options.official:
        return _evaluate_official(options, this, agent, iteration, output, console)
    distribution = this.seen(load_distribution(options.tasks)) if options.tasks else this.distribution
    require_same_spaces(agent, distribution)
    if distribution.action_bounds != (trained := this.distribution.action_bounds):
        console.print(
            f"[yellow]The actions of {escape(distribution.id)} lie in {distribution.action_bounds}, those that the "
            f"agent was trained on in {trained}: the same choice of the agent is another action.[/]",
            soft_wrap=True,
        )
    tasks = chosen_tasks(distribution, options.task, options.num_tasks) if options.task else None
    require_memory(
        this.agent_config,
        distribution.spec,
        len(tasks) if tasks else options.num_tasks,
        agent.device,
        "num_tasks",
        options.rollouts_per_task,
        options.num_adaptations,
    )
    rows = evaluation_rows(
        this,
        agent,
        distribution,
        num_tasks=options.num_tasks,
        tasks=tasks,
        seed=options.seed,
        num_adaptations=options.num_adaptations,
        rollouts_per_task=options.rollouts_per_task,
        pretrained=reference,
    )
    which = "held-out"
    details: dict[str, Any] = {"seed": options.seed, "iteration": iteration}
    # All that scores depend on and that is not the default, so that no evaluation takes the place of another one.
    usual, sizes = EvaluateOptions(options.run), ""
    for what in ("num_tasks", "num_adaptations", "rollouts_per_task"):
        if (value := getattr(options, what)) != getattr(usual, what):
            sizes += f"-{value}{what.removeprefix('num_').replace('_', '-')}"
    name = f"evaluation-{safe_name(distribution.id)}{sizes}-iteration{iteration}-seed{options.seed}"
    if options.task:
        which, details["chosen"] = "chosen", options.task
        name += f"-chosen-{hashlib.sha256(repr(options.task).encode()).hexdigest()[:8]}"
    show_adaptation(this, distribution, rows, output / name, details, console, which)
    return 0


def _check_official(options: EvaluateOptions) -> None:
    """Refuse options that would do nothing."""
    default = EvaluateOptions(options.run)
    names = (
        ("num_tasks", "num_adaptations", "rollouts_per_task", "task")
        if options.official
        else ("goals", "split", "upstream")
    )
    for name in names:
        if getattr(options, name) != getattr(default, name):
            flag = f"--{name.replace('_', '-')}"
            if options.official:
                raise ConfigError(f"--official knows its own episodes; leave {flag} out, or use --goals for fewer.")
            raise ConfigError(f"{flag} is for Meta-World's protocol; add --official.")


def _evaluate_official(
    options: EvaluateOptions, this: Experiment, agent: Agent[Any], iteration: int, output: Path, console: Console
) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("tasks", total=None)
        scores, path = evaluate_experiment(
            this,
            agent,
            iteration,
            seed=options.seed,
            split=options.split,
            goals=options.goals,
            tasks=options.tasks,
            upstream=options.upstream,
            folder=output,
            listener=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print_table(scores, this.name, console)
    text = path.with_suffix(".md")
    write_atomically(text, markdown(scores, this.name).encode())
    console.print(f"Scores: {escape(shown(path))}, as Markdown: {escape(shown(text))}", soft_wrap=True)
    return 0
