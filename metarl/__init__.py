"""Meta-reinforcement learning on Gymnasium and Meta-World.

Public names are imported when they are first used: worker processes import metarl too, and need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarl.agent import Agent as Agent
    from metarl.agent import AgentConfig as AgentConfig
    from metarl.collector import Collector as Collector
    from metarl.config import TrainConfig as TrainConfig
    from metarl.evaluator import Evaluation as Evaluation
    from metarl.evaluator import evaluate as evaluate
    from metarl.run_folder import RunFolder as RunFolder
    from metarl.tasks import TaskDistribution as TaskDistribution
    from metarl.tasks import register as register
    from metarl.trainer import train as train
    from metarl.trial import run_trial as run_trial
    from metarl.types import Action as Action
    from metarl.types import Rollout as Rollout
    from metarl.types import Spec as Spec
    from metarl.types import Timestep as Timestep
    from metarl.types import Trial as Trial

_HOMES = {
    "Action": "metarl.types",
    "Agent": "metarl.agent",
    "AgentConfig": "metarl.agent",
    "Collector": "metarl.collector",
    "Evaluation": "metarl.evaluator",
    "Rollout": "metarl.types",
    "RunFolder": "metarl.run_folder",
    "Spec": "metarl.types",
    "TaskDistribution": "metarl.tasks",
    "Timestep": "metarl.types",
    "TrainConfig": "metarl.config",
    "Trial": "metarl.types",
    "evaluate": "metarl.evaluator",
    "register": "metarl.tasks",
    "run_trial": "metarl.trial",
    "train": "metarl.trainer",
}

__all__ = [*_HOMES, "make"]


def make(task_id: str) -> TaskDistribution:
    """The task distribution called ``task_id``: one of metarl's families, or one that was registered.

    Raises:
        ConfigError: for an unknown id, with the nearest match and all valid ones.
    """
    importlib.import_module("metarl.envs")  # Registers the families.
    from metarl import tasks

    return tasks.make(task_id)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'metarl' has no attribute {name!r}; it has {', '.join(sorted(__all__))}.")
    return getattr(importlib.import_module(_HOMES[name]), name)
