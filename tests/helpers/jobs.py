"""A job that does what it is told, for engines; it loads little, as every process that runs it does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from metarl.benchmarks.engines import Report
from metarl.errors import ConfigError


def speak(folder: Path, what: str, report: Report) -> bool:
    """Write a file called ``what``, or fail as it says."""
    report("speaking", 1, 2)
    if what == "raise":
        raise ValueError("the milk has turned")
    if what == "refuse":
        raise ConfigError("there is no milk.")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / what).write_text("spoken")
    return what != "stop"
