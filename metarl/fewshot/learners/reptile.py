"""Reptile: the meta-parameters move towards the adapted ones, without any derivative of adaptation.

Nichol, Achiam, Schulman, 2018 (arXiv 1803.02999), Algorithm 2, with the choices of openai/supervised-reptile: Adam
without first moments in the inner loop, on minibatches of more shots than a test has. Difference: there Adam's second
moments go on from task to task, here each task begins with none, so that tasks do not depend on each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from metarl.adaptation import SGD, Adam, UpdateRule
from metarl.config.settings import Natural, Positive, PositiveShare, UnitInterval
from metarl.distributed import current
from metarl.fewshot.backbone import build_backbone
from metarl.fewshot.learners.gradient import Counter, GradientLearner, GradientLearnerConfig
from metarl.fewshot.learners.outer_step import training_mode
from metarl.fewshot.objective import score_name, task_losses, task_scores
from metarl.fewshot.types import EpisodeConfig, FewShotSpec, TaskBatch


@dataclass(frozen=True)
class ReptileConfig(GradientLearnerConfig):
    """Reptile, first-order by nature."""

    when: ClassVar[str] = "the simplest of meta-learners: no derivative of adaptation"
    acts_with: ClassVar[Mapping[str, tuple[str, int]]] = {"final_meta_lr": ("anneal_iterations", 1)}

    inner_lr: Positive = 1e-3
    """Step size of adaptation."""
    inner_rule: Literal["adam", "sgd"] = "adam"
    """Adam without first moments (beta1 = 0), or gradient descent."""
    inner_batch_size: Natural = 10
    """Examples of the support in each step, drawn anew; 0 takes all of them."""
    num_eval_steps: Natural = 50
    """Steps of adaptation in evaluation."""
    train_queries: Literal[0] = 0
    """Training uses no queries."""
    train_shots: Natural = 10
    """Examples of each class in a training task; 0 takes as many shots as a test has."""
    meta_lr: PositiveShare = 1.0
    """Share of the way from the meta-parameters to the mean adapted ones."""
    final_meta_lr: UnitInterval = 0.0
    """The share at the end of annealing."""
    anneal_iterations: Natural = 0
    """Iterations over which the share goes from meta_lr to final_meta_lr, in a line; 0 keeps it."""

    @property
    def last_iteration(self) -> int | None:
        """The end of annealing to zero."""
        return self.anneal_iterations if self.anneal_iterations and self.final_meta_lr == 0.0 else None

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> Reptile:
        """See :meth:`LearnerConfig.build`."""
        return Reptile(spec, device, self, build_backbone(self, spec, device, seed, num_steps=self.num_inner_steps))


class Reptile(GradientLearner):
    """``theta <- theta + meta_lr mean_task(theta_adapted - theta)``.

    Args:
        spec: shapes of the tasks.
        device: where the network runs.
        config: settings; those that name a network are of no account here.
        module: any network.
    """

    config: ReptileConfig

    def __init__(self, spec: FewShotSpec, device: torch.device, config: ReptileConfig, module: nn.Module) -> None:
        by_name: dict[str, UpdateRule] = {
            "adam": Adam(config.inner_lr, betas=(0.0, 0.999)),
            "sgd": SGD(config.inner_lr),
        }
        super().__init__(spec, device, config, module, by_name[config.inner_rule])
        self.counter = Counter().to(device)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """The network, and the number of updates so far."""
        return {"module": self.module, "counter": self.counter}

    def training_episode(self, episode: EpisodeConfig) -> EpisodeConfig:
        """Tasks of ``train_shots``, with no more queries than must be."""
        return dataclasses.replace(episode, shots=self.config.train_shots or episode.shots, queries=1)

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """Adapt, then interpolate."""
        totals = torch.zeros(2, device=self.device)
        moves = {name: torch.zeros_like(p) for name, p in self.module.named_parameters() if p.requires_grad}
        paths = []
        for state, tasks in self.chunks(batch):
            path = [state.model]
            with torch.no_grad(), training_mode(self.module, self.generator):
                for _ in range(self.config.num_inner_steps):
                    state = self.step(state, tasks.support, second_order=False)
                    path.append(state.model)
                for name, move in moves.items():
                    move += (state.model.params[name] - path[0].params[name]).sum(0) / batch.num_tasks
                outputs, y = self.outputs(state.model, tasks.support.x), tasks.support.y
            losses, scores = (score(outputs, y, self.spec.kind) for score in (task_losses, task_scores))
            totals += torch.stack([losses.sum(), scores.sum()])
            paths.append(path)
        for name, move in moves.items():
            moves[name] = current().average(move, batch.num_tasks)
        self.refresh_buffers(paths, TaskBatch(batch.support, batch.support))  # Training sees no query.
        share = self._share()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if name in moves:
                    parameter.add_(moves[name], alpha=share)
        self.counter.count += 1
        means = current().average(totals / batch.num_tasks, batch.num_tasks)
        loss, score = (float(value) for value in means)
        step_norm = float(torch.stack([move.square().sum() for move in moves.values()]).sum().sqrt())
        return {"loss": loss, score_name(self.spec.kind): score, "step_norm": step_norm}

    def _share(self) -> float:
        """Share of the way that this update goes."""
        config = self.config
        if not config.anneal_iterations:
            return config.meta_lr
        done = min(int(self.counter.count) / config.anneal_iterations, 1.0)
        return config.meta_lr + done * (config.final_meta_lr - config.meta_lr)
