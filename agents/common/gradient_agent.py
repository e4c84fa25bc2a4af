"""Shared code for gradient-based agents: a policy that acts, and adapts to each task by gradient steps.

An algorithm is a config that says what its update rule is (how the inner loop moves) and its :class:`OuterUpdate` (how
the meta-parameters move, given a :class:`metarl.agents.common.meta_gradient.MetaGradient`).

Where all of them differ from the code behind the papers (MAML's ``cbfinn/maml_rl`` on rllab, ``jonasrothfuss/ProMP``):

* The inner loss is the likelihood ratio's, as in ProMP's code; in MAML's it is the log-likelihood. Where the policy
  acted both have one gradient; the Hessian of the ratio keeps the credit of pre-update actions, without which the
  second-order meta-gradient is biased. ``inner_objective`` chooses.
* The standard deviation is ``softplus(raw) + 0.001``; theirs is ``exp(raw)``, of at least 1e-6. A gradient step on
  ``raw`` is then a step on the logarithm times ``(sigmoid(raw) / std)^2``: 0.4 of theirs at a standard deviation of 1.
  An inner step that is too long makes the noise grow in proportion to it, not exponentially.
* The baseline is fitted to the rollout whose advantages it gives, as in ProMP's code; rllab's predicts before it fits.
* The state in which time ran out is worth what the baseline says; rllab, ProMP, ``tristandeleu/pytorch-maml-rl`` and
  Meta-World+ take 0 (``bootstrap_at_horizon = False``), which agrees with a baseline whose targets end there. Ours says
  0 on the mean, and of single episodes as much as advantages vary. On ``navigation-2d`` three seeds tell no difference,
  so the default is what it was: after 1, 2 and 3 steps of maml-trpo's preset at 60 iterations, on 40 held-out tasks,
  seeds 1, 2 and 3 return -11.8 -5.2 -5.5, -10.9 -5.0 -5.5 and -11.4 -5.3 -4.9 bootstrapped, and -11.6 -5.6 -5.3,
  -12.2 -5.2 -5.2 and -10.9 -6.1 -5.5 with 0
  (``metarl train maml-trpo navigation-2d --num-iterations 60 --seed 1``, ``--no-bootstrap-at-horizon``). On
  ``ml1/reach-v3`` one seed at a small budget learns a little sooner bootstrapped: after 10 iterations of 5 tasks and 4
  rollouts (``--meta-batch-size 5 --rollouts-per-task 4 --seed 1``) 20 held-out goals give 4665 after one step, and 4605
  with 0.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from metarl.adaptation import AndrychowiczLSTM, RaviLSTM, StepSizes, UpdateRule, inner_loop
from metarl.agent import Agent, AgentConfig
from metarl.agents.common.meta_gradient import Batch, InnerObjective, MetaGradient
from metarl.config.settings import Count, Counts, Natural, Positive, UnitInterval, above
from metarl.errors import ConfigError
from metarl.networks.mlp import Activation, MLPPolicy
from metarl.networks.normaliser import RunningMoments
from metarl.networks.params import Params, stack
from metarl.networks.policy import MIN_STD, Policy
from metarl.seeding import torch_stream
from metarl.types import Action, Rollout, Spec, Timestep, Trial

InnerRule = Literal["sgd", "ravi-lstm", "andrychowicz-lstm"]

_EVAL_STEPS = 3
"""Gradient steps in an evaluation, as in MAML's Figures 4 and 5."""


class OuterUpdate(Protocol):
    """How the meta-parameters move.

    One that takes its sums over tasks with :func:`metarl.distributed.current` says so by ``data_parallel = True``, and
    may then get the rollouts of a share of the tasks; others learn in one process only.
    """

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """What a checkpoint must hold besides policy and update rule."""

    def __call__(self, batches: list[Batch]) -> dict[str, float]:
        """Change the meta-parameters, given the rollouts of a trial; returns metrics."""


@dataclass(frozen=True)
class GradientConfig(AgentConfig):
    """Settings of the policy and of its inner loop."""

    retired: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {"compile": (False,)}
    trains_last_rollout: ClassVar[bool] = False
    """Whether the outer update takes an inner step on the last rollout of a trial too."""

    hidden_sizes: Counts = (100, 100)
    """Widths of the policy's hidden layers."""
    activation: Activation = "tanh"
    """Activation between the layers."""
    init_std: Annotated[Positive, above(MIN_STD)] = 1.0
    """Initial standard deviation of a Gaussian policy, where 1 is half the width of the action box."""
    num_inner_steps: Count = 1
    """Gradient steps on each task before the meta-update."""
    inner_lr: Positive = 0.1
    """Step size of the inner loop; of a learned rule, the step size of gradient descent that it begins as."""
    inner_rule: InnerRule = "sgd"
    """How an inner step uses the gradient: gradient descent, or an LSTM learned along with the policy, that of Ravi and
    Larochelle (gates on parameters and gradient) or of Andrychowicz et al. (its output is the step)."""
    inner_objective: InnerObjective = "ratio"
    """Loss of an inner step: the likelihood ratio's, or REINFORCE's log-likelihood, as in MAML's code. Where the policy
    acted their gradients are equal and their Hessians are not."""
    extra_step_factor: Positive = 0.5
    """Factor on inner steps beyond num_inner_steps, which training never saw (MAML's code: 0.5)."""
    rollouts_per_task: Count = 20
    """Episodes of each task behind every gradient."""
    discount: UnitInterval = 0.99
    """Discount of rewards."""
    gae_lambda: UnitInterval = 1.0
    """Lambda of generalised advantage estimation."""
    bootstrap_at_horizon: bool = True
    """Value the state in which time ran out by the baseline, instead of nothing."""
    normalise_obs: bool = False
    """Shift and scale the policy's observations by their running moments over the training episodes of all iterations
    before; in the first iteration they come as they are, clipped to ±10. The baseline sees them as they are."""
    first_order: bool = False
    """Leave the Hessians of the inner loop out of all derivatives (first-order MAML); steadier with a learned rule,
    whose inputs are steep where gradients are small."""
    task_chunk: Natural = 0
    """Tasks computed together; 0 chooses by device. Changes speed and memory, not results."""

    @property
    def num_adaptations(self) -> int:
        """Every inner step is one."""
        return self.num_inner_steps

    @property
    def num_trained_steps(self) -> int:
        """Inner steps that training takes at full size; the first one is always taken so."""
        return max(1, self.num_inner_steps + self.trains_last_rollout)

    @abc.abstractmethod
    def make_rule(self, policy: Policy) -> UpdateRule:
        """The rule that adapts ``policy``; :func:`named_rule` is that of ``inner_rule``."""

    @abc.abstractmethod
    def make_update(self, meta: MetaGradient) -> OuterUpdate:
        """The outer update that moves the meta-parameters of ``meta``."""

    def build(self, spec: Spec, device: torch.device, seed: int) -> GradientAgent:
        """A fresh agent."""
        return GradientAgent(self, spec, device, seed)


def named_rule(config: GradientConfig, policy: Policy, adapted: frozenset[str] | None = None) -> UpdateRule:
    """The rule of ``config.inner_rule``, as gradient descent with ``config.inner_lr`` to begin with.

    Args:
        config: settings.
        policy: what it adapts.
        adapted: names of the parameters that adapt; default: all.
    """
    match config.inner_rule:
        case "sgd":
            return StepSizes(policy.params(), config.inner_lr, learned=False, adapted=adapted)
        case "ravi-lstm":
            return RaviLSTM(config.inner_lr, adapted=adapted)
        case "andrychowicz-lstm":
            return AndrychowiczLSTM(config.inner_lr, adapted=adapted)


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


class GradientAgent(Agent[FastWeights]):
    """A policy that adapts to each task by policy gradient steps.

    Args:
        config: settings of policy and inner loop; it makes rule and outer update.
        spec: sizes of observation and action.
        device: where everything lives.
        seed: seed for the initial parameters.
        policy: adapts instead of the MLP of ``config``, e.g. a :class:`metarl.networks.policy.ModulePolicy`.

    Attributes:
        meta_gradient: policy, rule, and derivatives through the adaptation.
        update: moves the meta-parameters.

    Raises:
        ConfigError: for ``normalise_obs`` where no observation is measured, see :attr:`metarl.types.Spec.measured`.
    """

    config: GradientConfig

    def __init__(
        self, config: GradientConfig, spec: Spec, device: torch.device, seed: int, *, policy: Policy | None = None
    ) -> None:
        super().__init__(
            spec,
            device,
            num_adaptations=config.num_adaptations,
            rollouts_per_task=config.rollouts_per_task,
            num_eval_adaptations=max(_EVAL_STEPS, config.num_adaptations),
        )
        self.config = config
        if config.normalise_obs and not spec.measured:
            raise ConfigError(
                "normalise_obs=True needs observations that hold measured numbers; these are codes or pixels alone "
                "(Discrete, MultiDiscrete, MultiBinary, or Box of uint8), whose scale is known: leave normalise_obs "
                "out, and divide pixels by 255 in the environment or in the network."
            )
        self.obs_moments = RunningMoments(spec.obs_dim).to(device) if config.normalise_obs else None
        if policy is None:
            with torch_stream(seed, "init"):
                policy = MLPPolicy(spec, config.hidden_sizes, config.activation, config.init_std)
        self.policy = policy.to(device)
        with torch_stream(seed, "rule"):
            self.rule = config.make_rule(self.policy).to(device)
        self.meta_gradient = MetaGradient(
            self.policy,
            self.rule,
            first_order=config.first_order,
            inner_objective=config.inner_objective,
            discount=config.discount,
            gae_lambda=config.gae_lambda,
            bootstrap_at_horizon=config.bootstrap_at_horizon,
            generator=self.generator,
            task_chunk=config.task_chunk,
            obs_moments=self.obs_moments,
        )
        self.update = config.make_update(self.meta_gradient)
        # Of one's own, an outer update need not know of ranks, and one that does not say so is taken not to.
        self.data_parallel = getattr(self.update, "data_parallel", False)

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """Policy, a learned update rule, the moments of observations, and what the outer update keeps."""
        learned = {"rule": self.rule} if list(self.rule.parameters()) else {}
        seen = {} if self.obs_moments is None else {"obs_moments": self.obs_moments}
        return {"policy": self.policy, **learned, **seen, **self.update.components()}

    def begin(self, num_tasks: int) -> FastWeights:
        """The meta-parameters, for every task; copies, which the next meta-update leaves alone."""
        copies = {name: value.detach().clone() for name, value in self.policy.params().items()}
        return FastWeights(stack(copies, num_tasks), 0)

    @torch.no_grad()
    def act(self, state: FastWeights, timestep: Timestep, deterministic: bool = False) -> tuple[Action, FastWeights]:
        """Sample from each task's own policy."""
        policy = self.policy.distribution(state.params, self.meta_gradient.policy_obs(timestep.obs))
        value = policy.mode() if deterministic else policy.sample(self.noise)
        return Action(value, policy.log_prob(value)), state

    def adapt(self, state: FastWeights, rollout: Rollout) -> FastWeights:
        """One step of policy gradient on each task."""
        trained = state.num_steps < self.config.num_trained_steps
        meta = self.meta_gradient
        batch = meta.batch(rollout)
        loop = inner_loop(
            state.params,
            [meta.inner_loss(batch)],
            self.rule,
            second_order=False,
            state=state.rule_state,
            signals=[meta.signal(batch)],
            factor=1.0 if trained else self.config.extra_step_factor,
            differentiable=False,
        )
        return FastWeights(loop.adapted, state.num_steps + 1, loop.state)

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """Hand the trial's rollouts to the outer update."""
        metrics = self.update([self.meta_gradient.batch(rollout) for rollout in trial.rollouts])
        if self.obs_moments is not None:
            # At the end: whatever an iteration computes must see the observations that its policies acted on.
            for rollout in trial.rollouts:
                self.obs_moments.update(rollout.obs, rollout.valid)
        return metrics
