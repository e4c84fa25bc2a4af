"""Where distributions of tasks are found: by id, or as ``module:attribute``."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from metarl.errors import ConfigError, unknown_name
from metarl.tasks.distribution import TaskDistribution

_BUILT_IN = "metarl.envs"
"""Importing this package registers metarl's own families. It is named, not imported: families build on this module."""

_REGISTRY: dict[str, TaskDistribution] = {}


def register(distribution: TaskDistribution) -> TaskDistribution:
    """Make ``distribution`` known by its id to :func:`make` and the command line.

    Raises:
        ConfigError: if another distribution has that id.
    """
    known = _REGISTRY.setdefault(distribution.id, distribution)
    if known is not distribution:
        raise ConfigError(f"a task distribution with the id {distribution.id!r} is registered already.")
    return distribution


def make(task_id: str) -> TaskDistribution:
    """The registered distribution called ``task_id``.

    Raises:
        ConfigError: for an unknown id, with the nearest match and all valid ones.
    """
    known = registered()
    if task_id not in known:
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
            raise ConfigError(f"{error} Tasks of your own: module:attribute, e.g. my_tasks:pendulums.") from None
    module_name, attribute = name.split(":", 1)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    expected = f"expected module:attribute, with the module in {os.getcwd()} or installed"
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"{module_name!r} of {name!r} is not a module's name; {expected}.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"cannot import the module {module_name!r} of {name!r}; {expected}.") from error
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"the module {module_name!r} of {name!r} failed while it was imported: {type(error).__name__}: {error} "
            f"({place.filename}, line {place.lineno})."
        ) from error
    found = [key for key, value in vars(module).items() if isinstance(value, TaskDistribution)]
    if attribute not in found:
        kind = type(getattr(module, attribute)).__name__ if hasattr(module, attribute) else "nothing"
        raise ConfigError(
            f"{name!r}: expected a TaskDistribution, found {kind}. "
            f"Distributions in {module_name}: {', '.join(found) or 'none'}."
        )
    distribution = getattr(module, attribute)
    assert isinstance(distribution, TaskDistribution)
    return distribution
