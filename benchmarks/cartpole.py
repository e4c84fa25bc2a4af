"""CartPole variants: ``python -m metarl.benchmarks.cartpole``.

A name for the table ``cartpole``; the options are those of ``metarl reproduce``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metarl.cli.reproduce import reproduce_named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table; returns the exit status."""
    return reproduce_named("cartpole", arguments)


if __name__ == "__main__":
    sys.exit(main())
