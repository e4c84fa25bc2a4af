"""MAML with a TRPO outer loop.

Finn, Abbeel, Levine, 2017 (arXiv 1703.03400), Algorithm 3 and section 5.3; TRPO is Schulman et al., 2015
(arXiv 1502.05477).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.agents.common.gradient_agent import Batch, GradientAgent, GradientConfig, Objective, loss_after_adaptation
from metarl.errors import NonFiniteError, require_in_unit_interval, require_positive, unknown_name
from metarl.functional.returns import masked_mean
from metarl.functional.trust_region import backtrack, conjugate_gradient, step_to_radius
from metarl.types import Spec


@dataclass(frozen=True)
class MAMLTRPOConfig(GradientConfig):
    """MAML with a TRPO outer loop."""

    when: ClassVar[str] = "few gradient steps must suffice, and adapting further must not hurt"

    max_kl: float = 0.01
    """Radius of the trust region, in nats."""
    cg_iterations: int = 10
    """Conjugate gradient iterations."""
    cg_damping: float = 1e-5
    """Added to the diagonal of the Fisher matrix."""
    backtrack_ratio: float = 0.8
    """Factor between the steps that the line search tries."""
    max_backtracks: int = 15
    """Steps that the line search tries before it keeps the old parameters."""
    metric: Literal["full", "first_order"] = "full"
    """Whether the trust region's metric knows the Hessians of the inner loop; without them its products are several
    times cheaper and the step less apt. The gradient is the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_kl", "cg_iterations", "cg_damping", "backtrack_ratio", "max_backtracks")
        require_in_unit_interval(self, "backtrack_ratio")
        if self.metric not in ("full", "first_order"):
            raise unknown_name("metric", self.metric, ("full", "first_order"))

    def build(self, spec: Spec, device: torch.device, seed: int) -> GradientAgent:
        """A fresh agent."""
        return GradientAgent(self, spec, device, seed, lambda agent: TRPOUpdate(self))


class TRPOUpdate:
    """One TRPO step on an objective after adaptation.

    The KL is measured from the adapted policies that acted, averaged over steps and then tasks. At the current
    parameters its Hessian is the Gauss-Newton product ``J' F J`` exactly, ``J`` being the Jacobian of the adapted
    policies' outputs and ``F`` their Fisher information.

    Args:
        config: settings.
        objective: what to minimise, per task.
    """

    def __init__(self, config: MAMLTRPOConfig, objective: Objective = loss_after_adaptation) -> None:
        self.config = config
        self.objective = objective

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """TRPO keeps nothing between updates."""
        return {}

    def __call__(self, agent: GradientAgent, batches: list[Batch]) -> dict[str, float]:
        """Gradient, conjugate gradient, line search."""
        config, num_tasks = self.config, len(batches[-1].obs)
        cheap = config.metric == "first_order"
        chunks = [agent.linearise(p, self.objective, first_order_metric=cheap) for p in agent.chunks(batches)]
        gradient = torch.stack([chunk.gradient for chunk in chunks]).sum(0) / num_tasks
        loss_before = float(torch.stack([chunk.loss for chunk in chunks]).sum() / num_tasks)
        if not (math.isfinite(loss_before) and torch.isfinite(gradient).all()):
            raise NonFiniteError(f"the meta-gradient is not finite (loss {loss_before}).")

        def product(vector: Tensor) -> Tensor:
            images = [agent.fisher_product(chunk, vector) for chunk in chunks]
            return torch.stack(images).sum(0) / num_tasks + config.cg_damping * vector

        def evaluate(flat: Tensor) -> tuple[float, float]:
            sums = torch.zeros(2, dtype=flat.dtype, device=flat.device)
            for chunk in chunks:
                losses, policy = agent.evaluate_at(flat, chunk.batches, self.objective)
                with torch.no_grad():
                    kl = masked_mean(chunk.policy.kl(policy), chunk.batches[-1].valid, (1,))
                sums = sums + torch.stack([losses.sum(), kl.sum()])
            loss, kl_mean = (sums / num_tasks).tolist()
            return loss, kl_mean

        direction, image = conjugate_gradient(product, gradient, config.cg_iterations)
        step = step_to_radius(direction, image, config.max_kl)
        start = agent.flatten(agent.meta_parameters())
        end, loss_after, kl, trials = backtrack(
            evaluate, start, step, loss_before, config.max_kl, config.backtrack_ratio, config.max_backtracks
        )
        agent.assign(end)
        with torch.no_grad():
            entropies = [masked_mean(c.policy.entropy(), c.batches[-1].valid, (1,)) for c in chunks]
        return {
            "loss": loss_before,
            "improvement": loss_before - loss_after,
            "kl": kl,
            "accepted": float(loss_after < loss_before),
            "line_search_trials": float(trials),
            "gradient_norm": float(gradient.norm()),
            "entropy": float(torch.cat(entropies).mean()),
        }
