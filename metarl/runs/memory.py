"""Memory that a run asks for and that a machine has: the system ends who asks for too much without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from metarl.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """One thing that memory holds.

    Attributes:
        what: its name, in the plural.
        settings: those that it grows with, by name.
        num_bytes: what it takes at least.
    """

    what: str
    settings: Mapping[str, object]
    num_bytes: int


def require_available(shares: Sequence[Share], available: int, device: torch.device) -> None:
    """Refuse what cannot fit.

    Args:
        shares: what is asked for.
        available: bytes that are free, see :func:`available_bytes`.
        device: where, for the message.

    Raises:
        ConfigError: naming the settings of the largest share, the estimate and what is available.
    """
    needed = sum(share.num_bytes for share in shares)
    if needed > available:
        largest = max(shares, key=lambda share: share.num_bytes)
        settings = ", ".join(f"{name} = {value}" for name, value in largest.settings.items())
        raise ConfigError(
            f"{largest.what} need at least {_gib(largest.num_bytes)} ({settings}), all together {_gib(needed)}, but "
            f"{_gib(available)} are available ({device.type}). Lower one of these settings."
        )


def available_bytes(device: torch.device) -> int:
    """Memory that is free on a device now, with swap on the CPU, within the limit of this process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [
        1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("MemAvailable:", "SwapFree:")))
        for lines in [_lines("/proc/meminfo")]
        if lines
    ]
    limits = _lines("/sys/fs/cgroup/memory.max") + _lines("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    known += [int(limit) for limit in limits if limit.isdigit()]
    return min(known, default=2**63)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
