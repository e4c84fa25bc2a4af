"""Publish a finished run: ``python -m metarl.benchmarks.models RUN NAME``."""

from __future__ import annotations

import sys

from metarl.benchmarks.models.publish import main

if __name__ == "__main__":
    main(sys.argv[1:])
