"""ML10: ten tasks of Meta-World to train on, five to test on: ``python -m metarl.benchmarks.ml10``.

A name for the table ``metaworld-ml10``; the options are those of ``metarl reproduce``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metarl.cli.reproduce import reproduce_named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table; returns the exit status."""
    return reproduce_named("metaworld-ml10", arguments)


if __name__ == "__main__":
    sys.exit(main())
