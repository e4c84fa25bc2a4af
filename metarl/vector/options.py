"""What ``reset(seed=..., options=...)`` of every vector environment understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarl.errors import ConfigError
from metarl.seeding import UInt64, row_keys
from metarl.types import Task
from metarl.vector.contract import KindError

NO_TASK = 'no task was given: call reset(options={"tasks": [...]}) first.'
"""The error of a reset that nothing told a task."""


def environment_seeds(seed: int, rows: UInt64) -> UInt64:
    """Seeds for the instances ``rows`` ``[...]``, each a function of its own number.

    They are below 2**31, since many environments hand theirs to ``numpy.random.seed``.
    """
    return row_keys(seed, rows) >> np.uint64(33)


def instance_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """A seed for each instance: those of a list, or derived from one integer; None lets an instance's stream go on.

    Raises:
        ConfigError: for a list of another length, or a seed that is no integer of 0 or more.
    """
    seeds: list[Any] = [None] * num_envs if seed is None else [seed] * num_envs
    if isinstance(seed, Sequence):
        if len(seed) != num_envs:
            raise ConfigError(f"got {len(seed)} seeds for {num_envs} instances: give one integer, or one for each.")
        seeds = list(seed)
    for one in seeds:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | np.integer) or one < 0):
            raise ConfigError(f"a seed must be an integer of 0 or more, or None, got {one!r}.")
    if seed is None or isinstance(seed, Sequence):
        return [None if one is None else int(one) for one in seeds]
    return [int(one) for one in environment_seeds(int(seed), np.arange(num_envs, dtype=np.uint64))]


class ResetOptions(NamedTuple):
    """Which instances to reset, and what they pose from now on.

    Attributes:
        tasks: one for each instance, those outside the mask included; None keeps the old ones.
        mask: ``[instance]`` bool, True where an episode starts.
    """

    tasks: list[Task] | None
    mask: NDArray[np.bool_]


def parse_reset_options(options: Mapping[str, Any] | None, num_envs: int) -> ResetOptions:
    """``options["tasks"]`` and ``options["reset_mask"]``; without a mask every instance is reset.

    Raises:
        ConfigError: for a wrong number of tasks, or a mask of another shape or without any True.
        KindError: for a mask that is not bool.
    """
    options = options or {}
    tasks = options.get("tasks")
    if tasks is not None and len(tasks) != num_envs:
        raise ConfigError(f"got {len(tasks)} tasks for {num_envs} instances: give one task per instance.")
    mask = np.asarray(options.get("reset_mask", np.ones(num_envs, bool)))
    if mask.shape != (num_envs,) or mask.dtype != bool:
        error = ConfigError if mask.dtype == bool else KindError
        raise error(f"reset_mask must be bool of shape ({num_envs},), got {mask.dtype} of shape {mask.shape}.")
    if not mask.any():
        raise ConfigError("reset_mask must be True for one instance at least, got False for all of them.")
    return ResetOptions(None if tasks is None else list(tasks), mask)
