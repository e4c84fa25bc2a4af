"""What ``reset(options=...)`` of every vector environment understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarl.errors import ConfigError
from metarl.types import Task

NO_TASK = 'no task was given: call reset(options={"tasks": [...]}) first.'
"""The error of a reset that nothing told a task."""


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
        ConfigError: for a wrong number of tasks, or a mask that is not bool ``[num_envs]``.
    """
    options = options or {}
    tasks = options.get("tasks")
    if tasks is not None and len(tasks) != num_envs:
        raise ConfigError(f"got {len(tasks)} tasks for {num_envs} instances: give one task per instance.")
    mask = np.asarray(options.get("reset_mask", np.ones(num_envs, bool)))
    if mask.shape != (num_envs,) or mask.dtype != bool:
        raise ConfigError(f"reset_mask must be bool of shape ({num_envs},), got {mask.dtype} of shape {mask.shape}.")
    return ResetOptions(None if tasks is None else list(tasks), mask)
