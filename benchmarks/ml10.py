"""ML10: one agent on ten tasks of Meta-World, tested on five new ones, by the official protocol.

``python -m metarl.benchmarks.ml10 --agent rl2 --seeds 1`` trains what is missing and writes scores, table and curves to
``benchmarks/results/ml10``. Interrupted, the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metarl.benchmarks.metaworld_runs import parse, train_cells
from metarl.errors import MetarlError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    try:
        options, cells = parse(sys.argv[1:] if arguments is None else arguments, "ml10", "ml10")
        train_cells(cells, options)
    except MetarlError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
