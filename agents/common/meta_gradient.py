"""Derivatives of a loss after adaptation with respect to the meta-parameters: what outer updates work with.

The inner loss is REINFORCE's with a linear feature baseline (Finn et al., 2017, arXiv 1703.03400, section 5.3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from metarl.adaptation import InnerLoop, LossFn, UpdateRule, inner_loop
from metarl.functional.baselines import linear_baseline_advantages
from metarl.functional.policy_losses import likelihood_ratio_loss, log_likelihood_loss
from metarl.networks.distributions import Distribution
from metarl.networks.normaliser import RunningMoments
from metarl.networks.params import Params, stack
from metarl.networks.policy import Policy
from metarl.types import Rollout

_RULE = "rule."
"""Prefix of the rule's parameters among the meta-parameters, which a policy's parameters must not have."""

_CPU_SAMPLES = 8192
"""Steps in one chunk of tasks on a CPU (measured: larger ones fall out of its caches)."""


@dataclass(frozen=True)
class Batch:
    """One rollout, flattened to ``[task, sample]``, with its normalised advantages and ``[task]`` mean returns.

    ``obs`` are what the policy sees, normalised if its agent does that.
    """

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    valid: Tensor
    returns: Tensor

    def __getitem__(self, tasks: slice) -> Batch:
        return Batch(*(getattr(self, field.name)[tasks] for field in fields(self)))

    def thinned(self, stride: int, offset: int) -> Batch:
        """Every ``stride``-th step of each task, from step ``offset`` on; its episodes are counted end to end.

        Of a task that has fewer steps than ``stride``, one step is taken. Padding is left out where it can be: what
        remains of it is masked as before. No value is read on the host.

        Args:
            stride: steps from one that is taken to the next, 1 or more.
            offset: which is the first, from 0 and below ``stride``.
        """
        number = self.valid.sum(1, keepdim=True)
        position = self.valid.cumsum(1) - 1
        taken = self.valid & (position % stride == offset % number.clamp(max=stride))
        # A stable sort keeps the order of time; no task has more steps to take than this.
        most = -(-self.valid.shape[1] // stride)
        order = torch.argsort((~taken).to(torch.uint8), dim=1, stable=True)[:, :most]
        rows = torch.arange(len(order), device=order.device)[:, None]
        parts = (self.obs, self.actions, self.log_probs, self.advantages, taken)
        obs, actions, log_probs, advantages, valid = (part[rows, order] for part in parts)
        return Batch(obs, actions, log_probs, advantages, valid, self.returns)

    def ratio_loss(self, policy: Distribution) -> Tensor:
        """The likelihood ratio's loss of each task, ``[task]``."""
        return likelihood_ratio_loss(policy.log_prob(self.actions), self.log_probs, self.advantages, self.valid)

    def log_likelihood_loss(self, policy: Distribution) -> Tensor:
        """REINFORCE's loss of each task, ``[task]``."""
        return log_likelihood_loss(policy.log_prob(self.actions), self.advantages, self.valid)


InnerObjective = Literal["ratio", "log_likelihood"]

FisherMetric = Literal["full", "first_order"]
"""Whether Fisher products know the Hessians of the inner loop."""

PolicyAt = Callable[[int], Distribution]
"""``k`` -> the policies after ``k`` gradient steps, on the observations of rollout ``k``."""

Objective = Callable[[PolicyAt, Sequence[Batch]], Tensor]
"""What an outer update minimises, ``[task]``: a function of the policies at every stage of adaptation."""

Watch = Callable[[str], contextlib.AbstractContextManager[object]]
"""The name of a part of the computation -> a context that it runs in, e.g. one that takes the time."""


def loss_after_adaptation(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
    """MAML's objective: the likelihood ratio's loss after the last gradient step, ``[task]``."""
    return batches[-1].ratio_loss(policy_at(len(batches) - 1))


@dataclass(frozen=True)
class Metric:
    """What Fisher products of a few tasks go through.

    Attributes:
        loop: the inner loop.
        leaves: adapted parameters, the leaves of ``policy``'s graph.
        policy: adapted policy on the last rollout.
        jvp: how the parameters of ``policy`` move with the adapted ones.
        valid: which steps of the last rollout count, ``[task, sample]`` bool.
    """

    loop: InnerLoop
    leaves: Params
    policy: Distribution
    jvp: Callable[[Params], tuple[Tensor, ...]]
    valid: Tensor


@dataclass(frozen=True)
class Chunk:
    """A few tasks, linearised at the current meta-parameters.

    Attributes:
        batches: the trial's rollouts; the last is the one after adaptation.
        policy: adapted policy on the last rollout, detached.
        loss: objective, summed over tasks.
        gradient: gradient of ``loss`` with respect to the meta-parameters, flat ``[parameter]``.
        metric: what Fisher products go through; None where none were asked for.
    """

    batches: list[Batch]
    policy: Distribution
    loss: Tensor
    gradient: Tensor
    metric: Metric | None


class MetaGradient:
    """A policy, the rule that adapts it, and derivatives through the adaptation.

    Args:
        policy: what adapts; its parameters are the first of the meta-parameters.
        rule: how it adapts; the parameters of a learned one are the rest of them.
        first_order: whether the Hessians of the inner loop are left out of all derivatives.
        inner_objective: the loss of an inner step: the likelihood ratio's, or REINFORCE's log-likelihood.
        discount: discount of rewards.
        gae_lambda: lambda of generalised advantage estimation.
        bootstrap_at_horizon: whether the baseline values the state in which time ran out.
        generator: source of every number that an outer update draws; the agent seeds it before each trial.
        task_chunk: tasks computed together; 0 chooses by device.
        obs_moments: what the policy's observations are normalised by, which only its owner updates; None: by nothing.

    Attributes:
        watch: entered around each of the parts "advantages", "gradient" (within it "inner steps"), "Fisher products"
            and "line search"; does nothing unless it is set.
    """

    def __init__(
        self,
        policy: Policy,
        rule: UpdateRule,
        *,
        first_order: bool,
        inner_objective: InnerObjective,
        discount: float,
        gae_lambda: float,
        bootstrap_at_horizon: bool,
        generator: torch.Generator,
        task_chunk: int = 0,
        obs_moments: RunningMoments | None = None,
    ) -> None:
        self.policy = policy
        self.rule = rule
        self.first_order = first_order
        self.inner_objective = inner_objective
        self.discount = discount
        self.gae_lambda = gae_lambda
        self.bootstrap_at_horizon = bootstrap_at_horizon
        self.generator = generator
        self.task_chunk = task_chunk
        self.obs_moments = obs_moments
        self.watch: Watch = contextlib.nullcontext

    # The inner loop -------------------------------------------------------------------------------------------------

    def policy_obs(self, obs: Tensor) -> Tensor:
        """Observations ``[..., obs_dim]`` as the policy sees them."""
        return obs if self.obs_moments is None else self.obs_moments.normalise(obs)

    def batch(self, rollout: Rollout) -> Batch:
        """A rollout, flattened, with advantages; the baseline sees its observations as they are."""
        with self.watch("advantages"):
            advantages = linear_baseline_advantages(
                rollout, self.discount, self.gae_lambda, bootstrap_at_horizon=self.bootstrap_at_horizon
            )
            parts = (self.policy_obs(rollout.obs), rollout.actions, rollout.log_probs, advantages, rollout.valid)
            obs, actions, log_probs, advantages, valid = (part.flatten(1, 2) for part in parts)
            return Batch(obs, actions, log_probs, advantages, valid, rollout.returns.mean(1))

    def inner_loss(self, batch: Batch) -> LossFn:
        """The loss of one gradient step, as a function of stacked parameters."""
        loss = batch.ratio_loss if self.inner_objective == "ratio" else batch.log_likelihood_loss
        return lambda params: loss(self.policy.distribution(params, batch.obs))

    def signal(self, batch: Batch) -> Tensor:
        """What a rule is shown in place of the inner loss, ``[task]``: the mean return, for each step of the horizon.

        Advantages are normalised, so that the inner loss is 0 at the policy that acted, whatever it earned. What Ravi
        and Larochelle's rule shall see, how far adaptation has come, is the return.
        """
        return -batch.returns / self.policy.spec.horizon

    def chunks(self, batches: list[Batch]) -> list[list[Batch]]:
        """The tasks in groups that are computed together: all on a GPU; on a CPU as many as stay in its caches."""
        num_tasks, num_samples = batches[-1].log_probs.shape
        size = self.task_chunk
        if size == 0:
            on_gpu = batches[-1].log_probs.device.type == "cuda"
            size = num_tasks if on_gpu else max(1, _CPU_SAMPLES // num_samples)
        starts = range(0, num_tasks, size)
        return [[batch[first : first + size] for batch in batches] for first in starts]

    # Derivatives ----------------------------------------------------------------------------------------------------

    def linearise(self, batches: list[Batch], objective: Objective, *, metric: FisherMetric | None = None) -> Chunk:
        """Adapt, evaluate the objective, and carry its gradient back to the meta-parameters.

        Args:
            batches: rollouts of a few tasks.
            objective: what to minimise, per task.
            metric: keep what Fisher products on all steps go through, which holds on to the graphs.
        """
        with self.watch("gradient"):
            *inner, outer = batches
            loop = self._inner_steps(batches, not self.first_order)
            adapted = {name: value.requires_grad_() for name, value in loop.adapted.items()}
            stages = [*loop.starts, adapted]
            policies: dict[int, Distribution] = {}

            def policy_at(stage: int) -> Distribution:
                if stage not in policies:
                    policies[stage] = self.policy.distribution(stages[stage], batches[stage].obs)
                return policies[stage]

            with torch.enable_grad():
                policy, jvp = self.policy.linearise(adapted, outer.obs)
                policies[len(inner)] = policy
                loss = objective(policy_at, batches).sum()
                found = torch.autograd.grad(
                    loss,
                    tuple(value for stage in stages for value in stage.values()),
                    retain_graph=True,
                    materialize_grads=True,
                )
            size = len(adapted)
            by_stage = [
                dict(zip(adapted, found[size * index : size * (index + 1)], strict=True))
                for index in range(len(stages))
            ]
            direct = [by_stage[stage] if stage in policies else None for stage in range(len(inner))]
            gradient = self._to_meta(loop, by_stage[-1], direct)
            kept = None
            if metric is not None:
                cheaper = metric == "first_order" and not self.first_order
                through = self._inner_steps(batches, False) if cheaper else loop
                kept = Metric(through, adapted, policy, jvp, outer.valid)
            return Chunk(batches, policy.detach(), loss.detach(), gradient, kept)

    def metric(self, batches: list[Batch], kind: FisherMetric) -> Metric:
        """What Fisher products go through, by itself: on other steps than those of the gradient."""
        with self.watch("Fisher products"):
            loop = self._inner_steps(batches, kind == "full" and not self.first_order)
            adapted = {name: value.requires_grad_() for name, value in loop.adapted.items()}
            with torch.enable_grad():
                policy, jvp = self.policy.linearise(adapted, batches[-1].obs)
            return Metric(loop, adapted, policy, jvp, batches[-1].valid)

    def fisher_product(self, metric: Metric, vector: Tensor) -> Tensor:
        """``J' F J v``: a tangent goes through inner loop and network, is weighed, and is carried back.

        ``F`` is the Fisher information of the adapted policies on the last rollout, averaged over steps and summed
        over tasks; where those policies acted, this is the Hessian of their mean KL, exactly.
        """
        with self.watch("Fisher products"):
            start, of_rule = self._split(vector, len(metric.valid))
            moved = metric.jvp(metric.loop.jvp(start, of_rule))
            weight = (metric.valid / metric.valid.sum(1, keepdim=True))[..., None]
            with torch.no_grad():
                weighted = tuple(part * weight for part in metric.policy.fisher_product(moved))
            # Frozen standard deviations have no gradient.
            pairs = [(p, w) for p, w in zip(metric.policy.parameters, weighted, strict=True) if p.requires_grad]
            cotangent = torch.autograd.grad(
                [parameter for parameter, _ in pairs],
                tuple(metric.leaves.values()),
                [w for _, w in pairs],
                retain_graph=True,
                materialize_grads=True,
            )
            return self._to_meta(metric.loop, dict(zip(metric.leaves, cotangent, strict=True)))

    def evaluate_at(self, flat: Tensor, batches: list[Batch], objective: Objective) -> tuple[Tensor, Distribution]:
        """The objective ``[task]`` at other meta-parameters, without derivatives, and the adapted policies there."""
        with self.watch("line search"):
            *inner, outer = batches
            start, of_rule = self._split(flat, len(outer.obs))
            losses = [self.inner_loss(batch) for batch in inner]
            loop = inner_loop(
                start,
                losses,
                self.rule,
                second_order=False,
                weights=of_rule,
                signals=[self.signal(batch) for batch in inner],
                differentiable=False,
            )
            stages = [*loop.starts, loop.adapted]
            with torch.no_grad():

                def policy_at(stage: int) -> Distribution:
                    return self.policy.distribution(stages[stage], batches[stage].obs)

                return objective(policy_at, batches), policy_at(len(inner))

    # Meta-parameters ------------------------------------------------------------------------------------------------

    def meta_parameters(self) -> Params:
        """What meta-training moves: the policy's parameters, then those of a learned rule as ``rule.<name>``."""
        rule = {f"{_RULE}{name}": value for name, value in self.rule.named_parameters() if value.requires_grad}
        return {**self.policy.params(), **rule}

    def current(self) -> Tensor:
        """The meta-parameters as one vector, detached; see :meth:`flatten`."""
        return self.flatten(self.meta_parameters())

    def flatten(self, values: Params) -> Tensor:
        """Meta-parameters, or vectors of their shapes, as one detached vector ``[parameter]``."""
        return torch.cat([values[name].detach().flatten() for name in self.meta_parameters()])

    def unflatten(self, flat: Tensor) -> Params:
        """The inverse of :meth:`flatten`."""
        shapes = {name: value.shape for name, value in self.meta_parameters().items()}
        parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    @torch.no_grad()
    def assign(self, flat: Tensor) -> None:
        """Set the meta-parameters."""
        for name, value in self.unflatten(flat).items():
            self.meta_parameters()[name].copy_(value)

    def _inner_steps(self, batches: list[Batch], second_order: bool) -> InnerLoop:
        """One step on every rollout but the last."""
        with self.watch("inner steps"):
            start = stack(self.policy.params(), len(batches[-1].obs))
            losses = [self.inner_loss(batch) for batch in batches[:-1]]
            signals = [self.signal(batch) for batch in batches[:-1]]
            return inner_loop(start, losses, self.rule, second_order=second_order, signals=signals)

    def _split(self, flat: Tensor, num_tasks: int) -> tuple[Params, Params]:
        """Policy's part of a flat vector, for every task, and the rule's, under the rule's own names."""
        values = self.unflatten(flat)
        of_policy = {name: values[name] for name in self.policy.params()}
        of_rule = {name.removeprefix(_RULE): value for name, value in values.items() if name.startswith(_RULE)}
        return stack(of_policy, num_tasks), of_rule

    def _to_meta(self, loop: InnerLoop, cotangent: Params, direct: Sequence[Params | None] = ()) -> Tensor:
        """A gradient at the adapted parameters, carried back to the meta-parameters, summed over tasks, flat."""
        of_start, of_rule = loop.vjp(cotangent, direct)
        named = {f"{_RULE}{name}": value for name, value in of_rule.items()}
        return self.flatten({**{name: value.sum(0) for name, value in of_start.items()}, **named})
