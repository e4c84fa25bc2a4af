"""A network that learns nothing, so that every result can be read: chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metarl.distributed import current
from metarl.fewshot.backbone import build_backbone, require_outputs
from metarl.fewshot.learner import Learner
from metarl.fewshot.learners.embedding import FeatureConfig, embed
from metarl.fewshot.objective import score_name, task_losses, task_scores
from metarl.fewshot.types import Examples, FewShotSpec, TaskBatch


@dataclass(frozen=True)
class RandomConfig(FeatureConfig):
    """A network as it is initialised."""

    when: ClassVar[str] = "reference: an untrained network that does not adapt"
    # What older runs recorded, and never looked at.
    retired: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {"meta_lr": (1e-3,)}

    meta_lr: Literal[0] = 0
    """Nothing is learned."""
    train_queries: Literal[0] = 0
    """Training uses no examples."""

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> Random:
        """A fresh learner."""
        return Random(self, spec, device, seed)


class Random(Learner[None]):
    """Predicts by an untrained network, and learns nothing.

    Args:
        config: settings.
        spec: shapes of the tasks.
        device: where it runs.
        seed: seed for the parameters.
    """

    data_parallel = True

    def __init__(self, config: RandomConfig, spec: FewShotSpec, device: torch.device, seed: int) -> None:
        super().__init__(spec, device, num_adaptations=0)
        self.config = config
        self.network = build_backbone(config, spec, device, seed).eval().requires_grad_(False)
        require_outputs(self.network, spec, device)

    def components(self) -> Mapping[str, nn.Module]:
        """The network, which stays as it is."""
        return {"network": self.network}

    def begin(self, num_tasks: int) -> None:
        """No state."""

    def adapt(self, state: None, support: Examples) -> None:
        """Nothing to learn with."""

    @torch.no_grad()
    def predict(self, state: None, x: Tensor) -> Tensor:
        """What the untrained network says, whatever the task."""
        return embed(self.network, x)

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """Nothing to improve; the metrics are those of the queries."""
        outputs, y = self.predict(None, batch.query.x), batch.query.y
        metrics = {
            "loss": float(task_losses(outputs, y, self.spec.kind).mean()),
            score_name(self.spec.kind): float(task_scores(outputs, y, self.spec.kind).mean()),
        }
        return current().mean(metrics, len(y))
