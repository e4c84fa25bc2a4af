"""What can be saved and loaded: named modules and optimisers."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Components(abc.ABC):
    """Whatever is trained: a subclass names its parts, and has their state, to save and to load, for it.

    Attributes:
        device: where parameters live.
    """

    device: torch.device

    @abc.abstractmethod
    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Everything that a checkpoint must hold, by name."""

    def state_dict(self) -> dict[str, Any]:
        """The state of all components, by their names."""
        return {name: component.state_dict() for name, component in self.components().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, component in self.components().items():
            component.load_state_dict(state[name])

    def module_state_dict(self) -> dict[str, Any]:
        """The state of the modules alone: all that acting needs, and no optimiser's."""
        return {name: module.state_dict() for name, module in self._modules().items()}

    def load_module_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`module_state_dict` returned; optimisers stay as they are."""
        for name, module in self._modules().items():
            module.load_state_dict(state[name])

    def named_tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer of every module, by dotted name."""
        return {
            f"{name}.{key}": tensor
            for name, module in self._modules().items()
            for key, tensor in module.state_dict().items()
        }

    def unsaved_buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers that no checkpoint holds (``persistent=False``), by dotted name."""
        saved = self.named_tensors()
        buffers = {
            f"{name}.{key}": buffer
            for name, module in self._modules().items()
            for key, buffer in module.named_buffers()
        }
        return {name: buffer.clone() for name, buffer in buffers.items() if name not in saved}

    def _modules(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.components().items() if isinstance(part, nn.Module)}
