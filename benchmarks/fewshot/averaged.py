"""A mean of networks that each learned one training task, fine-tuned to a new one by gradient descent.

The references called "multi-task" in MAML's first version (Finn et al., 2017, arXiv 1703.03400v1, Table 2 and appendix
C): where :mod:`metarl.fewshot.learners.pretrained` averages what tasks ask for, these average parameters. Networks
begin from initial parameters of their own, and are trained with no penalty, with one on the squared norm of their
parameters, or with one on the squared distance to the mean of those before. They are learners of one's own, as
``module:attribute``: `--learners metarl.benchmarks.fewshot.averaged:AveragedConfig`.

Difference from the paper: as many networks at a time as a batch has tasks, so that the mean that they are drawn to is
that of the batches before; those of the first are drawn nowhere.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from metarl.config.settings import Count, Natural, Positive
from metarl.distributed import current
from metarl.errors import ConfigError, NonFiniteError
from metarl.fewshot.backbone import build_backbone
from metarl.fewshot.learners.gradient import Counter, GradientLearner, GradientLearnerConfig
from metarl.fewshot.learners.outer_step import training_mode
from metarl.fewshot.objective import score_name, task_losses, task_scores
from metarl.fewshot.types import Examples, FewShotSpec, TaskBatch
from metarl.networks.module_call import call
from metarl.networks.params import Params, trainable
from metarl.seeding import UInt64, row_keys


@dataclass(frozen=True)
class _AveragedConfig(GradientLearnerConfig, abc.ABC):
    """Networks of one training task each."""

    inner_lr: Positive = 0.003
    """Step size of fine-tuning, tuned on sinusoids as in the paper: of 0.001 to 0.05 the best after ten steps."""
    num_inner_steps: Literal[0] = 0
    """Training adapts nothing."""
    meta_lr: Literal[0] = 0
    """Parameters are averaged."""
    train_queries: Natural = 100
    """Queries of each class of a training task, which its network learns from as well; 0: as many as in test."""
    task_lr: Positive = 0.01
    """Step size of Adam for the network of one task."""
    task_steps: Count = 1000
    """Its steps, each on all examples of the task."""

    @abc.abstractmethod
    def pull(self, mean: Params, count: int) -> tuple[float, Params | None]:
        """Weight of the penalty, and the parameters that it draws to; None is zero.

        ``mean`` is that of ``count`` networks so far.
        """

    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> Averaged:
        """See :meth:`LearnerConfig.build`."""
        return Averaged(spec, device, self, lambda own: build_backbone(self, spec, device, own), seed)


@dataclass(frozen=True)
class AveragedConfig(_AveragedConfig):
    """Networks of one task each, averaged."""

    when: ClassVar[str] = "reference: the mean of networks that learned one task each, fine-tuned to each new one"

    penalty: Literal[0] = 0
    """None."""

    def pull(self, mean: Params, count: int) -> tuple[float, Params | None]:
        """To nowhere."""
        return 0.0, None


@dataclass(frozen=True)
class AveragedL2Config(_AveragedConfig):
    """The same with a penalty on the squared norm of parameters."""

    when: ClassVar[str] = "as averaged, with networks of small parameters"

    penalty: Positive = 0.005
    """Weight of the squared norm of a network's parameters; at 0.01 networks miss their own sinusoids by 0.02, which
    is as far as the paper's do."""

    def pull(self, mean: Params, count: int) -> tuple[float, Params | None]:
        """To zero."""
        return self.penalty, None


@dataclass(frozen=True)
class AveragedToMeanConfig(_AveragedConfig):
    """The same with a penalty on the squared distance to the mean of the networks before."""

    when: ClassVar[str] = "as averaged, with networks close to their mean"

    penalty: Positive = 0.03
    """Weight of the squared distance between a network's parameters and the mean of those before. Ten steps after it
    errors are 4.0 at 0.001, 3.4 at 0.01 and 2.6 at 0.03, while networks miss their own sinusoids by 0.002 to 0.01."""

    def pull(self, mean: Params, count: int) -> tuple[float, Params | None]:
        """To the mean, once there is one."""
        return (self.penalty if count else 0.0), mean


class Averaged(GradientLearner):
    """Trains a network for each task of a batch, and takes it into the mean, which adapts by gradient descent.

    Args:
        spec: shapes of the tasks.
        device: where networks run.
        config: settings; those that name a network are of no account here.
        make: a network with the initial parameters of a seed.
        seed: of the network that adapts before there is a mean.

    Raises:
        ConfigError: for a network with running statistics, which have no mean over tasks.
    """

    config: _AveragedConfig

    def __init__(
        self,
        spec: FewShotSpec,
        device: torch.device,
        config: _AveragedConfig,
        make: Callable[[int], nn.Module],
        seed: int,
    ) -> None:
        module = make(seed)
        if statistics := [name for name, _ in module.named_buffers()]:
            raise ConfigError(
                f"networks that are averaged keep no running statistics, and this one has {', '.join(statistics[:3])}: "
                "take the norm transductive or none."
            )
        super().__init__(spec, device, config, module, config.inner_lr)
        self._make = make
        self.counter = Counter().to(device)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """The mean, and the number of networks in it."""
        return {"module": self.module, "counter": self.counter}

    def meta_update(self, batch: TaskBatch) -> dict[str, float]:
        """Train a network for each task, and move the mean; the metrics are of these networks on their own tasks.

        ``spread`` is the root of the mean squared distance between them and the mean before.

        Raises:
            NonFiniteError: for losses that are not finite.
        """
        ranks, (first, total) = current(), current().place(batch.num_tasks)
        drawn = int(torch.randint(2**62, (), generator=self.generator))
        seeds = row_keys(drawn, np.arange(first, first + batch.num_tasks, dtype=np.uint64))
        joined = [
            torch.cat(pair, dim=1) for pair in ((batch.support.x, batch.query.x), (batch.support.y, batch.query.y))
        ]
        mean = {name: p.detach().clone() for name, p in trainable(self.module).items()}
        sums = {name: torch.zeros_like(value) for name, value in mean.items()}
        totals = torch.zeros(3, device=self.device)
        for tasks in self.slices(batch.num_tasks):
            params, outputs, y = self._train(seeds[tasks], Examples(*joined)[tasks], mean)
            for name, value in params.items():
                sums[name] += value.sum(0)
            losses, scores = (score(outputs, y, self.spec.kind) for score in (task_losses, task_scores))
            distances = torch.stack([(value - mean[name]).square().sum() for name, value in params.items()])
            totals += torch.stack([losses.sum(), scores.sum(), distances.sum()])
        if not torch.isfinite(totals).all():
            raise NonFiniteError(f"the loss of the training tasks is not finite ({float(totals[0])}).")
        count = int(self.counter.count)
        for name, parameter in trainable(self.module).items():
            (whole,) = ranks.sum(sums[name])
            parameter.data.lerp_(whole / total, total / (count + total))
        self.counter.count += total
        loss, score, spread = (float(value) / total for value in ranks.sum(totals)[0])
        return {"loss": loss, score_name(self.spec.kind): score, "spread": spread**0.5}

    def _train(self, seeds: UInt64, examples: Examples, mean: Params) -> tuple[Params, Tensor, Tensor]:
        """Parameters of a network for each task, and what they give for its examples, whose targets come last."""
        networks = [trainable(self._make(int(seed >> np.uint64(1)))) for seed in seeds]
        params = {name: torch.stack([own[name].detach() for own in networks]).requires_grad_() for name in mean}
        weight, centre = self.config.pull(mean, int(self.counter.count))
        # Adam moves every number by itself: the networks of one batch know nothing of each other.
        optimizer = Adam(params.values(), lr=self.config.task_lr)
        with training_mode(self.module, self.generator):
            for _ in range(self.config.task_steps):
                loss = task_losses(call(self.module, params, examples.x), examples.y, self.spec.kind).sum()
                if weight:
                    away = (p if centre is None else p - centre[name] for name, p in params.items())
                    loss = loss + weight * torch.stack([value.square().sum() for value in away]).sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        learned = {name: value.detach() for name, value in params.items()}
        with torch.no_grad():
            return learned, call(self.module, learned, examples.x), examples.y
