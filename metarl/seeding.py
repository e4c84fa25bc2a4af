"""Every random number in metarl comes from a stream that is named, not from one that is continued.

A stream is a function of (seed, purpose, counters): iteration 17 draws the same numbers whether or not the
process was restarted at iteration 12, and an evaluation never disturbs training. Resuming exactly therefore
needs the counters alone.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

import numpy as np


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream named by ``path``; distinct paths give independent streams.

    Args:
        seed: the run's seed, non-negative.
        path: purpose and counters, e.g. ``("tasks", iteration)``.
    """
    spawn_key = tuple(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path)
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=spawn_key)
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def numpy_stream(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for the stream named by ``path``."""
    return np.random.default_rng(derive(seed, *path))


@contextlib.contextmanager
def torch_stream(seed: int, *path: str | int) -> Iterator[None]:
    """Run a block with torch's global CPU generator on the named stream, then put the old state back.

    For parameter initialisation, where ``torch.nn`` offers no generator argument.
    """
    import torch  # Here, since environments draw their seeds in worker processes that need no torch.

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, *path))
        yield
