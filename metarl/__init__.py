"""Meta-reinforcement learning on Gymnasium and Meta-World.

Public names are imported when they are first used: worker processes import metarl too, and need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarl.agent import Agent as Agent
    from metarl.agent import AgentConfig as AgentConfig
    from metarl.config import TrainConfig as TrainConfig
    from metarl.deployment.learner import OnlineLearner as OnlineLearner
    from metarl.deployment.trained import TrainedAgent as TrainedAgent
    from metarl.evaluation.evaluator import Evaluation as Evaluation
    from metarl.evaluation.evaluator import evaluate as evaluate
    from metarl.experiments.loading import load as load
    from metarl.rollouts.collector import Collector as Collector
    from metarl.rollouts.trial import run_trial as run_trial
    from metarl.runs.folder import RunFolder as RunFolder
    from metarl.tasks import TaskDistribution as TaskDistribution
    from metarl.tasks import make as make
    from metarl.tasks import register as register
    from metarl.trainer import train as train
    from metarl.types import Action as Action
    from metarl.types import Rollout as Rollout
    from metarl.types import Spec as Spec
    from metarl.types import Timestep as Timestep
    from metarl.types import Trial as Trial
    from metarl.version import __version__ as __version__

_HOMES = {
    "Action": "metarl.types",
    "Agent": "metarl.agent",
    "AgentConfig": "metarl.agent",
    "Collector": "metarl.rollouts.collector",
    "Evaluation": "metarl.evaluation.evaluator",
    "OnlineLearner": "metarl.deployment.learner",
    "Rollout": "metarl.types",
    "RunFolder": "metarl.runs.folder",
    "Spec": "metarl.types",
    "TaskDistribution": "metarl.tasks",
    "Timestep": "metarl.types",
    "TrainConfig": "metarl.config",
    "TrainedAgent": "metarl.deployment.trained",
    "Trial": "metarl.types",
    "evaluate": "metarl.evaluation.evaluator",
    "load": "metarl.experiments.loading",
    "make": "metarl.tasks",
    "register": "metarl.tasks",
    "run_trial": "metarl.rollouts.trial",
    "train": "metarl.trainer",
    "__version__": "metarl.version",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'metarl' has no attribute {name!r}; it has {', '.join(sorted(__all__))}.")
    return getattr(importlib.import_module(_HOMES[name]), name)
