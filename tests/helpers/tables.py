"""A small table of a paper whose cells are numbers that are known, for ``metarl reproduce``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from metarl.benchmarks.engines import Report
from metarl.benchmarks.papers import Published
from metarl.benchmarks.reproduce.table import PaperTable, Source, TableCell
from metarl.errors import ConfigError
from metarl.runs.folder import surroundings
from metarl.statistics import Float


@dataclass(frozen=True)
class Known(Source):
    """Scores around a mean; one above 100 fails."""

    mean: float
    trained: ClassVar[bool] = False

    def steps(self, fraction: float) -> int:
        """As many as tasks."""
        return round(400 * fraction)

    @property
    def kind(self) -> str:
        """All alike."""
        return "known"

    def speed(self, seconds: float) -> float:
        """Ten steps a second."""
        return 10.0

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any] | None:
        """Write down that it ran."""
        if self.mean > 100:
            raise ConfigError("the mean is above 100.")
        with (runs / "ran.txt").open("a") as file:
            file.write(f"{self.mean:g} seed {seed}\n")
        rng = np.random.default_rng([seed, round(10 * self.mean)])
        report("drawing", 1, 1)
        values = self.mean + rng.normal(0.0, 1.0, self.steps(fraction))
        return {"values": values.tolist(), "manifest": surroundings(torch.device("cpu"))}

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """The numbers."""
        return np.asarray(content["values"], np.float64)

    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """Where they lie."""
        return f"around {self.mean:g}"


@dataclass(frozen=True)
class Trained(Known):
    """The same, of something that is trained."""

    trained: ClassVar[bool] = True


@dataclass(frozen=True)
class Twice(Known):
    """A run that two cells read: the numbers, and twice the numbers."""

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """The numbers, ``once`` or ``twice``."""
        return np.asarray(content["values"], np.float64) * {"once": 1.0, "twice": 2.0}[measure]


@dataclass(frozen=True)
class Stopped(Source):
    """Interrupted as long as a file called ``stop`` is among the runs."""

    trained: ClassVar[bool] = True

    def steps(self, fraction: float) -> int:
        """Fewer than of the others, so that it is the last."""
        return 1

    @property
    def kind(self) -> str:
        """Alone."""
        return "stopped"

    def speed(self, seconds: float) -> float:
        """One step a second."""
        return 1.0

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any] | None:
        """None, as training that Ctrl-C has ended."""
        return None if (runs / "stop").exists() else Known(4.0).run(seed, fraction, runs, report)

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """The numbers."""
        return Known(4.0).values(content, measure)

    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """Nothing."""
        return ""


def published(value: float, half_interval: float | None = None, at_least: bool = False) -> Published:
    """A number of a paper."""
    return Published(
        "Paper",
        "1234.5678",
        "Table 1",
        "tasks",
        "",
        "method",
        "score",
        value,
        at_least,
        0.05,
        half_interval,
        "high",
        "its text",
    )


def small_table(version: int = 1, **changed: Any) -> PaperTable:
    """Two rows of two columns: within and above, below and on request."""
    cells = (
        TableCell("easy", "one", Known(5.0), (1, 2), published(5.0)),
        TableCell("easy", "two", Known(7.0), (1,), published(6.0)),
        TableCell("hard", "one", Known(3.0), (1,), published(4.0, 0.1)),
        TableCell("hard", "two", Trained(9.0), (1,), published(9.0), on_request=True),
    )
    content = {
        "name": "small",
        "title": "A small table",
        "about": "Numbers that are known.",
        "cells": cells,
        "metric": "score",
        "version": version,
        "small": 0.25,
        "published_tasks": 100,
        "notes": {"easy/two": "the paper's dice were loaded."},
    }
    return PaperTable(**{**content, **changed})
