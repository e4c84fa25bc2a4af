"""ML1: agents on one task of Meta-World, new goals: ``python -m metarl.benchmarks.ml1 --task reach-v3``.

A name for the rows of a task in the table ``metaworld-ml1``; the other options are those of ``metarl reproduce``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from metarl.benchmarks.tables import load_table
from metarl.cli.reproduce import reproduce_named
from metarl.errors import told_errors, unknown_name

_TABLE = "metaworld-ml1"


@dataclass(frozen=True)
class Chosen:
    """What is parsed before the options of ``metarl reproduce``."""

    task: str = "reach-v3"
    """Task of Meta-World."""


@told_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    chosen, words = tyro.cli(Chosen, args=words, prog="ml1", return_unknown_args=True, add_help=False)
    tasks = list(dict.fromkeys(row.partition(",")[0] for row in load_table(_TABLE).rows))
    if chosen.task not in tasks:
        raise unknown_name(f"task of the table {_TABLE}", chosen.task, tasks)
    return reproduce_named(_TABLE, words, [f"{chosen.task}, *"])


if __name__ == "__main__":
    sys.exit(main())
