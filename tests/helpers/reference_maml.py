"""MAML written plainly in float64: a loop over tasks, double backward, own baseline, own line search.

What the tests of gradient-based agents compare with. It shares nothing with the implementation but the names, order
and values of the parameters, and the settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence, register_kl

import metarl.agents.maml as maml
from metarl.agents.common.gradient_agent import GradientAgent, GradientConfig
from metarl.agents.maml import TrustRegionConfig
from metarl.networks.policy import MIN_STD
from metarl.types import Rollout, Spec, Timestep, Trial

CPU = torch.device("cpu")
DISCRETE, BOX = Spec(3, 4, True, 7), Spec(3, 2, False, 7)
PRODUCT = Spec(3, 7, False, 7, choices=(3, 2))
"""Two choices and two coordinates."""
NUM_TASKS, NUM_EPISODES = 3, 4


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
    chosen = [torch.randint(0, number, (*shape, 1), generator=generator).float() for number in spec.choices]
    obs = torch.where(valid[..., None], 2.0 * randn(*shape, spec.obs_dim), torch.tensor(1e3))
    return Rollout(
        timesteps=Timestep(obs, randn(*shape, spec.action_dim), randn(*shape), torch.zeros(shape), valid),
        actions=actions if spec.discrete else torch.cat([*chosen, randn(*shape, spec.num_coordinates)], -1),
        # Off-policy on purpose: at a ratio of exactly 1 many wrong losses have the right value.
        log_probs=torch.where(valid, -1.2 + 0.2 * randn(*shape), torch.tensor(5.0)),
        rewards=randn(*shape) * valid,
        terminated=last & terminates,
        truncated=last & ~terminates,
        last_obs=2.0 * randn(*shape[:2], spec.obs_dim),
        success=torch.zeros(shape[:2], dtype=torch.bool),
        invalid=torch.zeros(shape[:2], dtype=torch.bool),
    )


def random_trial(spec: Spec, num_inner_steps: int, seed: int = 0) -> Trial:
    generator = torch.Generator().manual_seed(seed)
    rollouts = tuple(random_rollout(spec, generator) for _ in range(num_inner_steps + 1))
    return Trial(list(range(NUM_TASKS)), rollouts)


def randomise(agent: GradientAgent) -> GradientAgent:
    """Set all parameters far from zero, so that no term of a derivative vanishes; no two learned rates are equal."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        for rate in agent.rule.parameters():
            rate.mul_(0.5 + torch.rand(rate.shape, generator=generator))
    return agent


def meta_vector(agent: GradientAgent) -> Tensor:
    """Policy, then learned step sizes, as one vector."""
    return flat([*agent.policy.parameters(), *agent.rule.parameters()])


@dataclasses.dataclass
class Episode:
    """One task's rollout without padding; ``mean_return`` is that of its episodes."""

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    mean_return: Tensor


class Reference:
    """The meta-gradient of MAML and one TRPO step, for one task at a time.

    Args:
        agent: its parameters, learned step sizes and settings are copied.
        trial: what it would be updated with.
        adapting: names of the parameters that adapt; default: all.
    """

    def __init__(self, agent: GradientAgent, trial: Trial, adapting: Collection[str] | None = None) -> None:
        self.config: GradientConfig = agent.config
        self.min_std = MIN_STD
        self.spec = agent.spec
        self.names = [name for name, _ in agent.policy.named_parameters()]
        self.adapting = self.names if adapting is None else adapting
        meta = [*agent.policy.parameters(), *agent.rule.parameters()]
        self.start = [p.detach().clone().requires_grad_() for p in meta]
        self.load(trial)

    def load(self, trial: Trial) -> None:
        """Take in a trial, collected by the policies at ``start``."""
        self.tasks = [
            [self.task_samples(rollout[task]) for rollout in trial.rollouts] for task in range(len(trial.tasks))
        ]
        self.old = [self.policies(self.start, samples) for samples in self.tasks]

    def task_samples(self, rollout: Rollout) -> Episode:
        """Advantages of one task's rollout: ridge regression by QR, GAE by a loop over time."""
        features, targets, pieces, returns = [], [], [], []
        for episode in range(NUM_EPISODES):
            length = int(rollout.valid[episode].sum())
            rewards = rollout.rewards[episode, :length].tolist()
            returns.append(sum(rewards))
            for t in range(length):
                features.append(self.features(rollout.obs[episode, t], t))
                targets.append(sum(self.config.discount**k * r for k, r in enumerate(rewards[t:])))
        x, y = torch.stack(features), torch.tensor(targets)
        if len(x) < 3 * x.shape[1]:  # Too few steps to know states by: time alone.
            x[:, :-4] = 0.0
        ridge = torch.eye(x.shape[1]) * 1e-5**0.5
        weights = torch.linalg.lstsq(torch.cat([x, ridge]), torch.cat([y, torch.zeros(x.shape[1])])[:, None])[0][:, 0]
        for episode in range(NUM_EPISODES):
            length = int(rollout.valid[episode].sum())
            values = [float(self.features(rollout.obs[episode, t], t) @ weights) for t in range(length)]
            ended = not self.config.bootstrap_at_horizon or bool(rollout.terminated[episode, length - 1])
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
        return Episode(obs, actions, log_probs, advantages, torch.tensor(returns).mean())

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
        if self.spec.discrete:
            return Categorical(logits=x)
        *logits, mean = x.split([*self.spec.choices, self.spec.num_coordinates], dim=-1)
        std = torch.log(1 + torch.exp(named["raw_std"])) + self.min_std
        normals = Independent(Normal(mean, std.expand_as(mean)), 1)
        return Parts([*(Categorical(logits=part) for part in logits), normals]) if logits else normals

    def ratio(self, params: list[Tensor], samples: Episode) -> Tensor:
        log_prob: Tensor = self.policy(params, samples.obs).log_prob(samples.actions)  # type: ignore[no-untyped-call]
        return torch.exp(log_prob - samples.log_probs)

    def loss(self, params: list[Tensor], samples: Episode) -> Tensor:
        return -(self.ratio(params, samples) * samples.advantages).mean()

    def inner_loss(self, params: list[Tensor], samples: Episode) -> Tensor:
        if self.config.inner_objective == "ratio":
            return self.loss(params, samples)
        log_prob: Tensor = self.policy(params, samples.obs).log_prob(samples.actions)  # type: ignore[no-untyped-call]
        return -(log_prob * samples.advantages).mean()

    def stages(self, meta: list[Tensor], samples: list[Episode]) -> list[list[Tensor]]:
        """One task's parameters before and after each inner step; they carry their graphs."""
        params, rates = meta[: len(self.names)], meta[len(self.names) :]
        if not rates:
            rates = [torch.tensor(self.config.inner_lr if name in self.adapting else 0.0) for name in self.names]
        found = [params]
        for inner in samples[:-1]:
            gradient = torch.autograd.grad(self.inner_loss(found[-1], inner), found[-1], create_graph=True)
            if self.config.first_order:
                gradient = tuple(slope.detach() for slope in gradient)
            found.append([p - rate * slope for p, rate, slope in zip(found[-1], rates, gradient, strict=True)])
        return found

    def adapt(self, meta: list[Tensor], samples: list[Episode]) -> list[Tensor]:
        return self.stages(meta, samples)[-1]

    def policies(self, meta: list[Tensor], samples: list[Episode]) -> list[Distribution]:
        """One task's policies at every stage, each on its own rollout, detached."""
        stages = self.stages(meta, samples)
        return [detached(self.policy(params, part.obs)) for params, part in zip(stages, samples, strict=True)]

    def objective(self, task: int, stages: list[list[Tensor]]) -> Tensor:
        """What the outer update minimises, of one task."""
        return self.loss(stages[-1], self.tasks[task][-1])

    def surrogate(self, meta: list[Tensor]) -> Tensor:
        losses = [self.objective(task, self.stages(meta, samples)) for task, samples in enumerate(self.tasks)]
        return torch.stack(losses).mean()

    def kl(self, meta: list[Tensor]) -> Tensor:
        kls = []
        for samples, old in zip(self.tasks, self.old, strict=True):
            new = self.policy(self.adapt(meta, samples), samples[-1].obs)
            kls.append(kl_divergence(old[-1], new).mean())
        return torch.stack(kls).mean()

    def gradient(self) -> Tensor:
        return flat(torch.autograd.grad(self.surrogate(self.start), self.start))

    def product(self, vector: Tensor) -> Tensor:
        """The Hessian of the mean KL at the old parameters times ``vector``, by double backward."""
        slope = flat(torch.autograd.grad(self.kl(self.start), self.start, create_graph=True))
        return flat(torch.autograd.grad(slope @ vector, self.start)) + self.trpo.cg_damping * vector

    @property
    def trpo(self) -> TrustRegionConfig:
        assert isinstance(self.config, TrustRegionConfig)
        return self.config

    def step(self) -> tuple[Tensor, float, float, int]:
        """Accepted parameters, their loss and KL, and the number of trials."""
        gradient = self.gradient()
        x, residual, direction = torch.zeros_like(gradient), gradient, gradient
        for _ in range(self.trpo.cg_iterations):
            image = self.product(direction)
            length = (residual @ residual) / (direction @ image)
            x, following = x + length * direction, residual - length * image
            direction = following + (following @ following) / (residual @ residual) * direction
            residual = following
        full = x * torch.sqrt(2 * self.trpo.max_kl / (x @ self.product(x)))
        start = flat(self.start)
        before = self.surrogate(self.start).item()
        for trial in range(self.trpo.max_backtracks):
            candidate = start - self.trpo.backtrack_ratio**trial * full
            meta = self.unflatten(candidate)
            loss, kl = self.surrogate(meta).item(), self.kl(meta).item()
            if loss < before and kl <= self.trpo.max_kl:
                return candidate, loss, kl, trial + 1
        return start, before, 0.0, self.trpo.max_backtracks

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([p.numel() for p in self.start])
        return [part.view_as(p).requires_grad_() for part, p in zip(parts, self.start, strict=True)]


class Parts(Distribution):
    """Independent choices, each one number of an action, and then normals."""

    def __init__(self, parts: list[Categorical | Independent]) -> None:
        super().__init__(parts[0].batch_shape, validate_args=False)  # type: ignore[no-untyped-call]
        self.parts = parts

    def log_prob(self, value: Tensor) -> Tensor:
        *choices, normals = self.parts
        chosen = [part.log_prob(value[..., index]) for index, part in enumerate(choices)]
        return sum([*chosen, normals.log_prob(value[..., len(choices) :])], torch.tensor(0.0))


@register_kl(Parts, Parts)
def _kl_of_parts(p: Parts, q: Parts) -> Tensor:
    return sum((kl_divergence(one, other) for one, other in zip(p.parts, q.parts, strict=True)), torch.tensor(0.0))


def detached(policy: Distribution) -> Distribution:
    if isinstance(policy, Parts):
        return Parts([detached(part) for part in policy.parts])  # type: ignore[misc]
    if isinstance(policy, Categorical):
        return Categorical(logits=policy.logits.detach())
    assert isinstance(policy, Independent)
    return Independent(Normal(policy.mean.detach(), policy.stddev.detach()), 1)


def flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.detach().flatten() if not part.grad_fn else part.flatten() for part in parts])


def capture(agent: GradientAgent, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor]:
    """The meta-gradient that a meta-update hands to its conjugate gradient, a random vector, and their product."""
    seen: list[Tensor] = []
    original = maml.conjugate_gradient

    def spy(product: Callable[[Tensor], Tensor], b: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
        vector = torch.randn(len(b), generator=torch.Generator().manual_seed(1))
        seen.extend((b, vector, product(vector)))
        return original(product, b, num_iterations)

    monkeypatch.setattr(maml, "conjugate_gradient", spy)
    agent.meta_update(trial)
    gradient, vector, image = seen
    return gradient, vector, image
