"""Where agents are found: by the names that the command line knows, or as ``module:attribute``."""

from __future__ import annotations

from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.plugins import config_name, load_config


def load_agent(name: str) -> type[AgentConfig]:
    """The config class of an agent: one in :data:`AGENTS`, or a user's own as ``module:attribute``.

    Raises:
        ConfigError: see :func:`metarl.plugins.load_config`.
    """
    return load_config(name, AGENTS, AgentConfig, "agent", "my_agents:MyConfig")  # type: ignore[type-abstract]


def agent_name(config: AgentConfig) -> str:
    """The name by which :func:`load_agent` finds the class of ``config`` again, in this process or another one.

    Raises:
        ConfigError: if its class is neither metarl's own nor held by a module that can be imported.
    """
    return config_name(config, AGENTS)
