"""ML10: one agent on ten tasks of Meta-World, tested on five new ones, by the official protocol.

``python -m metarl.benchmarks.ml10 --agent rl2 --seeds 1`` trains what is missing and writes scores, table and curves to
``benchmarks/results/ml10``. Interrupted, the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metarl.benchmarks.metaworld.runs import run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    words = sys.argv[1:] if arguments is None else arguments
    run(words, "ml10", "ml10", "metarl.benchmarks.ml10", ("train", "test"))


if __name__ == "__main__":
    main()
