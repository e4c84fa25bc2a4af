"""What the toolkit's speed is made of, in one run: ``OMP_NUM_THREADS=1 python -m metarl.benchmarks.speed``.

``--only`` runs one part, and each part's settings bear its name (``--metaworld.steps``); ``--help`` lists them all. On
a GPU the same command prints the same tables, with the time of device and host apart. Absolute figures drift between
machines; trust the ratios.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from typing import Literal

import torch
import tyro
from rich.console import Console

from metarl.benchmarks.speed import acting as acting_speed
from metarl.benchmarks.speed import fewshot as fewshot_speed
from metarl.benchmarks.speed import meta_update as update_speed
from metarl.benchmarks.speed import metaworld as metaworld_speed
from metarl.benchmarks.speed import rl2 as rl2_speed
from metarl.benchmarks.speed import training as training_speed
from metarl.benchmarks.speed.measure import Clock
from metarl.benchmarks.speed.meta_update import UpdateSpeed
from metarl.benchmarks.speed.metaworld import MetaWorldSpeed
from metarl.errors import ConfigError, told_errors

QUICK_METAWORLD = MetaWorldSpeed(num_envs=10, cores=(1,), steps=2, rounds=1, build=False)


@dataclass(frozen=True)
class Speed:
    """Settings of all parts."""

    only: Literal["meta-update", "acting", "rl2", "fewshot", "metaworld", "training"] | None = None
    """One part alone."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where agents compute; auto takes a GPU if there is one."""
    clock: Clock = "wall"
    """On a busy machine ``cpu`` counts what this process computed instead."""
    quick: bool = False
    """Sizes that take seconds, to see that everything runs; their ratios mean nothing."""
    update: UpdateSpeed = field(default_factory=UpdateSpeed)
    """Meta-updates."""
    metaworld: MetaWorldSpeed = field(default_factory=MetaWorldSpeed)
    """How fast Meta-World steps."""

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is 'cuda', but PyTorch sees no GPU; use cpu or auto.")


def run(settings: Speed, console: Console) -> None:
    """Run the parts and print their tables."""
    cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    device, clock, quick = torch.device("cuda" if cuda else "cpu"), settings.clock, settings.quick
    hardware = torch.cuda.get_device_name() if cuda else platform.machine()
    console.print(
        f"PyTorch {torch.__version__}, {hardware}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, "
        f"{clock} time, load average {os.getloadavg()[0]:.1f}"
    )
    if settings.only in (None, "meta-update"):
        update_speed.run(settings.update, console, clock, device, quick)
    if settings.only in (None, "acting"):
        acting_speed.run(console, clock, device, quick)
    if settings.only in (None, "rl2"):
        rl2_speed.run(console, clock, device, quick)
    if settings.only in (None, "fewshot"):
        fewshot_speed.run(console, clock, device, quick)
    if settings.only in (None, "metaworld"):
        metaworld_speed.run(QUICK_METAWORLD if quick else settings.metaworld, console)
    if settings.only in (None, "training"):
        training_speed.run(console, quick)


@told_errors()
def main() -> None:
    """Run with settings from the command line."""
    run(tyro.cli(Speed, description=__doc__), Console(width=150))


if __name__ == "__main__":
    main()
