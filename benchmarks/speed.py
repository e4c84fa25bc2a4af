"""What the toolkit's speed is made of, in one run: ``OMP_NUM_THREADS=1 python -m metarl.benchmarks.speed``.

``--only`` runs one part, and each part's settings bear its name (``--metaworld.steps``); ``--help`` lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import tyro
from rich.console import Console

from metarl.benchmarks import metaworld_speed
from metarl.benchmarks.metaworld_speed import MetaWorldSpeed


@dataclass(frozen=True)
class Speed:
    """Settings of all parts."""

    only: Literal["metaworld"] | None = None
    """One part alone."""
    metaworld: MetaWorldSpeed = field(default_factory=MetaWorldSpeed)
    """How fast Meta-World steps."""


def main() -> None:
    """Run the parts and print their tables."""
    settings = tyro.cli(Speed, description=__doc__)
    console = Console(width=120)
    metaworld_speed.run(settings.metaworld, console)


if __name__ == "__main__":
    main()
