"""ML1: one agent on one task of Meta-World, new goals, by the official protocol.

``python -m metarl.benchmarks.ml1 --task reach-v3 --agent rl2 --seeds 1 2 3`` trains what is missing and writes scores,
table and curves to ``benchmarks/results/ml1-<task>``. Interrupted, the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from metarl.benchmarks.metaworld.runs import run
from metarl.envs.metaworld import TASK_NAMES
from metarl.errors import told_errors, unknown_name


@dataclass(frozen=True)
class Chosen:
    """What decides which tasks there are; parsed first."""

    task: str = "reach-v3"
    """Task of Meta-World."""


@told_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    chosen, words = tyro.cli(Chosen, args=words, prog="ml1", return_unknown_args=True, add_help=False)
    if chosen.task not in TASK_NAMES:
        raise unknown_name("Meta-World task", chosen.task, TASK_NAMES)
    command = f"metarl.benchmarks.ml1 --task {chosen.task}"
    run(words, f"ml1/{chosen.task}", f"ml1 --task {chosen.task}", command, ("test",))


if __name__ == "__main__":
    main()
