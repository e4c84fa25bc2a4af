"""First-order MAML: Finn, Abbeel, Levine, 2017 (arXiv 1703.03400), section 5.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from metarl.fewshot.learners.maml import MAMLConfig


@dataclass(frozen=True)
class FOMAMLConfig(MAMLConfig):
    """First-order MAML."""

    when: ClassVar[str] = "nearly MAML, at a third of its cost"

    first_order: Literal[True] = True
    """Inner gradients are constants."""
