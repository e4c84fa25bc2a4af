"""MAML-TRPO against a float64 reference: a plain loop over tasks, double backward, own baseline, own line search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Distribution, Independent, Normal, kl_divergence

import metarl.agents.maml as maml
from metarl.agents.gradient import GradientAgent
from metarl.agents.maml import MAMLTRPOConfig
from metarl.array_env import ArrayVectorEnv
from metarl.collector import Collector
from metarl.envs.bandits import BanditDynamics
from metarl.errors import ConfigError, NonFiniteError
from metarl.evaluator import evaluate
from metarl.seeding import numpy_stream
from metarl.tasks import TaskDistribution
from metarl.trial import run_trial
from metarl.types import Rollout, Spec, Timestep, Trial

CPU = torch.device("cpu")
DISCRETE, BOX = Spec(3, 4, True, 7), Spec(3, 2, False, 7)
NUM_TASKS, NUM_EPISODES = 3, 4


@pytest.fixture
def float64() -> Iterator[None]:
    """Everything that a test builds is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_rollout(spec: Spec, generator: torch.Generator, num_tasks: int = NUM_TASKS) -> Rollout:
    """Episodes of 1 to ``horizon`` steps, some terminated, some truncated; padding holds what must not count."""
    shape = (num_tasks, NUM_EPISODES, spec.horizon)
    randn = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    lengths = torch.randint(1, spec.horizon + 1, shape[:2], generator=generator)
    steps = torch.arange(spec.horizon)
    valid = steps < lengths[..., None]
    last = steps == lengths[..., None] - 1
    terminates = torch.rand(shape[:2], generator=generator)[..., None] < 0.5
    actions = torch.randint(0, spec.action_dim, shape, generator=generator)
    obs = torch.where(valid[..., None], 2.0 * randn(*shape, spec.obs_dim), torch.tensor(1e3))
    return Rollout(
        timesteps=Timestep(obs, randn(*shape, spec.action_dim), randn(*shape), torch.zeros(shape), valid),
        actions=actions if spec.discrete else randn(*shape, spec.action_dim),
        # Off-policy on purpose: at a ratio of exactly 1 many wrong losses have the right value.
        log_probs=torch.where(valid, -1.2 + 0.2 * randn(*shape), torch.tensor(5.0)),
        rewards=randn(*shape) * valid,
        terminated=last & terminates,
        truncated=last & ~terminates,
        last_obs=2.0 * randn(*shape[:2], spec.obs_dim),
        success=torch.zeros(shape[:2], dtype=torch.bool),
    )


def random_trial(spec: Spec, num_inner_steps: int, seed: int = 0) -> Trial:
    generator = torch.Generator().manual_seed(seed)
    rollouts = tuple(random_rollout(spec, generator) for _ in range(num_inner_steps + 1))
    return Trial(list(range(NUM_TASKS)), rollouts)


def build(config: MAMLTRPOConfig, spec: Spec, num_inner_steps: int) -> GradientAgent:
    """An agent whose parameters are all far from zero, so that no term of a derivative vanishes."""
    agent = GradientAgent(config, spec, CPU, 0, lambda agent: maml.TRPOUpdate(config), num_adaptations=num_inner_steps)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return agent


# The reference -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Episode:
    """One episode without padding."""

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor


class Reference:
    """One TRPO step of MAML, for one task at a time."""

    def __init__(self, agent: GradientAgent, trial: Trial) -> None:
        self.config = agent.config
        self.min_std = agent.policy.min_std
        self.discrete = agent.spec.discrete
        self.start = [p.detach().clone().requires_grad_() for p in agent.policy.parameters()]
        self.names = [name for name, _ in agent.policy.named_parameters()]
        self.tasks = [
            [self.task_samples(rollout[task]) for rollout in trial.rollouts] for task in range(len(trial.tasks))
        ]
        self.old = [self.policy(self.adapt(self.start, samples), samples[-1].obs) for samples in self.tasks]

    def task_samples(self, rollout: Rollout) -> Episode:
        """Advantages of one task's rollout: ridge regression by QR, GAE by a loop over time."""
        features, targets, pieces = [], [], []
        for episode in range(NUM_EPISODES):
            length = int(rollout.valid[episode].sum())
            rewards = rollout.rewards[episode, :length].tolist()
            for t in range(length):
                features.append(self.features(rollout.obs[episode, t], t))
                targets.append(sum(self.config.discount**k * r for k, r in enumerate(rewards[t:])))
        x, y = torch.stack(features), torch.tensor(targets)
        ridge = torch.eye(x.shape[1]) * 1e-5**0.5
        weights = torch.linalg.lstsq(torch.cat([x, ridge]), torch.cat([y, torch.zeros(x.shape[1])])[:, None])[0][:, 0]
        for episode in range(NUM_EPISODES):
            length = int(rollout.valid[episode].sum())
            values = [float(self.features(rollout.obs[episode, t], t) @ weights) for t in range(length)]
            ended = bool(rollout.terminated[episode, length - 1])
            values.append(0.0 if ended else float(self.features(rollout.last_obs[episode], length) @ weights))
            advantage, backwards = 0.0, []
            for t in reversed(range(length)):
                delta = float(rollout.rewards[episode, t]) + self.config.discount * values[t + 1] - values[t]
                advantage = delta + self.config.discount * self.config.gae_lambda * advantage
                backwards.append(advantage)
            chosen = (rollout.obs, rollout.actions, rollout.log_probs)
            pieces.append([*(part[episode, :length] for part in chosen), torch.tensor(backwards[::-1])])
        obs, actions, log_probs, advantages = (torch.cat(column) for column in zip(*pieces, strict=True))
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
        return Episode(obs, actions, log_probs, advantages)

    @staticmethod
    def features(obs: Tensor, t: int) -> Tensor:
        clipped = obs.clamp(-10, 10)
        return torch.cat([clipped, clipped**2, torch.tensor([t / 100, (t / 100) ** 2, (t / 100) ** 3, 1.0])])

    def policy(self, params: list[Tensor], obs: Tensor) -> Distribution:
        named = dict(zip(self.names, params, strict=True))
        x = obs
        num_layers = sum(name.startswith("w") for name in self.names)
        for layer in range(num_layers):
            x = x @ named[f"w{layer}"] + named[f"b{layer}"]
            x = torch.tanh(x) if layer < num_layers - 1 else x
        if self.discrete:
            return TorchCategorical(logits=x)
        std = torch.log(1 + torch.exp(named["raw_std"])) + self.min_std
        return Independent(Normal(x, std.expand_as(x)), 1)

    def loss(self, params: list[Tensor], samples: Episode) -> Tensor:
        log_prob = self.policy(params, samples.obs).log_prob(samples.actions)  # type: ignore[no-untyped-call]
        return -(torch.exp(log_prob - samples.log_probs) * samples.advantages).mean()

    def adapt(self, params: list[Tensor], samples: list[Episode]) -> list[Tensor]:
        for inner in samples[:-1]:
            gradient = torch.autograd.grad(self.loss(params, inner), params, create_graph=True)
            if self.config.first_order:
                gradient = tuple(slope.detach() for slope in gradient)
            params = [p - self.config.inner_lr * slope for p, slope in zip(params, gradient, strict=True)]
        return params

    def surrogate(self, params: list[Tensor]) -> Tensor:
        losses = [self.loss(self.adapt(params, samples), samples[-1]) for samples in self.tasks]
        return torch.stack(losses).mean()

    def kl(self, params: list[Tensor]) -> Tensor:
        kls = []
        for samples, old in zip(self.tasks, self.old, strict=True):
            new = self.policy(self.adapt(params, samples), samples[-1].obs)
            kls.append(kl_divergence(self.detached(old), new).mean())
        return torch.stack(kls).mean()

    def detached(self, policy: Distribution) -> Distribution:
        if isinstance(policy, TorchCategorical):
            return TorchCategorical(logits=policy.logits.detach())
        assert isinstance(policy, Independent)
        return Independent(Normal(policy.mean.detach(), policy.stddev.detach()), 1)

    def gradient(self) -> Tensor:
        return flat(torch.autograd.grad(self.surrogate(self.start), self.start))

    def product(self, vector: Tensor) -> Tensor:
        """The Hessian of the mean KL at the old parameters times ``vector``, by double backward."""
        slope = flat(torch.autograd.grad(self.kl(self.start), self.start, create_graph=True))
        return flat(torch.autograd.grad(slope @ vector, self.start)) + self.config.cg_damping * vector

    def step(self) -> tuple[Tensor, float, float, int]:
        """Accepted parameters, their loss and KL, and the number of trials."""
        gradient = self.gradient()
        x, residual, direction = torch.zeros_like(gradient), gradient, gradient
        for _ in range(self.config.cg_iterations):
            image = self.product(direction)
            length = (residual @ residual) / (direction @ image)
            x, following = x + length * direction, residual - length * image
            direction = following + (following @ following) / (residual @ residual) * direction
            residual = following
        full = x * torch.sqrt(2 * self.config.max_kl / (x @ self.product(x)))
        start = flat(self.start)
        before = self.surrogate(self.start).item()
        for trial in range(self.config.max_backtracks):
            candidate = start - self.config.backtrack_ratio**trial * full
            params = self.unflatten(candidate)
            loss, kl = self.surrogate(params).item(), self.kl(params).item()
            if loss < before and kl <= self.config.max_kl:
                return candidate, loss, kl, trial + 1
        return start, before, 0.0, self.config.max_backtracks

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([p.numel() for p in self.start])
        return [part.view_as(p).requires_grad_() for part, p in zip(parts, self.start, strict=True)]


def flat(parts: Any) -> Tensor:
    return torch.cat([part.detach().flatten() if not part.grad_fn else part.flatten() for part in parts])


def capture(agent: GradientAgent, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor]:
    """The meta-gradient that a meta-update hands to its conjugate gradient, a random vector, and their product."""
    seen: list[Tensor] = []
    original = maml.conjugate_gradient

    def spy(product: Callable[[Tensor], Tensor], b: Tensor, num_iterations: int) -> Tensor:
        vector = torch.randn(len(b), generator=torch.Generator().manual_seed(1))
        seen.extend((b, vector, product(vector)))
        return original(product, b, num_iterations)

    monkeypatch.setattr(maml, "conjugate_gradient", spy)
    agent.meta_update(trial)
    gradient, vector, image = seen
    return gradient, vector, image


SETTINGS = {"hidden_sizes": (5,), "inner_lr": 0.3, "discount": 0.9, "gae_lambda": 0.8, "max_kl": 0.02}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_inner_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
def test_meta_gradient_and_kl_hessian_equal_the_reference(
    spec: Spec, num_inner_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact second order: without it the gradient would be off by more than 1e-4, so the comparison can fail."""
    trial = random_trial(spec, num_inner_steps)
    agent = build(MAMLTRPOConfig(**SETTINGS, task_chunk=2), spec, num_inner_steps)
    reference = Reference(agent, trial)
    gradient, vector, image = capture(agent, trial, monkeypatch)
    expected = reference.gradient()
    assert (gradient - expected).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() < 1e-8
    reference.config = dataclasses.replace(reference.config, first_order=True)
    if num_inner_steps:
        assert (reference.gradient() - expected).abs().max() > 1e-4
        assert (reference.product(vector) - image).abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
def test_first_order_equals_the_reference_with_detached_inner_gradients(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = random_trial(spec, 2)
    agent = build(MAMLTRPOConfig(**SETTINGS, first_order=True), spec, 2)
    reference = Reference(agent, trial)
    parameters = reference.step()[0]
    gradient, vector, image = capture(agent, trial, monkeypatch)
    assert (gradient - reference.gradient()).abs().max() < 1e-8
    assert (image - reference.product(vector)).abs().max() < 1e-8
    assert (flat(agent.policy.parameters()) - parameters).abs().max() < 1e-8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task_chunk", [0, 1, 2])
@pytest.mark.parametrize("num_inner_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
def test_trpo_step_equals_the_reference(spec: Spec, num_inner_steps: int, task_chunk: int) -> None:
    """Accepted parameters, loss, KL and number of trials; the step is real, and its KL inside the radius."""
    trial = random_trial(spec, num_inner_steps, seed=num_inner_steps)
    agent = build(MAMLTRPOConfig(**SETTINGS, task_chunk=task_chunk), spec, num_inner_steps)
    reference = Reference(agent, trial)
    before = flat(agent.policy.parameters())
    parameters, loss, kl, trials = reference.step()
    metrics = agent.meta_update(trial)
    assert (flat(agent.policy.parameters()) - parameters).abs().max() < 1e-8
    assert abs(metrics["loss"] - reference.surrogate(reference.start).item()) < 1e-8
    assert abs(metrics["loss"] - metrics["improvement"] - loss) < 1e-8
    assert abs(metrics["kl"] - kl) < 1e-8
    assert metrics["line_search_trials"] == trials
    assert (parameters - before).abs().max() > 1e-3 and 0 < kl <= 0.02 and metrics["improvement"] > 0


@pytest.mark.usefixtures("float64")
def test_line_search_that_backtracks_equals_the_reference() -> None:
    """A radius far beyond the quadratic model's validity: the first trials break the KL and are refused."""
    trial = random_trial(DISCRETE, 1)
    agent = build(MAMLTRPOConfig(**SETTINGS | {"max_kl": 2.0, "inner_lr": 1.0}), DISCRETE, 1)
    parameters, _, _, trials = Reference(agent, trial).step()
    assert 1 < trials < 15
    metrics = agent.meta_update(trial)
    assert metrics["line_search_trials"] == trials
    assert (flat(agent.policy.parameters()) - parameters).abs().max() < 1e-8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
def test_meta_gradient_at_zero_inner_lr_is_the_plain_policy_gradient(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = random_trial(spec, 2)
    agent = build(MAMLTRPOConfig(**SETTINGS | {"inner_lr": 1e-300}), spec, 2)
    reference = Reference(agent, trial)
    losses = [reference.loss(reference.start, samples[-1]) for samples in reference.tasks]
    plain = flat(torch.autograd.grad(torch.stack(losses).mean(), reference.start))
    gradient, _, _ = capture(agent, trial, monkeypatch)
    assert (gradient - plain).abs().max() < 1e-10


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spec", [DISCRETE, BOX], ids=["categorical", "gaussian"])
def test_adapt_equals_the_reference_and_is_what_the_meta_update_differentiates(spec: Spec) -> None:
    trial = random_trial(spec, 3)
    agent = build(MAMLTRPOConfig(**SETTINGS), spec, 3)
    reference = Reference(agent, trial)
    state = agent.begin(NUM_TASKS)
    for rollout in trial.rollouts[:-1]:
        state = agent.adapt(state, rollout)
    for task, samples in enumerate(reference.tasks):
        expected = reference.adapt(reference.start, samples)
        for (name, value), want in zip(state.params.items(), expected, strict=True):
            assert (value[task] - want).abs().max() < 1e-10, name


# With environments ----------------------------------------------------------------------------------------------------


def arms(num_pulls: int) -> TaskDistribution:
    """Two arms; the task is which of them pays 1, the other paying 0."""

    def sample(rng: np.random.Generator) -> dict[str, Any]:
        best = rng.integers(2)
        return {"means": np.array([1.0 - best, float(best)])}

    return TaskDistribution(
        id="test/arms",
        sample=sample,
        make_vector=lambda num: ArrayVectorEnv(BanditDynamics(2, "bernoulli"), num, num_pulls),
        horizon=num_pulls,
        shared_split=True,
    )


def train(agent: GradientAgent, distribution: TaskDistribution, num_iterations: int, num_tasks: int) -> None:
    collector = Collector(distribution, agent.rollouts_per_task, CPU)
    for iteration in range(num_iterations):
        tasks = distribution.train.sample(num_tasks, numpy_stream(0, "tasks", iteration))
        agent.meta_update(run_trial(agent, collector, tasks, agent.num_adaptations, seed=iteration))


@pytest.mark.parametrize("num_pulls", [1, 3])
def test_adapted_policy_pulls_the_best_arm_although_nothing_but_the_reward_tells_it(num_pulls: int) -> None:
    """Before meta-training one gradient step is too small to matter; after it 95 % of the pulls are right.

    The search must reach short steps: the observation is constant, so that the Fisher matrix is nearly singular and
    its quadratic model far too bold. Within 15 trials of 0.8 none is accepted, and nothing is ever learned.
    """
    distribution = arms(num_pulls)
    config = MAMLTRPOConfig(hidden_sizes=(16,), inner_lr=0.5, rollouts_per_task=20, max_kl=0.05, backtrack_ratio=0.5)
    agent = config.build(distribution.spec, CPU, 0)

    def shares() -> Any:
        found = evaluate(agent, distribution, num_tasks=100, num_adaptations=1, seed=1)
        return found.returns.mean(0) / num_pulls

    assert shares()[1] < 0.8
    train(agent, distribution, 15, 20)
    before, after = shares()
    assert 0.35 < before < 0.65 and after >= 0.95, (before, after)


def test_acting_and_recomputing_agree_after_every_adaptation() -> None:
    """What the collector recorded is what the adapted parameters say about it, to float32 rounding."""
    distribution = arms(3)
    agent = MAMLTRPOConfig(hidden_sizes=(8,), inner_lr=2.0, num_inner_steps=2).build(distribution.spec, CPU, 0)
    tasks = distribution.train.sample(4, np.random.default_rng(0))
    trial = run_trial(agent, Collector(distribution, 20, CPU), tasks, 2, seed=0)
    state = agent.begin(4)
    for rollout in trial.rollouts:
        for t in range(3):
            policy = agent.policy.distribution(state.params, rollout.obs[:, :, t])
            assert (policy.log_prob(rollout.actions[:, :, t]) - rollout.log_probs[:, :, t]).abs().max() < 1e-5
        state = agent.adapt(state, rollout)
    assert (trial.rollouts[0].log_probs[:, :, 0] - trial.rollouts[2].log_probs[:, :, 0]).abs().max() > 0.1


def test_steps_beyond_those_trained_are_shortened_by_the_factor() -> None:
    rollout = random_trial(BOX, 0).rollouts[0]
    moves = []
    for num_inner_steps in (1, 2):
        agent = build(MAMLTRPOConfig(hidden_sizes=(5,), num_inner_steps=num_inner_steps), BOX, num_inner_steps)
        first = agent.adapt(agent.begin(NUM_TASKS), rollout)
        second = agent.adapt(first, rollout)
        moves.append(second.params["w0"] - first.params["w0"])
    assert torch.allclose(moves[0], 0.5 * moves[1], atol=1e-6)
    assert moves[1].abs().max() > 1e-3


def test_update_that_no_reward_supports_keeps_the_parameters() -> None:
    """All rewards zero: the gradient vanishes, no step is better, and nothing becomes NaN."""
    agent = build(MAMLTRPOConfig(hidden_sizes=(5,)), DISCRETE, 1)
    trial = random_trial(DISCRETE, 1)
    rollouts = tuple(dataclasses.replace(r, rewards=torch.zeros_like(r.rewards)) for r in trial.rollouts)
    before = flat(agent.policy.parameters())
    metrics = agent.meta_update(dataclasses.replace(trial, rollouts=rollouts))
    assert torch.equal(flat(agent.policy.parameters()), before)
    assert metrics["improvement"] == 0 and metrics["kl"] == 0


def test_non_finite_meta_gradient_is_refused_before_a_parameter_changes() -> None:
    agent = build(MAMLTRPOConfig(hidden_sizes=(5,)), DISCRETE, 1)
    trial = random_trial(DISCRETE, 1)
    trial.rollouts[1].rewards[0, 0, 0] = float("nan")
    before = flat(agent.policy.parameters())
    with pytest.raises(NonFiniteError, match="meta-gradient"):
        agent.meta_update(trial)
    assert torch.equal(flat(agent.policy.parameters()), before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("inner_lr", 0.0),
        ("num_inner_steps", 0),
        ("rollouts_per_task", -1),
        ("max_kl", float("nan")),
        ("discount", 1.5),
        ("backtrack_ratio", 2.0),
        ("task_chunk", -1),
        ("hidden_sizes", (10, 0)),
    ],
)
def test_impossible_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"MAMLTRPOConfig\.{field} must .*{value}".replace("(10, 0)", r"\(10, 0\)")):
        MAMLTRPOConfig(**{field: value})
