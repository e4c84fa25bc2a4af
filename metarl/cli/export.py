"""``metarl export``: a run's agent as a file that runs without metarl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape

from metarl.agent import Agent
from metarl.cli.task_choice import SplitName, choose_task, require_sound
from metarl.deployment.export import check_format, export_step
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import require_same_spaces
from metarl.experiments import Experiment
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.runs.files import shown
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution
from metarl.types import Task


@dataclass(frozen=True)
class ExportOptions:
    """Write the agent of RUN into FILE: the step of a memory, or the policy of a gradient-based agent after adaptation.

    It is compared with the agent before it is written. What a gradient-based agent has adapted to in an environment of
    your own, metarl.load(RUN).learner(env).export(FILE) writes.
    """

    run: tyro.conf.Positional[Path]
    """Run folder, or model:NAME for a published model (metarl models)."""
    file: tyro.conf.Positional[Path]
    """The file: .pt2 for torch.export, .onnx for ONNX (pip install 'metarl-torch[onnx]')."""
    sample: bool = False
    """Sample actions, from noise that the file takes as an input; default: the distribution's mode."""
    num_adaptations: int | None = None
    """Gradient steps before it is written; 0: the policy before adaptation; default: what the agent asks for."""
    task: str | None = None
    """To adapt to: name of a Meta-World task, of those that the run's task set has; default: the only one."""
    split: SplitName | None = None
    """To adapt to: held-out or training goals; default: test, or train for a task that is trained on alone."""
    goal: int = 0
    """To adapt to: number of the goal, from 0, in upstream's order, or elsewhere in that drawn with --seed."""
    seed: int = 0
    """Seed for environments and actions while it adapts."""
    tasks: str | None = None
    """Another distribution with the same spaces, by id or module:attribute."""
    agent: str | None = None
    """For a script's run whose config.json does not name its agent: a name, or module:attribute of its config."""
    trust_tasks: bool = False
    """Import the modules that the run's config.json names for its tasks and agent, which runs their code."""
    checkpoint: Path | None = None
    """A checkpoint file; default: the newest."""
    best: bool = False
    """Take the checkpoint with the best training return."""


def export(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    # What the user's own modules and environments do, to change the working directory for one, comes after this.
    here = Path.cwd()
    options = tyro.cli(ExportOptions, args=words, prog="metarl export")
    require_sound(
        goal=options.goal,
        seed=options.seed,
        num_adaptations=options.num_adaptations,
        checkpoint=options.checkpoint,
        best=options.best,
    )
    # What cannot be written must fail before episodes are played.
    check_format(options.file)
    this = Experiment.open(options.run, agent=options.agent, tasks=options.tasks, trust=options.trust_tasks)
    this = this.on("cpu")
    has_memory = this.agent_config.adapts_by == "episode"
    _check_memory_options(options, has_memory, this.name)
    distribution = this.seen(load_distribution(options.tasks)) if options.tasks else this.distribution
    agent, iteration = this.load(
        this.best_checkpoint if options.best else options.checkpoint and here / options.checkpoint
    )
    require_same_spaces(agent, distribution)
    if (bounds := distribution.action_bounds) != (trained := this.distribution.action_bounds):
        raise ConfigError(
            f"{this.name} was trained on actions in {trained}, but those of {distribution.id} lie in {bounds}: the "
            "same choice of the agent is another action there. Leave out --tasks, or take tasks with the same bounds."
        )
    state: Any = agent.begin(1)
    number = agent.num_eval_adaptations if options.num_adaptations is None else options.num_adaptations
    knowing = "with a memory that knows nothing yet" if has_memory else "before adaptation"
    if number and not has_memory:
        task, name = choose_task(
            distribution, name=options.task, split=options.split, goal=options.goal, seed=options.seed, stream="export"
        )
        state, cost = _adapted(agent, distribution, task, number, options.seed)
        steps = f"{number} gradient step{'' if number == 1 else 's'}"
        knowing = f"after {steps} on {name}, which cost {cost:,} environment steps"
    export_step(agent, state, distribution.spaces[1], here / options.file, sample=options.sample)
    console.print(
        f"{escape(this.name)}, iteration {iteration}, {escape(knowing)}: {escape(shown(here / options.file))}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _check_memory_options(options: ExportOptions, has_memory: bool, name: str) -> None:
    """Refuse options that would do nothing."""
    default = ExportOptions(options.run, options.file)
    for option in ("num_adaptations", "task", "split", "goal", "seed"):
        if has_memory and getattr(options, option) != getattr(default, option):
            raise ConfigError(
                f"{name} adapts by its memory, which the file takes and returns at every step; leave out "
                f"--{option.replace('_', '-')}."
            )


def _adapted(agent: Agent[Any], distribution: TaskDistribution, task: Task, number: int, seed: int) -> tuple[Any, int]:
    """The agent's state after ``number`` adaptations to ``task``, and the environment steps that they cost."""
    collector = Collector(distribution, agent.rollouts_per_task, agent.device)
    try:
        trial = run_trial(agent, collector, [task], number - 1, seed)
    finally:
        collector.close()
    state = agent.begin(1)
    for rollout in trial.rollouts:
        state = agent.adapt(state, rollout)
    return state, trial.num_env_steps
