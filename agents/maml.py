"""MAML with a TRPO outer loop.

Finn, Abbeel, Levine, 2017 (arXiv 1703.03400), Algorithm 3 and section 5.3; TRPO is Schulman et al., 2015
(arXiv 1502.05477).

What differs from the authors' code in every gradient-based agent stands in
:mod:`metarl.agents.common.gradient_agent`. From the MAML-TRPO of Meta-World+ (``rainx0r/metaworld-algorithms``) it
differs in its inner step besides: there the inner loss is a mean over tasks and steps, so that each task's step is its
own gradient times ``inner_lr`` divided by the meta-batch (0.1 acts as 0.005 on ML10), and advantages are divided by
their variance, not by their standard deviation. Here a task's step depends on the task alone: adaptation is the same in
a meta-batch of 20 as at test time, and whatever the scale of the rewards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import tyro
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.adaptation import UpdateRule
from metarl.agents.common.gradient_agent import GradientConfig, OuterUpdate, named_rule
from metarl.agents.common.meta_gradient import (
    Batch,
    Chunk,
    FisherMetric,
    MetaGradient,
    Metric,
    Objective,
    loss_after_adaptation,
)
from metarl.config.settings import Count, Positive, PositiveShare
from metarl.distributed import current
from metarl.errors import ConfigError, NonFiniteError
from metarl.functional.returns import masked_mean
from metarl.functional.trust_region import backtrack, conjugate_gradient, step_to_radius
from metarl.networks.policy import Policy


@dataclass(frozen=True)
class TrustRegionConfig(GradientConfig):
    """Settings of the agents whose outer loop is TRPO."""

    renamed: ClassVar[Mapping[str, str]] = {"metric": "fisher_metric"}

    max_kl: Positive = 0.01
    """Radius of the trust region, in nats."""
    cg_iterations: Count = 10
    """Conjugate gradient iterations."""
    cg_damping: Positive = 1e-5
    """Added to the diagonal of the Fisher matrix."""
    backtrack_ratio: PositiveShare = 0.8
    """Factor between the steps that the line search tries."""
    max_backtracks: Count = 15
    """Steps that the line search tries before it keeps the old parameters."""
    fisher_metric: Annotated[FisherMetric, tyro.conf.arg(aliases=["--metric"])] = "full"
    """Whether the trust region's metric knows the Hessians of the inner loop; without them its products are several
    times cheaper and the step less apt. The gradient is the same. With first_order it never knows them."""
    fisher_stride: Count = 1
    """The trust region's metric looks at every n-th step of all rollouts, before and after adaptation; gradient, KL and
    line search look at all. With 5 a meta-update on Meta-World's reach took a third of the time for the same gain."""


@dataclass(frozen=True)
class MAMLTRPOConfig(TrustRegionConfig):
    """MAML with a TRPO outer loop."""

    when: ClassVar[str] = "few gradient steps must suffice, and adapting further must not hurt"

    def make_rule(self, policy: Policy) -> UpdateRule:
        """The one that ``inner_rule`` names."""
        return named_rule(self, policy)

    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """TRPO on the loss after adaptation."""
        return TRPOUpdate(self, meta)


class TRPOUpdate:
    """One TRPO step on an objective after adaptation.

    The KL is measured from the adapted policies that acted, averaged over steps and then tasks. At the current
    parameters its Hessian is the Gauss-Newton product ``J' F J`` exactly, ``J`` being the Jacobian of the adapted
    policies' outputs and ``F`` their Fisher information.

    A metric need not know every sample: appendix C of TRPO's paper takes a tenth of them in conjugate gradient. With
    ``fisher_stride`` ``n``, ``F`` and ``J`` are those of adapting on, and acting in, every ``n``-th step alone, from an
    offset that is drawn in each update. Whatever decides on the step, gradient, surrogate and KL, stays exact. Measured
    on ML1 reach in eight updates from the same parameters (mean gain after the line search; time of the whole
    meta-update): all steps .01266; every 5th .01296, 3.3 times as fast, with the same KL and directions whose cosine
    with the full metric's is .85 to .99; every 20th .0111, 5 times; ``fisher_metric = "first_order"`` .0098.

    Args:
        config: settings.
        meta: policy, rule and derivatives; its meta-parameters move.
        objective: what to minimise, per task.

    Raises:
        ConfigError: for a ``fisher_stride`` beyond the horizon of the tasks.
    """

    data_parallel = True

    def __init__(
        self, config: TrustRegionConfig, meta: MetaGradient, objective: Objective = loss_after_adaptation
    ) -> None:
        horizon = meta.policy.spec.horizon
        if config.fisher_stride > horizon:
            raise ConfigError(
                f"fisher_stride must be at most {horizon}, the steps in an episode of these tasks, "
                f"got {config.fisher_stride}."
            )
        self.config = config
        self.meta = meta
        self.objective = objective

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """TRPO keeps nothing between updates."""
        return {}

    def __call__(self, batches: list[Batch]) -> dict[str, float]:
        """Gradient, conjugate gradient, line search."""
        config, meta, group = self.config, self.meta, current()
        num_tasks = group.total(len(batches[-1].obs))
        on_all = config.fisher_metric if config.fisher_stride == 1 else None
        chunks = [meta.linearise(part, self.objective, metric=on_all) for part in meta.chunks(batches)]
        gradient, loss = group.sum(
            torch.stack([chunk.gradient for chunk in chunks]).sum(0),
            torch.stack([chunk.loss for chunk in chunks]).sum(),
        )
        gradient, loss_before = gradient / num_tasks, float(loss / num_tasks)
        if not (math.isfinite(loss_before) and torch.isfinite(gradient).all()):
            raise NonFiniteError(f"the meta-gradient is not finite (loss {loss_before}).")

        metrics = [chunk.metric for chunk in chunks if chunk.metric is not None]
        if config.fisher_stride > 1:
            metrics = self._thinned_metrics(batches)

        def product(vector: Tensor) -> Tensor:
            images = [meta.fisher_product(metric, vector) for metric in metrics]
            (image,) = group.sum(torch.stack(images).sum(0))
            return image / num_tasks + config.cg_damping * vector

        direction, image = conjugate_gradient(product, gradient, config.cg_iterations)
        end, loss_after, kl, trials = backtrack(
            lambda flat: self._loss_and_kl(flat, chunks, num_tasks),
            meta.current(),
            step_to_radius(direction, image, config.max_kl),
            loss_before,
            config.max_kl,
            config.backtrack_ratio,
            config.max_backtracks,
        )
        meta.assign(end)
        with torch.no_grad():
            entropies = torch.cat([masked_mean(c.policy.entropy(), c.batches[-1].valid, (1,)) for c in chunks])
        return {
            "loss": loss_before,
            "improvement": loss_before - loss_after,
            "kl": kl,
            "accepted": float(loss_after < loss_before),
            "line_search_trials": float(trials),
            "gradient_norm": float(gradient.norm()),
            "entropy": float(group.concatenate(entropies).mean()),
        }

    def _thinned_metrics(self, batches: list[Batch]) -> list[Metric]:
        """The metric on every ``fisher_stride``-th step; all ranks draw the same offset, from the trial's seed."""
        meta, stride = self.meta, self.config.fisher_stride
        drawn = torch.randint(stride, (), generator=meta.generator, device=meta.generator.device)
        thinned = [batch.thinned(stride, int(drawn)) for batch in batches]
        return [meta.metric(part, self.config.fisher_metric) for part in meta.chunks(thinned)]

    def _loss_and_kl(self, flat: Tensor, chunks: list[Chunk], num_tasks: int) -> tuple[float, float]:
        """Mean objective at other meta-parameters, and mean KL of the adapted policies from those that acted.

        Over the tasks of all ranks, so that the line search takes the same branch on each.
        """
        sums = torch.zeros(2, dtype=flat.dtype, device=flat.device)
        for chunk in chunks:
            losses, policy = self.meta.evaluate_at(flat, chunk.batches, self.objective)
            with torch.no_grad():
                kl = masked_mean(chunk.policy.kl(policy), chunk.batches[-1].valid, (1,))
            sums = sums + torch.stack([losses.sum(), kl.sum()])
        loss, kl_mean = (current().sum(sums)[0] / num_tasks).tolist()
        return loss, kl_mean
