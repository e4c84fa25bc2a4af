"""ANIL: Raghu, Raghu, Bengio, Vinyals, 2020 (arXiv 1909.09157)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from metarl.errors import ConfigError
from metarl.fewshot.learners.maml import MAMLConfig
from metarl.networks.params import Params


@dataclass(frozen=True)
class ANILConfig(MAMLConfig):
    """Almost no inner loop: the head alone adapts (Raghu et al., 2020, arXiv 1909.09157, section 4)."""

    when: ClassVar[str] = "features can be shared by all tasks and only the last layer must adapt"

    learned_rates: Literal["none"] = "none"
    """One step size for all of the head."""
    head: str = "head"
    """Where the names of the parameters that adapt begin."""

    def adapted_names(self, params: Params) -> frozenset[str]:
        """Those of the head.

        Raises:
            ConfigError: for a network without parameters of the head's name.
        """
        found = frozenset(name for name in params if name == self.head or name.startswith(f"{self.head}."))
        if not found:
            raise ConfigError(f"no parameter lies in head = {self.head!r}; the network has {', '.join(params)}.")
        return found
