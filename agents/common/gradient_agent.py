"""What gradient-based agents share: a policy that adapts by gradient steps, and derivatives through these steps.

An algorithm is an :class:`OuterUpdate` (how the meta-parameters move) and the update rule of its inner loop. The inner
loss is REINFORCE's with a linear feature baseline (Finn et al., 2017, arXiv 1703.03400, section 5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metarl.adaptation import AndrychowiczLSTM, InnerLoop, LossFn, RaviLSTM, StepSizes, UpdateRule, inner_loop
from metarl.agent import Agent, AgentConfig
from metarl.errors import ConfigError, require_in_unit_interval, require_positive
from metarl.functional.baselines import linear_baseline_advantages
from metarl.functional.policy_losses import likelihood_ratio_loss
from metarl.networks.distributions import Distribution
from metarl.networks.mlp import Activation, MLPPolicy, stack
from metarl.networks.policy import MIN_STD, Params, Policy
from metarl.seeding import torch_stream
from metarl.types import Action, Rollout, Spec, Timestep, Trial

InnerRule = Literal["sgd", "ravi-lstm", "andrychowicz-lstm"]

_LEARNED_RULES: dict[str, type[RaviLSTM] | type[AndrychowiczLSTM]] = {
    "ravi-lstm": RaviLSTM,
    "andrychowicz-lstm": AndrychowiczLSTM,
}

_RULE = "rule."
"""Prefix of the rule's parameters among the meta-parameters, which a policy's parameters must not have."""

_EVAL_STEPS = 3
"""Gradient steps in an evaluation, as in MAML's Figures 4 and 5."""

_CPU_SAMPLES = 8192
"""Steps in one chunk of tasks on a CPU (measured: larger ones fall out of its caches)."""


@dataclass(frozen=True)
class GradientConfig(AgentConfig):
    """Settings of the policy and of its inner loop."""

    hidden_sizes: tuple[int, ...] = (100, 100)
    """Widths of the policy's hidden layers."""
    activation: Activation = "tanh"
    """Activation between the layers."""
    init_std: float = 1.0
    """Initial standard deviation of a Gaussian policy, where 1 is half the width of the action box."""
    num_inner_steps: int = 1
    """Gradient steps on each task before the meta-update."""
    inner_lr: float = 0.1
    """Step size of the inner loop; of a learned rule, the step size of gradient descent that it begins as."""
    inner_rule: InnerRule = "sgd"
    """How an inner step uses the gradient: gradient descent, or an LSTM learned along with the policy, that of Ravi and
    Larochelle (gates on parameters and gradient) or of Andrychowicz et al. (its output is the step)."""
    extra_step_factor: float = 0.5
    """Factor on inner steps beyond num_inner_steps, which training never saw (MAML's code: 0.5)."""
    rollouts_per_task: int = 20
    """Episodes of each task behind every gradient."""
    discount: float = 0.99
    """Discount of rewards."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation."""
    first_order: bool = False
    """Leave the Hessians of the inner loop out of all derivatives (first-order MAML); steadier with a learned rule,
    whose inputs are steep where gradients are small."""
    task_chunk: int = 0
    """Tasks computed together; 0 chooses by device. Changes speed and memory, not results."""
    compile: bool = False
    """Compile acting and the line search's last pass (torch.compile; needs a C++ compiler, some seconds, MLPs only)."""

    @property
    def num_adaptations(self) -> int:
        """Every inner step is one."""
        return self.num_inner_steps

    def __post_init__(self) -> None:
        require_positive(self, "init_std", "num_inner_steps", "inner_lr", "extra_step_factor", "rollouts_per_task")
        require_in_unit_interval(self, "discount", "gae_lambda")
        name = type(self).__name__
        # An agent that cannot learn a rule declares a narrower type.
        rules = get_args(get_type_hints(type(self))["inner_rule"])
        if self.inner_rule not in rules:
            raise ConfigError(f"{name}.inner_rule must be one of {', '.join(rules)}, got {self.inner_rule!r}.")
        if not isinstance(self.task_chunk, int) or self.task_chunk < 0:
            raise ConfigError(f"{name}.task_chunk must be a whole number of 0 or more, got {self.task_chunk!r}.")
        if self.init_std <= MIN_STD:
            raise ConfigError(f"{name}.init_std must be above {MIN_STD}, got {self.init_std!r}.")
        if any(width < 1 for width in self.hidden_sizes):
            raise ConfigError(f"{name}.hidden_sizes must be above 0, got {self.hidden_sizes!r}.")


@dataclass(frozen=True)
class FastWeights:
    """What adapts to the tasks.

    Attributes:
        params: stacked parameters, ``[task, ...]``.
        num_steps: gradient steps taken so far.
        rule_state: what the update rule remembers of them, ``[task, ...]`` by name; None before the first.
    """

    params: Params
    num_steps: int
    rule_state: Params | None = None


@dataclass(frozen=True)
class Batch:
    """One rollout, flattened to ``[task, sample]``, with its normalised advantages and ``[task]`` mean returns."""

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    valid: Tensor
    returns: Tensor

    def __getitem__(self, tasks: slice) -> Batch:
        return Batch(*(getattr(self, field.name)[tasks] for field in fields(self)))

    def loss(self, policy: Distribution) -> Tensor:
        """The inner loss of each task, ``[task]``."""
        return likelihood_ratio_loss(policy.log_prob(self.actions), self.log_probs, self.advantages, self.valid)


PolicyAt = Callable[[int], Distribution]
"""``k`` -> the policies after ``k`` gradient steps, on the observations of rollout ``k``."""

Objective = Callable[[PolicyAt, Sequence[Batch]], Tensor]
"""What an outer update minimises, ``[task]``: a function of the policies at every stage of adaptation."""


def loss_after_adaptation(policy_at: PolicyAt, batches: Sequence[Batch]) -> Tensor:
    """MAML's objective: the policy loss after the last gradient step, ``[task]``."""
    return batches[-1].loss(policy_at(len(batches) - 1))


@dataclass(frozen=True)
class Chunk:
    """A few tasks, linearised at the current meta-parameters.

    Attributes:
        batches: the trial's rollouts; the last is the one after adaptation.
        metric: the inner loop that Fisher products go through.
        leaves: adapted parameters, the leaves of ``policy``'s graph.
        policy: adapted policy on the last rollout.
        push: how the parameters of ``policy`` move with the adapted ones.
        loss: objective, summed over tasks.
        gradient: of ``loss`` with respect to the meta-parameters, flat ``[parameter]``.
    """

    batches: list[Batch]
    metric: InnerLoop
    leaves: Params
    policy: Distribution
    push: Callable[[Params], tuple[Tensor, ...]]
    loss: Tensor
    gradient: Tensor


class OuterUpdate(Protocol):
    """How the meta-parameters move."""

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """What a checkpoint must hold besides policy and update rule."""

    def __call__(self, agent: GradientAgent, batches: list[Batch]) -> dict[str, float]:
        """Change the agent's meta-parameters; returns metrics."""


class GradientAgent(Agent[FastWeights]):
    """A policy that adapts to each task by policy gradient steps.

    Args:
        config: settings of policy and inner loop.
        spec: sizes of observation and action.
        device: where everything lives.
        seed: of the initial parameters.
        make_update: builds the outer update for the new agent.
        num_adaptations: gradient steps in a training trial; default: those of ``config``.
        num_trained_steps: steps that the outer update trains at full size; default: ``num_adaptations``, 1 at least.
        learned_rates: whether step sizes are meta-parameters (Meta-SGD).
        head_only: whether the last layer alone adapts (ANIL).
        policy: adapts instead of the MLP of ``config``, e.g. a :class:`metarl.networks.policy.ModulePolicy`.
    """

    config: GradientConfig

    def __init__(
        self,
        config: GradientConfig,
        spec: Spec,
        device: torch.device,
        seed: int,
        make_update: Callable[[GradientAgent], OuterUpdate],
        *,
        num_adaptations: int | None = None,
        num_trained_steps: int | None = None,
        learned_rates: bool = False,
        head_only: bool = False,
        policy: Policy | None = None,
    ) -> None:
        num_adaptations = config.num_inner_steps if num_adaptations is None else num_adaptations
        super().__init__(
            spec,
            device,
            num_adaptations=num_adaptations,
            rollouts_per_task=config.rollouts_per_task,
            num_eval_adaptations=max(_EVAL_STEPS, num_adaptations),
        )
        self.config = config
        self.num_trained_steps = num_trained_steps or max(1, num_adaptations)
        with torch_stream(seed, "init"):
            mlp = MLPPolicy(spec, config.hidden_sizes, config.activation, config.init_std)
        if config.compile:
            if policy is not None:
                raise ConfigError(f"compile is for the MLP of the config, got the policy {type(policy).__name__}.")
            mlp.compile_inference()
        self.policy: Policy = (mlp if policy is None else policy).to(device)
        adapted = self.policy.head_names if head_only else None
        if learned_rates and config.inner_rule != "sgd":
            raise ConfigError(f"learned_rates are those of inner_rule 'sgd', got inner_rule {config.inner_rule!r}.")
        with torch_stream(seed, "rule"):
            self.rule: UpdateRule = (
                StepSizes(self.policy.params(), config.inner_lr, learned=learned_rates, adapted=adapted)
                if config.inner_rule == "sgd"
                else _LEARNED_RULES[config.inner_rule](config.inner_lr, adapted=adapted).to(device)
            )
        self.update = make_update(self)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Policy, a learned update rule, and what the outer update keeps."""
        learned = {"rule": self.rule} if list(self.rule.parameters()) else {}
        return {"policy": self.policy, **learned, **self.update.components()}

    def begin(self, num_tasks: int) -> FastWeights:
        """The meta-parameters, for every task; copies, which the next meta-update leaves alone."""
        copies = {name: value.detach().clone() for name, value in self.policy.params().items()}
        return FastWeights(stack(copies, num_tasks), 0)

    @torch.no_grad()
    def act(self, state: FastWeights, timestep: Timestep, deterministic: bool = False) -> tuple[Action, FastWeights]:
        """Sample from each task's own policy."""
        policy = self.policy.distribution(state.params, timestep.obs)
        value = policy.mode() if deterministic else policy.sample(self.generator)
        return Action(value, policy.log_prob(value)), state

    def adapt(self, state: FastWeights, rollout: Rollout) -> FastWeights:
        """One step of policy gradient on each task."""
        trained = state.num_steps < self.num_trained_steps
        loop = inner_loop(
            state.params,
            [self.inner_loss(self.batch(rollout))],
            self.rule,
            second_order=False,
            state=state.rule_state,
            factor=1.0 if trained else self.config.extra_step_factor,
            differentiable=False,
        )
        return FastWeights(loop.adapted, state.num_steps + 1, loop.state)

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """Hand the trial's rollouts to the outer update."""
        return self.update(self, [self.batch(rollout) for rollout in trial.rollouts])

    # For outer updates ----------------------------------------------------------------------------------------------

    def meta_parameters(self) -> Params:
        """What meta-training moves: the policy's parameters, then those of a learned rule as ``rule.<name>``."""
        rule = {f"{_RULE}{name}": value for name, value in self.rule.named_parameters()}
        return {**self.policy.params(), **rule}

    def batch(self, rollout: Rollout) -> Batch:
        """A rollout, flattened, with advantages."""
        advantages = linear_baseline_advantages(rollout, self.config.discount, self.config.gae_lambda)
        parts = (rollout.obs, rollout.actions, rollout.log_probs, advantages, rollout.valid)
        obs, actions, log_probs, advantages, valid = (part.flatten(1, 2) for part in parts)
        return Batch(obs, actions, log_probs, advantages, valid, rollout.returns.mean(1))

    def inner_loss(self, batch: Batch) -> LossFn:
        """The loss of one gradient step, as a function of stacked parameters."""
        return lambda params: batch.loss(self.policy.distribution(params, batch.obs))

    def stacked(self, num_tasks: int) -> Params:
        """The policy's parameters for every task, detached."""
        return stack({name: value.detach() for name, value in self.policy.params().items()}, num_tasks)

    def chunks(self, batches: list[Batch]) -> list[list[Batch]]:
        """The tasks in groups that are computed together: all on a GPU; on a CPU as many as stay in its caches."""
        num_tasks, num_samples = batches[-1].log_probs.shape
        size = self.config.task_chunk
        if size == 0:
            size = num_tasks if self.device.type == "cuda" else max(1, _CPU_SAMPLES // num_samples)
        starts = range(0, num_tasks, size)
        return [[batch[first : first + size] for batch in batches] for first in starts]

    def linearise(self, batches: list[Batch], objective: Objective, *, first_order_metric: bool = False) -> Chunk:
        """Adapt, evaluate the objective, and carry its gradient back to the meta-parameters.

        Args:
            batches: rollouts of a few tasks.
            objective: what to minimise, per task.
            first_order_metric: whether Fisher products leave out the Hessians of the inner loop.
        """
        *inner, outer = batches

        def adapt(second_order: bool) -> InnerLoop:
            losses = [self.inner_loss(batch) for batch in inner]
            return inner_loop(self.stacked(len(outer.obs)), losses, self.rule, second_order=second_order)

        loop = adapt(not self.config.first_order)
        metric = adapt(False) if first_order_metric and not self.config.first_order else loop
        adapted = {name: value.requires_grad_() for name, value in loop.adapted.items()}
        stages = [*loop.starts, adapted]
        policies: dict[int, Distribution] = {}

        def policy_at(stage: int) -> Distribution:
            if stage not in policies:
                policies[stage] = self.policy.distribution(stages[stage], batches[stage].obs)
            return policies[stage]

        with torch.enable_grad():
            policy, push = self.policy.linearise(adapted, outer.obs)
            policies[len(inner)] = policy
            loss = objective(policy_at, batches).sum()
            slopes = torch.autograd.grad(
                loss,
                tuple(value for stage in stages for value in stage.values()),
                retain_graph=True,
                materialize_grads=True,
            )
        size = len(adapted)
        by_stage = [
            dict(zip(adapted, slopes[size * index : size * (index + 1)], strict=True)) for index in range(len(stages))
        ]
        direct = [by_stage[stage] if stage in policies else None for stage in range(len(inner))]
        gradient = self._to_meta(loop, by_stage[-1], direct)
        return Chunk(batches, metric, adapted, policy, push, loss.detach(), gradient)

    def fisher_product(self, chunk: Chunk, vector: Tensor) -> Tensor:
        """``J' F J v``: push the tangent through the inner loop and the network, weigh it, pull it back.

        ``F`` is the Fisher information of the adapted policies on the last rollout, averaged over steps and summed
        over tasks; where those policies acted, this is the Hessian of their mean KL, exactly.
        """
        outer = chunk.batches[-1]
        tangents = self.unflatten(vector)
        start = stack({name: tangents[name] for name in self.policy.params()}, len(outer.obs))
        pushed = chunk.metric.push(start, _of_rule(tangents))
        moved = chunk.push(pushed)
        weight = (outer.valid / outer.valid.sum(1, keepdim=True))[..., None]
        with torch.no_grad():
            weighted = tuple(part * weight for part in chunk.policy.fisher_product(moved))
        cotangent = torch.autograd.grad(
            chunk.policy.parameters, tuple(chunk.leaves.values()), weighted, retain_graph=True, materialize_grads=True
        )
        return self._to_meta(chunk.metric, dict(zip(chunk.leaves, cotangent, strict=True)))

    def evaluate_at(self, flat: Tensor, batches: list[Batch], objective: Objective) -> tuple[Tensor, Distribution]:
        """The objective ``[task]`` at other meta-parameters, without derivatives, and the adapted policies there."""
        values = self.unflatten(flat)
        *inner, outer = batches
        loop = inner_loop(
            stack({name: values[name] for name in self.policy.params()}, len(outer.obs)),
            [self.inner_loss(batch) for batch in inner],
            self.rule,
            second_order=False,
            weights=_of_rule(values),
            differentiable=False,
        )
        stages = [*loop.starts, loop.adapted]
        with torch.no_grad():

            def policy_at(stage: int) -> Distribution:
                return self.policy.distribution(stages[stage], batches[stage].obs)

            return objective(policy_at, batches), policy_at(len(inner))

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

    def _to_meta(self, loop: InnerLoop, cotangent: Params, direct: Sequence[Params | None] = ()) -> Tensor:
        of_start, of_rule = loop.pull_with_rule(cotangent, direct)
        named = {f"{_RULE}{name}": value for name, value in of_rule.items()}
        return self.flatten({**{name: value.sum(0) for name, value in of_start.items()}, **named})


def _of_rule(values: Params) -> Params:
    """The rule's part of meta-parameters, or of vectors of their shapes, under the rule's own names."""
    return {name.removeprefix(_RULE): value for name, value in values.items() if name.startswith(_RULE)}
