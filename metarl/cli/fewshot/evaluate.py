"""``metarl fewshot evaluate``: score a run's learner on test tasks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from metarl.cli.fewshot.report import EVALUATION_SEED, evaluate_with_progress, show_scores
from metarl.config import Device, from_dict
from metarl.errors import ConfigError
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.types import EpisodeConfig
from metarl.runs.files import require_writable


@dataclass(frozen=True)
class EvaluateOptions:
    """Score the learner of RUN on test tasks."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    num_tasks: int = 1000
    """Tasks."""
    ways: int | None = None
    """Classes in a task; default: as in training. Others only with learners that compare examples."""
    shots: int | None = None
    """Labelled examples of each class; default: as in training."""
    queries: int | None = None
    """Examples of each class to be predicted; default: as in training."""
    num_adaptations: int | None = None
    """Steps of adaptation; default: what the learner asks for."""
    split: Literal["train", "validation", "test"] = "test"
    """Whose tasks."""
    seed: int = EVALUATION_SEED
    """Seed for the tasks."""
    data: str | None = None
    """Where the data lies now, if not where the run found it."""
    checkpoint: Path | None = None
    """A checkpoint file; default: the newest."""
    best: bool = False
    """Take the checkpoint with the best validation score; of tasks without a validation split, training score."""
    device: Device | None = None
    """Where networks run; default: as in training."""
    learner: str | None = None
    """The run's learner, if it is one of your own: allows its module to be imported."""
    tasks: str | None = None
    """The same for its tasks."""
    trust_tasks: bool = False
    """Import the modules that the run's config.json names, which runs their code."""


def evaluate(words: list[str], console: Console) -> int:
    """Run the command with these words after its name; returns the exit status."""
    # What the user's own modules do, to change the working directory for one, comes after this.
    here = Path.cwd()
    options = tyro.cli(EvaluateOptions, args=words, prog="metarl fewshot evaluate")
    for name, least in (("num_tasks", 2), ("num_adaptations", 0), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be {least} or more, got {value}.")
    if options.seed >= 2**63:
        raise ConfigError(f"--seed must be 0 or more and below 2^63, got {options.seed}.")
    if options.best and options.checkpoint is not None:
        raise ConfigError(f"--best and --checkpoint {options.checkpoint} name two checkpoints; give one of them.")
    this = Experiment.open(
        here / options.run, learner=options.learner, tasks=options.tasks, data=options.data, trust=options.trust_tasks
    )
    require_writable(this.run.path, "Scores are kept with the run: copy it to where files can be written.")
    if options.device is not None:
        this = this.on(options.device)
    setup = this.setup
    if options.seed == setup.train_config.seed:
        raise ConfigError(f"--seed {options.seed} is that of training, whose tasks it would draw again; give another.")
    sizes = {
        name: getattr(options, name) for name in ("ways", "shots", "queries") if getattr(options, name) is not None
    }
    episode = from_dict(EpisodeConfig, sizes, setup.episode)
    setup.tasks.check(options.split, episode)
    checkpoint = this.best_checkpoint if options.best else options.checkpoint and here / options.checkpoint
    learner, iteration = this.load(checkpoint, spec=setup.tasks.spec(episode))
    found = evaluate_with_progress(
        setup,
        learner,
        num_tasks=options.num_tasks,
        seed=options.seed,
        episode=episode,
        split=options.split,
        num_adaptations=options.num_adaptations,
    )
    scored = dataclasses.replace(setup, episode=episode)
    # All that scores depend on, so that no evaluation takes the place of another one.
    name = (
        f"evaluation-{options.split}-{episode.ways}way-{episode.shots}shot-{episode.queries}query"
        f"-{options.num_tasks}tasks-{found.steps[-1]}steps-iteration{iteration}-seed{options.seed}"
    )
    details = {"split": options.split, "seed": options.seed, "iteration": iteration}
    show_scores(scored, {setup.name: found}, this.run.path / name, details, console)
    return 0
