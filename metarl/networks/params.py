"""Parameters by name, and the same ones for many tasks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Params = dict[str, Tensor]
"""Parameters by name; *stacked* parameters have shape ``[task, ...]``."""


def stack(params: Mapping[str, Tensor], num_tasks: int) -> Params:
    """The same parameters for every task, detached: views ``[task, ...]``."""
    return {name: value.detach().expand(num_tasks, *value.shape) for name, value in params.items()}
