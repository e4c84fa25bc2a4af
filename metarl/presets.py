"""Presets: the settings in which an agent differs from its defaults on a family of tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.config import TrainConfig, from_dict
from metarl.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Preset:
    """Fields that differ from the defaults.

    Attributes:
        train: of :class:`TrainConfig`.
        agent: of the agent's config.
        source: where the settings come from.
    """

    source: str
    train: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)


_CARTPOLE_MAML = Preset(
    "chosen on training tasks for 2 CPU cores",
    {"num_iterations": 60, "meta_batch_size": 10, "eval_every": 15},
    {"hidden_sizes": (32, 32), "inner_lr": 0.5, "extra_step_factor": 0.25},
)
_CARTPOLE_RL2 = Preset(
    "chosen on training tasks for 2 CPU cores",
    {"num_iterations": 50, "meta_batch_size": 100, "eval_every": 10},
    {"hidden_size": 64, "learning_rate": 2e-3},
)
_CARTPOLES = ("cartpole", "cartpole-random", "cartpole-extreme", "cartpole-goal", "cartpole-mirrored")

PRESETS: dict[str, Preset] = {
    **{f"maml-trpo:{task}": _CARTPOLE_MAML for task in _CARTPOLES},
    **{f"{agent}:{task}": _CARTPOLE_MAML for agent in ("pretrained", "oracle") for task in _CARTPOLES},
    **{f"rl2:{task}": _CARTPOLE_RL2 for task in _CARTPOLES},
    "maml-trpo:navigation-2d": Preset(
        "MAML (arXiv 1703.03400) A.2 and its code: meta-batch 20, 20 rollouts, H 100, KL 0.01",
        agent={"activation": "relu"},
    ),
    "rl2:bandit": Preset(
        "RL2 (arXiv 1611.02779): GAE lambda 0.3; batch and epochs scaled down to CPU minutes",
        {"num_iterations": 300, "meta_batch_size": 1000, "eval_tasks": 1000, "eval_every": 50},
        {
            "hidden_size": 64,
            "episodes_per_trial": 1,
            "gae_lambda": 0.3,
            "learning_rate": 1e-3,
            "normalise_obs": False,
            "normalise_rewards": False,
        },
    ),
    "rl2:tabular-mdp": Preset(
        "RL2 (arXiv 1611.02779): GAE lambda 0.3, 10 episodes; batch scaled down to the CPU",
        {"num_iterations": 300, "meta_batch_size": 200, "eval_tasks": 200, "eval_every": 50},
        {"episodes_per_trial": 10, "gae_lambda": 0.3, "learning_rate": 1e-3},
    ),
}


def settings(agent: str, tasks: str, preset: str | None = None) -> tuple[TrainConfig, AgentConfig]:
    """The settings of ``agent`` on ``tasks``: the preset of this pair if there is one, else the agent's defaults.

    Args:
        agent: a name in :data:`metarl.agents.AGENTS`.
        tasks: a distribution's id.
        preset: take this preset instead, e.g. ``"maml-trpo:navigation-2d"`` for tasks of one's own.

    Raises:
        ConfigError: for an unknown agent or preset, or a preset of another agent.
    """
    if agent not in AGENTS:
        raise unknown_name("agent", agent, AGENTS)
    choices = [name for name in PRESETS if name.split(":")[0] == agent]
    if preset is not None and preset not in choices:
        raise unknown_name(f"preset of {agent}", preset, choices)
    chosen = PRESETS.get(preset or f"{agent}:{tasks}", Preset("the agent's defaults"))
    return from_dict(TrainConfig, chosen.train), from_dict(AGENTS[agent].config, chosen.agent)


def to_json(agent: str, tasks: str, train: TrainConfig, config: AgentConfig) -> dict[str, Any]:
    """The resolved config of a run, as it stands in its ``config.json``."""
    return {"agent": agent, "tasks": tasks, "train": dataclasses.asdict(train), agent: dataclasses.asdict(config)}


def from_json(content: Mapping[str, Any]) -> tuple[str, str, TrainConfig, AgentConfig]:
    """Agent, tasks and settings from a run's ``config.json``.

    Raises:
        ConfigError: if something is missing, unknown or of another kind.
    """
    if missing := {"agent", "tasks", "train", content.get("agent", "agent")} - content.keys():
        raise ConfigError(f"config.json lacks {', '.join(sorted(missing))}; it is not that of a run.")
    agent, tasks = content["agent"], content["tasks"]
    if agent not in AGENTS:
        raise unknown_name("agent", agent, AGENTS)
    return agent, tasks, from_dict(TrainConfig, content["train"]), from_dict(AGENTS[agent].config, content[agent])
