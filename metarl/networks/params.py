"""Parameters by name, and the same ones for many tasks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from metarl.errors import ConfigError

Params = dict[str, Tensor]
"""Parameters by name; *stacked* parameters have shape ``[task, ...]``."""


def trainable(module: nn.Module) -> Params:
    """The module's parameters by name, without those that are frozen (``requires_grad=False``).

    Raises:
        ConfigError: if none is left.
    """
    found: Params = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not found:
        frozen = ", ".join(name for name, _ in module.named_parameters())
        raise ConfigError(
            f"{type(module).__name__} has no parameter to train: {f'{frozen} are frozen' if frozen else 'it has none'}."
        )
    return found


def stack(params: Mapping[str, Tensor], num_tasks: int) -> Params:
    """The same parameters for every task, detached: views ``[task, ...]``."""
    return {name: value.detach().expand(num_tasks, *value.shape) for name, value in params.items()}
