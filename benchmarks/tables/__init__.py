"""Tables of papers that ``metarl reproduce`` runs: one file each, whose ``TABLE`` is a ``PaperTable`` of its name."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from metarl.benchmarks.reproduce.table import PaperTable
from metarl.errors import unknown_name


def table_names() -> list[str]:
    """Names of all tables."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load_table(name: str) -> PaperTable:
    """The table of a name.

    Raises:
        ConfigError: for an unknown name, or a table that contradicts itself.
    """
    if name not in table_names():
        raise unknown_name("table", name, table_names())
    table: PaperTable = import_module(f"{__name__}.{name.replace('-', '_')}").TABLE
    table.check()
    return table
