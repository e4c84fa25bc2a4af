"""MAML-TRPO as public PyTorch toolkits write it: a Python loop over tasks, and double backward throughout.

What :mod:`metarl.benchmarks.speed.meta_update` compares with. The mathematics is that of :mod:`metarl.agents.maml`, so
that both end with the same loss and KL; the structure is that of garage, learn2learn and pytorch-maml-rl at their best:
one task after another, inner gradients with ``create_graph``, ``torch.distributions``, and Hessian products of the mean
KL by differentiating its gradient again, whose graph is built once and kept for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from metarl.agents.maml import MAMLTRPOConfig
from metarl.functional.trust_region import backtrack, conjugate_gradient, step_to_radius
from metarl.networks.policy import MIN_STD
from metarl.types import Rollout, Trial

if TYPE_CHECKING:
    Policy = Independent[Normal]


@dataclass(frozen=True)
class Samples:
    """One task's rollout, flat: ``[sample, ...]``."""

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor


class PlainMAML:
    """One TRPO step on the mean loss after adaptation.

    Args:
        config: settings; those that choose between equal results are ignored.
        params: names and values of an MLP with weights ``w0, b0, w1, ...`` and ``raw_std``; copied.
    """

    def __init__(self, config: MAMLTRPOConfig, params: dict[str, Tensor]) -> None:
        self.config = config
        self.names = list(params)
        self.params = [value.detach().clone().requires_grad_() for value in params.values()]

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """Change the parameters; returns the loss before and after, and the KL.

        Args:
            trial: rollouts whose episodes are all of full length.
        """
        config = self.config
        tasks = [[self.samples(rollout[task]) for rollout in trial.rollouts] for task in range(len(trial.tasks))]
        adapted = [self.adapt(self.params, task[:-1]) for task in tasks]
        policies = [self.policy(params, task[-1].obs) for params, task in zip(adapted, tasks, strict=True)]
        old = [_detached(policy) for policy in policies]
        loss = torch.stack([_loss(p, task[-1]) for p, task in zip(policies, tasks, strict=True)]).mean()
        kl = torch.stack([kl_divergence(was, p).mean() for was, p in zip(old, policies, strict=True)]).mean()
        gradient = _flat(torch.autograd.grad(loss, self.params, retain_graph=True))
        slope = _flat(torch.autograd.grad(kl, self.params, create_graph=True))

        def product(vector: Tensor) -> Tensor:
            image = torch.autograd.grad(slope @ vector, self.params, retain_graph=True)
            return _flat(image) + config.cg_damping * vector

        def evaluate(flat: Tensor) -> tuple[float, float]:
            candidate = self._unflatten(flat)
            losses, kls = [], []
            for was, task in zip(old, tasks, strict=True):
                params = self.adapt(candidate, task[:-1], second_order=False)
                with torch.no_grad():
                    policy = self.policy(params, task[-1].obs)
                    losses.append(_loss(policy, task[-1]))
                    kls.append(kl_divergence(was, policy).mean())
            return float(torch.stack(losses).mean()), float(torch.stack(kls).mean())

        direction, _ = conjugate_gradient(product, gradient, config.cg_iterations)
        step = step_to_radius(direction, product(direction), config.max_kl)
        end, after, moved, trials = backtrack(
            evaluate,
            _flat(self.params).detach(),
            step,
            loss.item(),
            config.max_kl,
            config.backtrack_ratio,
            config.max_backtracks,
        )
        self.params = self._unflatten(end)
        return {"loss": loss.item(), "loss_after": after, "kl": moved, "line_search_trials": float(trials)}

    def samples(self, rollout: Rollout) -> Samples:
        """One task's advantages: ridge regression on features of the state, and a loop over time, both in float64."""
        rewards, config = rollout.rewards.double(), self.config
        features = _features(rollout.obs, torch.arange(rewards.shape[1], device=rewards.device))
        last = _features(rollout.last_obs, torch.tensor(rewards.shape[1], device=rewards.device))
        targets = _sums(rewards, config.discount)
        if targets.numel() < 3 * features.shape[-1]:  # Too few steps to know states by: time alone.
            features[..., :-4] = 0.0
        x, y = features.flatten(0, 1), targets.flatten()
        weights = torch.linalg.solve(x.mT @ x + 1e-5 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device), x.mT @ y)
        values = torch.cat([features @ weights, (last @ weights)[:, None]], dim=1)
        deltas = rewards + config.discount * values[:, 1:] - values[:, :-1]
        advantages = _sums(deltas, config.discount * config.gae_lambda)
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
        parts = (rollout.obs, rollout.actions, rollout.log_probs, advantages.to(rollout.rewards.dtype))
        return Samples(*(part.flatten(0, 1) for part in parts))

    def adapt(self, params: list[Tensor], tasks: list[Samples], second_order: bool = True) -> list[Tensor]:
        """Gradient steps of one task; with ``second_order`` they can be differentiated."""
        for samples in tasks:
            loss = _loss(self.policy(params, samples.obs), samples)
            slopes = torch.autograd.grad(loss, params, create_graph=second_order)
            params = [p - self.config.inner_lr * slope for p, slope in zip(params, slopes, strict=True)]
        return params

    def policy(self, params: list[Tensor], obs: Tensor) -> Policy:
        """A diagonal Gaussian for every sample."""
        named = dict(zip(self.names, params, strict=True))
        x, num_layers = obs, sum(name.startswith("w") for name in named)
        for layer in range(num_layers):
            x = torch.addmm(named[f"b{layer}"], x, named[f"w{layer}"])
            x = x.tanh() if layer < num_layers - 1 else x
        std = torch.nn.functional.softplus(named["raw_std"]) + MIN_STD
        return Independent(Normal(x, std.expand_as(x)), 1)

    def _unflatten(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [p.numel() for p in self.params])
        return [part.view_as(p).clone().requires_grad_() for part, p in zip(parts, self.params, strict=True)]


def _loss(policy: Policy, samples: Samples) -> Tensor:
    log_prob: Tensor = policy.log_prob(samples.actions)  # type: ignore[no-untyped-call]
    return -((log_prob - samples.log_probs).exp() * samples.advantages).mean()


def _features(obs: Tensor, step: Tensor) -> Tensor:
    obs = obs.double().clamp(-10.0, 10.0)
    time = (step.double() / 100.0).expand(obs.shape[:-1])[..., None]
    return torch.cat([obs, obs**2, time, time**2, time**3, torch.ones_like(time)], dim=-1)


def _sums(x: Tensor, discount: float) -> Tensor:
    """Discounted sums of the future, by a loop over time."""
    total, sums = torch.zeros_like(x[:, 0]), []
    for column in reversed(x.unbind(1)):
        total = column + discount * total
        sums.append(total)
    return torch.stack(sums[::-1], dim=1)


def _detached(policy: Policy) -> Policy:
    return Independent(Normal(policy.base_dist.loc.detach(), policy.base_dist.scale.detach()), 1)


def _flat(parts: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
