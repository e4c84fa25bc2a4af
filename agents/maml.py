"""MAML-TRPO: a policy that adapts by gradient steps, meta-trained inside a trust region.

Finn, Abbeel, Levine, 2017 (arXiv 1703.03400), Algorithm 3 and section 5.3: the inner loop is REINFORCE with a linear
feature baseline, the outer one TRPO (Schulman et al., 2015, arXiv 1502.05477).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from metarl.adaptation import InnerLoop, LossFn, inner_loop
from metarl.agent import Agent, AgentConfig
from metarl.errors import ConfigError, NonFiniteError, require_in_unit_interval, require_positive
from metarl.functional.baselines import linear_baseline_advantages
from metarl.functional.policy_losses import likelihood_ratio_loss
from metarl.functional.returns import masked_mean
from metarl.functional.trust_region import backtrack, conjugate_gradient, step_to_radius
from metarl.networks.distributions import Distribution
from metarl.networks.mlp import Activation, MLPPolicy, Params, stack
from metarl.seeding import torch_stream
from metarl.types import Action, Rollout, Spec, Timestep, Trial

_EVAL_STEPS = 3
"""Gradient steps in an evaluation, as in the paper's Figures 4 and 5."""

_CPU_SAMPLES = 8192
"""Steps in one chunk of tasks on a CPU (measured: larger ones fall out of its caches)."""


@dataclass(frozen=True)
class MAMLTRPOConfig(AgentConfig):
    """MAML with a TRPO outer loop."""

    hidden_sizes: tuple[int, ...] = (100, 100)
    """Widths of the policy's hidden layers."""
    activation: Activation = "tanh"
    """Activation between the layers."""
    init_std: float = 1.0
    """Initial standard deviation of a Gaussian policy, where 1 is half the width of the action box."""
    num_inner_steps: int = 1
    """Gradient steps on each task before the meta-update."""
    inner_lr: float = 0.1
    """Step size of the inner loop."""
    extra_step_factor: float = 0.5
    """Factor on inner_lr for gradient steps beyond num_inner_steps, which training never saw (MAML's code: 0.5)."""
    rollouts_per_task: int = 20
    """Episodes of each task behind every gradient."""
    discount: float = 0.99
    """Discount of rewards."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation."""
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
    first_order: bool = False
    """Leave the Hessians of the inner loop out of all derivatives (first-order MAML)."""
    task_chunk: int = 0
    """Tasks computed together; 0 chooses by device. Changes speed and memory, not results."""

    def __post_init__(self) -> None:
        require_positive(
            self,
            *("init_std", "num_inner_steps", "inner_lr", "extra_step_factor", "rollouts_per_task", "max_kl"),
            *("cg_iterations", "cg_damping", "backtrack_ratio", "max_backtracks"),
        )
        require_in_unit_interval(self, "discount", "gae_lambda", "backtrack_ratio")
        if self.task_chunk < 0:
            raise ConfigError(f"MAMLTRPOConfig.task_chunk must be 0 or more, got {self.task_chunk!r}.")
        if any(width < 1 for width in self.hidden_sizes):
            raise ConfigError(f"MAMLTRPOConfig.hidden_sizes must be above 0, got {self.hidden_sizes!r}.")

    def build(self, spec: Spec, device: torch.device, seed: int) -> MAMLTRPO:
        """A fresh agent."""
        return MAMLTRPO(self, spec, device, seed, num_adaptations=self.num_inner_steps)


@dataclass(frozen=True)
class FastWeights:
    """What adapts to the tasks.

    Attributes:
        params: stacked parameters, ``[task, ...]``.
        num_steps: gradient steps taken so far.
    """

    params: Params
    num_steps: int


@dataclass(frozen=True)
class _Batch:
    """One rollout, flattened to ``[task, sample]``, with its advantages."""

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    valid: Tensor

    def __getitem__(self, tasks: slice) -> _Batch:
        return _Batch(*(getattr(self, field.name)[tasks] for field in fields(self)))


@dataclass(frozen=True)
class _Chunk:
    """A few tasks, linearised at the current parameters.

    Attributes:
        batches: the trial's rollouts; the last is the one after adaptation.
        loop: the inner loop with its graphs.
        leaves: adapted parameters, the leaves of ``policy``'s graph.
        policy: adapted policy on the last rollout.
        loss: summed over tasks.
        gradient: of ``loss`` with respect to the meta-parameters, flat ``[parameter]``.
    """

    batches: list[_Batch]
    loop: InnerLoop
    leaves: Params
    policy: Distribution
    loss: Tensor
    gradient: Tensor


class MAMLTRPO(Agent[FastWeights]):
    """Its state is the tasks' fast weights.

    Args:
        config: settings.
        spec: sizes of observation and action.
        device: where everything lives.
        seed: of the initial parameters.
        num_adaptations: gradient steps in a training trial; 0 gives TRPO over all tasks, without adaptation.
    """

    def __init__(
        self, config: MAMLTRPOConfig, spec: Spec, device: torch.device, seed: int, *, num_adaptations: int
    ) -> None:
        super().__init__(
            spec,
            device,
            num_adaptations=num_adaptations,
            rollouts_per_task=config.rollouts_per_task,
            num_eval_adaptations=max(_EVAL_STEPS, num_adaptations),
        )
        self.config = config
        with torch_stream(seed, "init"):
            self.policy = MLPPolicy(spec, config.hidden_sizes, config.activation, config.init_std).to(device)

    def components(self) -> Mapping[str, nn.Module]:
        """The policy."""
        return {"policy": self.policy}

    def begin(self, num_tasks: int) -> FastWeights:
        """The meta-parameters, for every task."""
        return FastWeights(self._stacked(num_tasks), 0)

    @torch.no_grad()
    def act(self, state: FastWeights, timestep: Timestep, deterministic: bool = False) -> tuple[Action, FastWeights]:
        """Sample from each task's own policy."""
        policy = self.policy.distribution(state.params, timestep.obs)
        value = policy.mode() if deterministic else policy.sample(self.generator)
        return Action(value, policy.log_prob(value)), state

    def adapt(self, state: FastWeights, rollout: Rollout) -> FastWeights:
        """One step of policy gradient on each task."""
        trained = state.num_steps < max(1, self.num_adaptations)
        inner_lr = self.config.inner_lr * (1.0 if trained else self.config.extra_step_factor)
        losses = [self._inner_loss(self._batch(rollout))]
        adapted = inner_loop(state.params, losses, inner_lr, second_order=False).adapted
        return FastWeights(adapted, state.num_steps + 1)

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """One TRPO step on the mean return after adaptation.

        The KL is measured from the adapted policies that acted, averaged over steps and then tasks. At the current
        parameters its Hessian is the Gauss-Newton product ``J' F J`` exactly, ``J`` being the Jacobian of the adapted
        policies' outputs and ``F`` their Fisher information.
        """
        config = self.config
        batches = [self._batch(rollout) for rollout in trial.rollouts]
        start = self._flatten(self.policy.params())
        chunks = [self._linearise([batch[piece] for batch in batches]) for piece in self._pieces(batches[-1].log_probs)]
        num_tasks = len(trial.tasks)
        gradient = torch.stack([chunk.gradient for chunk in chunks]).sum(0) / num_tasks
        loss_before = float(torch.stack([chunk.loss for chunk in chunks]).sum() / num_tasks)
        if not (math.isfinite(loss_before) and torch.isfinite(gradient).all()):
            raise NonFiniteError(f"the meta-gradient is not finite (loss {loss_before}).")

        def product(vector: Tensor) -> Tensor:
            images = [self._fisher_product(chunk, vector) for chunk in chunks]
            return torch.stack(images).sum(0) / num_tasks + config.cg_damping * vector

        def evaluate(flat: Tensor) -> tuple[float, float]:
            loss, kl = torch.stack([self._surrogate(flat, chunk) for chunk in chunks]).sum(0) / num_tasks
            return float(loss), float(kl)

        direction = conjugate_gradient(product, gradient, config.cg_iterations)
        step = step_to_radius(direction, product(direction), config.max_kl)
        end, loss_after, kl, trials = backtrack(
            evaluate, start, step, loss_before, config.max_kl, config.backtrack_ratio, config.max_backtracks
        )
        with torch.no_grad():
            for name, value in self._unflatten(end).items():
                self.policy.get_parameter(name).copy_(value)
            entropies = [masked_mean(c.policy.entropy(), c.batches[-1].valid, (1,)) for c in chunks]
        return {
            "loss": loss_before,
            "improvement": loss_before - loss_after,
            "kl": kl,
            "line_search_trials": float(trials),
            "gradient_norm": float(gradient.norm()),
            "entropy": float(torch.cat(entropies).mean()),
        }

    # Derivatives, for one chunk of tasks --------------------------------------------------------------------------

    def _linearise(self, batches: list[_Batch]) -> _Chunk:
        *inner, outer = batches
        losses = [self._inner_loss(batch) for batch in inner]
        params = self._stacked(len(outer.obs))
        loop = inner_loop(params, losses, self.config.inner_lr, second_order=not self.config.first_order)
        leaves = {name: value.requires_grad_() for name, value in loop.adapted.items()}
        with torch.enable_grad():
            policy = self.policy.distribution(leaves, outer.obs)
            loss = self._loss(policy, outer).sum()
            slope = torch.autograd.grad(loss, tuple(leaves.values()), retain_graph=True, materialize_grads=True)
        gradient = self._pull_to_meta(loop, dict(zip(leaves, slope, strict=True)))
        return _Chunk(batches, loop, leaves, policy, loss.detach(), gradient)

    def _fisher_product(self, chunk: _Chunk, vector: Tensor) -> Tensor:
        """``J' F J v``: push the tangent through the inner loop and the network, weigh it, pull it back."""
        outer = chunk.batches[-1]
        pushed = chunk.loop.push(stack(self._unflatten(vector), len(outer.obs)))
        # Without inner steps both are still views shared by all tasks, which forward-mode AD refuses.
        tangent = {name: value.contiguous() for name, value in pushed.items()}

        def outputs(params: Params) -> tuple[Tensor, ...]:
            return self.policy.distribution(params, outer.obs).parameters

        detached = {name: value.detach().contiguous() for name, value in chunk.leaves.items()}
        moved = torch.func.jvp(outputs, (detached,), (tangent,))[1]
        weight = (outer.valid / outer.valid.sum(1, keepdim=True))[..., None]
        with torch.no_grad():
            weighted = tuple(part * weight for part in chunk.policy.fisher_product(moved))
        cotangent = torch.autograd.grad(
            chunk.policy.parameters, tuple(chunk.leaves.values()), weighted, retain_graph=True, materialize_grads=True
        )
        return self._pull_to_meta(chunk.loop, dict(zip(chunk.leaves, cotangent, strict=True)))

    def _pull_to_meta(self, loop: InnerLoop, cotangent: Params) -> Tensor:
        return self._flatten({name: value.sum(0) for name, value in loop.pull(cotangent).items()})

    def _surrogate(self, flat: Tensor, chunk: _Chunk) -> Tensor:
        """Summed over tasks: loss after adaptation from the meta-parameters ``flat``, and KL from those that acted."""
        *inner, outer = chunk.batches
        params = stack(self._unflatten(flat), len(outer.obs))
        losses = [self._inner_loss(batch) for batch in inner]
        adapted = inner_loop(params, losses, self.config.inner_lr, second_order=False).adapted
        with torch.no_grad():
            policy = self.policy.distribution(adapted, outer.obs)
            kl = masked_mean(chunk.policy.kl(policy), outer.valid, (1,))
            return torch.stack([self._loss(policy, outer).sum(), kl.sum()])

    # Pieces -----------------------------------------------------------------------------------------------------

    def _stacked(self, num_tasks: int) -> Params:
        return stack({name: value.detach() for name, value in self.policy.params().items()}, num_tasks)

    def _pieces(self, samples: Tensor) -> list[slice]:
        """Tasks that are computed together: all on a GPU; on a CPU as many as stay in its caches."""
        num_tasks, num_samples = samples.shape
        size = self.config.task_chunk
        if size == 0:
            size = num_tasks if self.device.type == "cuda" else max(1, _CPU_SAMPLES // num_samples)
        return [slice(first, first + size) for first in range(0, num_tasks, size)]

    def _batch(self, rollout: Rollout) -> _Batch:
        advantages = linear_baseline_advantages(rollout, self.config.discount, self.config.gae_lambda)
        flat = (rollout.obs, rollout.actions, rollout.log_probs, advantages, rollout.valid)
        return _Batch(*(part.flatten(1, 2) for part in flat))

    def _inner_loss(self, batch: _Batch) -> LossFn:
        return lambda params: self._loss(self.policy.distribution(params, batch.obs), batch)

    @staticmethod
    def _loss(policy: Distribution, batch: _Batch) -> Tensor:
        return likelihood_ratio_loss(policy.log_prob(batch.actions), batch.log_probs, batch.advantages, batch.valid)

    @staticmethod
    def _flatten(params: Params) -> Tensor:
        return torch.cat([value.detach().flatten() for value in params.values()])

    def _unflatten(self, flat: Tensor) -> Params:
        shapes = {name: value.shape for name, value in self.policy.params().items()}
        parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
