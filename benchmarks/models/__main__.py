"""Publish a finished run: ``python -m metarl.benchmarks.models RUN NAME``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from metarl.benchmarks.models.publish import publish
from metarl.errors import told_errors
from metarl.runs.published import models_folder


@dataclass(frozen=True)
class PublishOptions:
    """Score the agent of RUN on held-out tasks, and write parameters, settings and score into benchmarks/models/NAME.

    Meta-World's agents are scored by its protocol, on every goal; others as metarl evaluate does.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run that is finished, of a tree without changes."""
    name: tyro.conf.Positional[str]
    """What it is called from then on: model:NAME."""
    num_tasks: int = 200
    """Held-out tasks; not for Meta-World."""
    into: Path | None = None
    """Folder of models; default: that of this checkout."""


@told_errors()
def main(arguments: list[str]) -> None:
    """Run with these words of the command line."""
    options = tyro.cli(PublishOptions, args=arguments, prog="python -m metarl.benchmarks.models")
    model = publish(options.run, options.name, options.into or models_folder(), options.num_tasks)
    print(f"{model.folder}: {model.num_bytes / 1000:.0f} kB, {model.score.what} {model.score.last}")


if __name__ == "__main__":
    main(sys.argv[1:])
