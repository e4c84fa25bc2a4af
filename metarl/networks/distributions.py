"""Action distributions with explicit noise and Fisher products.

torch.distributions samples from the global generator only and knows no Fisher products, both of which metarl
needs (streams that belong to a task; structured Gauss-Newton products), hence these two small classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.networks.noise import TaskNoise


@dataclass(frozen=True)
class Categorical:
    """Choices with unnormalised log-probabilities ``logits`` ``[..., choice]``; a logit of -inf forbids its choice."""

    logits: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What a network puts out: ``(logits,)``."""
        return (self.logits,)

    def detach(self) -> Categorical:
        """The same distribution without its graph."""
        return Categorical(self.logits.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability ``[...]`` of indices ``value`` ``[...]``."""
        return self.logits.log_softmax(-1).gather(-1, value[..., None]).squeeze(-1)

    def sample(self, noise: TaskNoise) -> Tensor:
        """Indices ``[task, ...]``, by the Gumbel-max trick (no host synchronisation, unlike multinomial)."""
        gumbel = -torch.log(-torch.log(noise.uniform(tuple(self.logits.shape), self.logits.dtype)))
        return (self.logits + gumbel).argmax(-1)

    def mode(self) -> Tensor:
        """The likeliest index ``[...]``."""
        return self.logits.argmax(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[...]``."""
        log_p = self.logits.log_softmax(-1)
        return -_expectation(log_p.exp(), log_p)

    def kl(self, other: Distribution) -> Tensor:
        """``KL(self || other)`` in nats, ``[...]``; infinite where ``other`` forbids what ``self`` may choose."""
        assert isinstance(other, Categorical)
        log_p, log_q = self.logits.log_softmax(-1), other.logits.log_softmax(-1)
        return _expectation(log_p.exp(), log_p - log_q)

    def fisher_product(self, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Fisher information times a tangent of the logits: ``p * (t - p.t)``, the KL's Hessian where KL = 0."""
        p, (tangent,) = self.logits.softmax(-1), tangents
        return (p * (tangent - _expectation(p, tangent)[..., None]),)


def _expectation(p: Tensor, values: Tensor) -> Tensor:
    """``sum(p * values)`` over the last axis, where impossible choices count for nothing: 0 log 0 = 0."""
    return (p * torch.where(p > 0, values, torch.zeros_like(values))).sum(-1)


@dataclass(frozen=True)
class DiagGaussian:
    """Independent normals with ``mean`` and ``log_std`` ``[..., action]``."""

    mean: Tensor
    log_std: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What a network puts out: ``(mean, log_std)``."""
        return self.mean, self.log_std

    def detach(self) -> DiagGaussian:
        """The same distribution without its graph."""
        return DiagGaussian(self.mean.detach(), self.log_std.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``[...]`` of ``value`` ``[..., action]``, summed over coordinates."""
        z = (value - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def sample(self, noise: TaskNoise) -> Tensor:
        """``[task, ..., action]``."""
        return self.mean + self.log_std.exp() * noise.normal(tuple(self.mean.shape), self.mean.dtype)

    def mode(self) -> Tensor:
        """The mean, ``[..., action]``."""
        return self.mean

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[...]``."""
        return (self.log_std + 0.5 + 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def kl(self, other: Distribution) -> Tensor:
        """``KL(self || other)`` in nats, ``[...]``."""
        assert isinstance(other, DiagGaussian)
        variance_ratio = (2.0 * (self.log_std - other.log_std)).exp()
        distance = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        return (0.5 * (variance_ratio + distance - 1.0) - (self.log_std - other.log_std)).sum(-1)

    def fisher_product(self, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Fisher information times tangents of (mean, log_std): ``(t_mean / std^2, 2 t_log_std)``."""
        mean_tangent, log_std_tangent = tangents
        return mean_tangent * (-2.0 * self.log_std).exp(), 2.0 * log_std_tangent


Distribution = Categorical | DiagGaussian
