"""One run on many processes: torchrun starts them, each takes its share of the tasks, and sums go over all of them."""

from metarl.distributed.agreement import require_same, require_same_state
from metarl.distributed.group import Group, SumOverRanks, Traffic, current, using
from metarl.distributed.launch import asked_for, device_of_rank, join, launcher, ranks_here, require_ready, restarts

__all__ = [
    "Group",
    "SumOverRanks",
    "Traffic",
    "asked_for",
    "current",
    "device_of_rank",
    "join",
    "launcher",
    "ranks_here",
    "require_ready",
    "require_same",
    "require_same_state",
    "restarts",
    "using",
]
