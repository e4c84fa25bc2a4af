"""Agents, one file per algorithm, and the names by which the command line knows them."""

from __future__ import annotations

from dataclasses import dataclass

from metarl.agent import AgentConfig
from metarl.agents.maml import MAMLTRPO, MAMLTRPOConfig
from metarl.agents.references import PretrainedConfig, RandomAgent, RandomConfig
from metarl.agents.rl2 import RL2, RL2Config


@dataclass(frozen=True)
class AgentEntry:
    """A named agent: its settings, and when to choose it."""

    config: type[AgentConfig]
    when: str


AGENTS = {
    "maml-trpo": AgentEntry(MAMLTRPOConfig, "few gradient steps must suffice, and adapting further must not hurt"),
    "rl2": AgentEntry(RL2Config, "tasks must be explored within an episode, and training data is plentiful"),
    "pretrained": AgentEntry(PretrainedConfig, "reference: one policy over all tasks, fine-tuned at test time"),
    "random": AgentEntry(RandomConfig, "reference: uniformly random actions"),
}

__all__ = [
    "AGENTS",
    "MAMLTRPO",
    "RL2",
    "AgentEntry",
    "MAMLTRPOConfig",
    "PretrainedConfig",
    "RL2Config",
    "RandomAgent",
    "RandomConfig",
]
