"""Where distributions of tasks are found: by id, or as ``module:attribute``."""

from __future__ import annotations

import importlib
import re

import gymnasium as gym

from metarl.errors import ConfigError, folded, unknown_name
from metarl.plugins import find_attribute, is_module, load_attribute
from metarl.tasks.distribution import TaskDistribution

_BUILT_IN = "metarl.envs"
"""Importing this package registers metarl's own families. It is named, not imported: families build on this module."""

_REGISTRY: dict[str, TaskDistribution] = {}
_BUILT_IN_IDS: set[str] = set()


def register(distribution: TaskDistribution, *, built_in: bool = False) -> TaskDistribution:
    """Make ``distribution`` known by its id to :func:`make` and the command line.

    Args:
        distribution: tasks under an id that no others have.
        built_in: metarl registers it in every process, so that its id alone finds it again.

    Raises:
        ConfigError: if another distribution has that id.
    """
    known = _REGISTRY.setdefault(distribution.id, distribution)
    if known is not distribution:
        raise ConfigError(f"a task distribution with the id {distribution.id!r} is registered already.")
    if built_in:
        _BUILT_IN_IDS.add(distribution.id)
    return distribution


def make(task_id: str) -> TaskDistribution:
    """The registered distribution called ``task_id``.

    Raises:
        ConfigError: for an unknown id, with the nearest match and all valid ones; for that of an environment, with
            what makes tasks of it.
    """
    known = registered()
    if task_id not in known:
        if re.search(r"-v\d+$", task_id) and not any(name.endswith(f"/{task_id}") for name in known):
            raise ConfigError(
                f"{task_id!r} is the id of one Gymnasium environment, not a distribution of tasks, to which it must be "
                "said what varies between them. metarl.envs.gymnasium_tasks makes one of it; docs/environments.md "
                f"shows how. Built-in ones: {', '.join(folded(sorted(known)))}."
            )
        raise unknown_name("task distribution", task_id, known)
    return known[task_id]


def registered() -> dict[str, TaskDistribution]:
    """All registered distributions by id, metarl's own among them."""
    importlib.import_module(_BUILT_IN)
    return dict(_REGISTRY)


def load_distribution(name: str) -> TaskDistribution:
    """A registered distribution by id, or one of the user's own as ``module:attribute`` (seen from this folder).

    Raises:
        ConfigError: for an unknown id, a module that cannot be imported, or an attribute of another kind.
    """
    if ":" not in name:
        try:
            return make(name)
        except ConfigError as error:
            raise ConfigError(f"{error} {_hint(name)}") from None
    distribution = load_attribute(name, "TaskDistribution", lambda value: isinstance(value, TaskDistribution))
    assert isinstance(distribution, TaskDistribution)
    return distribution


def _hint(name: str) -> str:
    """What somebody may have meant by an unknown id."""
    if name in gym.registry:
        return (
            f"{name} is a single environment of Gymnasium; a module of yours makes tasks of it, by "
            "metarl.envs.gymnasium_tasks or TaskDistribution, and then they are called module:attribute."
        )
    module = name.removesuffix(".py")
    if is_module(module):
        return f"There is a module {module}: tasks that it defines are called {module}:attribute."
    return "Tasks of your own: module:attribute, e.g. my_tasks:pendulums."


def distribution_name(distribution: TaskDistribution) -> str:
    """The name by which :func:`load_distribution` finds ``distribution`` again, in this process or another one.

    Raises:
        ConfigError: if it is neither metarl's own nor held by a module that can be imported.
    """
    if registered().get(distribution.id) == distribution and distribution.id in _BUILT_IN_IDS:
        return distribution.id
    name = find_attribute(distribution)
    if name is None:
        raise ConfigError(
            f"the distribution {distribution.id!r} is not one of metarl's own, and no module that can be imported "
            "from this folder holds it"
        )
    return name
