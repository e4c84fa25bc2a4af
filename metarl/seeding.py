"""Every random number in metarl comes from a stream that is named, not from one that is continued.

A stream is a function of (seed, purpose, counters): iteration 17 draws the same numbers whether or not the
process was restarted at iteration 12, and an evaluation never disturbs training. Resuming exactly therefore
needs the counters alone.

Streams of a batch are counter-based: number ``n`` of a row is a hash of (the row's key, ``n``), so that a whole batch
is drawn as one array operation, and what a row draws does not depend on the rows beside it.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

GAMMA = 0x9E3779B97F4A7C15
"""SplitMix64's step from one number of a stream to the next: 2**64 divided by the golden ratio, odd."""


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


def hashed(counters: UInt64) -> UInt64:
    """SplitMix64's output function (Steele, Lea, Flood, 2014, "Fast splittable pseudorandom number generators").

    Args:
        counters: ``[...]``; key + n * GAMMA gives number ``n`` of the stream of a key.

    Returns:
        ``[...]`` uniform 64-bit numbers.
    """
    with np.errstate(over="ignore"):
        z = (counters ^ (counters >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def row_keys(seed: int, rows: UInt64) -> UInt64:
    """A key for each of the streams ``rows`` ``[...]`` under ``seed``: a function of the row's number alone."""
    with np.errstate(over="ignore"):
        return hashed(hashed(np.uint64(seed) + rows * np.uint64(GAMMA)) + np.uint64(GAMMA))


@contextlib.contextmanager
def torch_stream(seed: int, *path: str | int) -> Iterator[None]:
    """Run a block with torch's global CPU generator on the named stream, then put the old state back.

    For parameter initialisation, where ``torch.nn`` offers no generator argument.
    """
    import torch  # Here, since environments draw their seeds in worker processes that need no torch.

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, *path))
        yield
