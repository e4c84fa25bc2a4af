"""Whether this machine has cores to spare for torch's threads."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import torch

_TIMES = Path("/proc/stat")
_SECONDS = 0.2
"""Long enough for twenty ticks of each core's clock, too short to be noticed at the start of a run."""


def warn_if_crowded() -> None:
    """Warn if other processes keep cores busy that torch's threads are to compute on.

    Threads wait for each other after every product, and the last one waits for a core: training slows down many times
    over, where one thread would lose next to nothing. Threads change the rounding, so that it is for the user to say.
    """
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if threads == 1 or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        return
    busy = _busy_cores(cores)
    if busy is not None and busy + threads > cores + 0.5:
        warnings.warn(
            f"other processes keep {busy:.1f} of {cores} cores busy, and torch computes with {threads} threads, which "
            "wait for each other at every product: that can take thirty times as long as one thread. Set "
            "OMP_NUM_THREADS=1, or OMP_WAIT_POLICY=passive to keep the threads.",
            RuntimeWarning,
            stacklevel=3,
        )


def _busy_cores(cores: int) -> float | None:
    """How many cores are busy while this thread sleeps; None where the system does not tell."""
    try:
        before = _ticks()
        time.sleep(_SECONDS)
        after = _ticks()
    except (OSError, ValueError, IndexError):
        return None
    idle, total = after[0] - before[0], after[1] - before[1]
    return cores * (1.0 - idle / total) if total > 0 else None


def _ticks() -> tuple[int, int]:
    """Those in which cores were idle or waited for a disk, and all, since the machine started."""
    name, *ticks = _TIMES.read_text().splitlines()[0].split()[:9]
    if name != "cpu":
        raise ValueError(f"{_TIMES} begins with {name!r}.")
    numbers = [int(number) for number in ticks]
    return numbers[3] + numbers[4], sum(numbers)
