"""ML1: one agent on one task of Meta-World, new goals, by the official protocol.

``python -m metarl.benchmarks.ml1 --task reach-v3 --agent rl2 --seeds 1 2 3`` trains what is missing and writes scores,
table and curves to ``benchmarks/results/ml1-<task>``. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from metarl.benchmarks.metaworld_runs import parse, train_cells
from metarl.envs.metaworld import TASK_NAMES
from metarl.errors import MetarlError, unknown_name


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task", default="reach-v3")
    known, words = first.parse_known_args(sys.argv[1:] if arguments is None else list(arguments))
    try:
        if known.task not in TASK_NAMES:
            raise unknown_name("Meta-World task", known.task, TASK_NAMES)
        options, cells = parse(words, f"ml1/{known.task}", f"ml1 --task {known.task}")
        train_cells(cells, options)
    except MetarlError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
