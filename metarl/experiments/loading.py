"""From a run's folder to an agent that is of use."""

from __future__ import annotations

from pathlib import Path

from metarl.config import Device
from metarl.deployment.trained import TrainedAgent
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import require_same_spaces
from metarl.experiments.experiment import Experiment
from metarl.tasks.registry import load_distribution


def load(
    run: Path | str,
    *,
    checkpoint: Path | str | None = None,
    best: bool = False,
    tasks: str | None = None,
    agent: str | None = None,
    trust_tasks: bool = False,
    device: Device | None = None,
) -> TrainedAgent:
    """The trained agent of a run, with its tasks' spaces; what ``metarl evaluate RUN`` accepts.

    Args:
        run: the run's folder, or ``"model:NAME"`` for a published model (``metarl models``).
        checkpoint: a checkpoint file; default: the newest.
        best: take the checkpoint with the best training return.
        tasks: another distribution with the same spaces, by id or module:attribute; a script's run whose config.json
            does not name its tasks needs them.
        agent: for a script's run whose config.json does not name its agent: a name, or module:attribute of its config.
        trust_tasks: import the modules that the run's config.json names for its tasks and agent, which runs their code.
        device: where networks run; default: as in training.

    Raises:
        ConfigError: if there is no run, or its config.json does not say what it needs to; for a module that may not be
            imported, saying what to do; for a device that this machine lacks.
        CheckpointError: if there is no checkpoint, or it is damaged or of another run.
    """
    if best and checkpoint is not None:
        raise ConfigError(f"best=True and checkpoint={str(checkpoint)!r} name two checkpoints; give one of them.")
    this = Experiment.open(run, agent=agent, tasks=tasks, trust=trust_tasks)
    if device is not None:
        this = this.on(device)
    distribution = this.seen(load_distribution(tasks)) if tasks else this.distribution
    path = this.best_checkpoint if best else checkpoint
    found, iteration = this.load(None if path is None else Path(path))
    require_same_spaces(found, distribution)
    observations, actions = distribution.spaces
    return TrainedAgent(found, observations, actions, iteration)
