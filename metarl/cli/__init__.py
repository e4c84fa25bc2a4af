"""The command line: train, evaluate, plot, render, export, models, list, check, reproduce."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Args:
        arguments: words of the command; default: those of the process.
    """
    try:
        # Loading torch takes seconds, in which Ctrl-C must not print a traceback either.
        from metarl.cli.entry import main as run
    except KeyboardInterrupt:
        print("interrupted before anything began.", file=sys.stderr)
        return 130
    return run(arguments)
