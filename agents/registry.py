"""Where agents are found: by the names that the command line knows, or as ``module:attribute``."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.errors import ConfigError, unknown_name
from metarl.plugins import attribute_name, load_attribute


def load_agent(name: str) -> type[AgentConfig]:
    """The config class of an agent: one in :data:`AGENTS`, or a user's own as ``module:attribute``.

    Raises:
        ConfigError: for an unknown name, a module that cannot be imported, an attribute of another kind, or a class
            whose fields cannot be read or lack defaults.
    """
    if ":" not in name:
        if name not in AGENTS:
            error = unknown_name("agent", name, AGENTS)
            raise ConfigError(f"{error} Agents of your own: module:attribute, e.g. my_agents:MyConfig.")
        return AGENTS[name]
    kind: type[AgentConfig] = load_attribute(name, "concrete subclass of AgentConfig", _is_agent_config)
    if "__annotations__" in vars(kind) and "__dataclass_fields__" not in vars(kind):
        raise ConfigError(f"{name!r}: its fields need the decorator @dataclasses.dataclass(frozen=True) on the class.")
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if required:
        raise ConfigError(f"{name!r}: every field needs a default, and these have none: {', '.join(required)}.")
    return kind


def agent_name(config: AgentConfig) -> str:
    """The name by which :func:`load_agent` finds the class of ``config`` again, in this process or another one.

    Raises:
        ConfigError: if its class is neither metarl's own nor held by a module that can be imported.
    """
    kind = type(config)
    for name, known in AGENTS.items():
        if known is kind:
            return name
    module = sys.modules.get(kind.__module__)
    own = attribute_name(kind.__module__, kind.__name__) if getattr(module, kind.__name__, None) is kind else None
    if own is None:
        raise ConfigError(
            f"the class {kind.__qualname__} is not held by a module that can be imported from this folder"
        )
    return own


def _is_agent_config(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, AgentConfig) and not inspect.isabstract(value)
