"""ML1: one agent on one task of Meta-World, new goals, by the official protocol.

``python -m metarl.benchmarks.ml1 --task reach-v3 --agent rl2 --seeds 1 2 3`` trains what is missing and writes scores,
table and curves to ``benchmarks/results/ml1-<task>``. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from metarl.benchmarks.metaworld.runs import run
from metarl.envs.metaworld import TASK_NAMES
from metarl.errors import told_errors, unknown_name


@told_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task", default="reach-v3")
    known, words = first.parse_known_args(sys.argv[1:] if arguments is None else list(arguments))
    if known.task not in TASK_NAMES:
        raise unknown_name("Meta-World task", known.task, TASK_NAMES)
    command = f"metarl.benchmarks.ml1 --task {known.task}"
    run(words, f"ml1/{known.task}", f"ml1 --task {known.task}", command, ("test",))


if __name__ == "__main__":
    main()
