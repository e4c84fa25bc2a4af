"""Action distributions with explicit noise and Fisher products.

torch.distributions samples from the global generator only and knows no Fisher products, both of which metarl
needs (streams that belong to a task; structured Gauss-Newton products), hence these small classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

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


@dataclass(frozen=True)
class Product:
    """Independent choices and normals: actions of several parts, ``[..., choice + coordinate]`` floats.

    Log-probabilities, KL and entropy are sums over the parts, and the Fisher information has a block for each. All
    choices are computed as one :class:`Categorical` ``[..., choice, option]``, in which options that a choice does not
    have are forbidden.

    Attributes:
        logits: unnormalised log-probabilities, those of all choices side by side, ``[..., sum(sizes)]``.
        sizes: options of each choice.
        normals: the coordinates ``[..., coordinate]``, of which there may be none.
    """

    logits: Tensor
    sizes: tuple[int, ...]
    normals: DiagGaussian

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What a network puts out: ``(logits, mean, log_std)``."""
        return self.logits, *self.normals.parameters

    def detach(self) -> Product:
        """The same distribution without its graph."""
        return Product(self.logits.detach(), self.sizes, self.normals.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability, or density, ``[...]`` of ``value`` ``[..., choice + coordinate]``."""
        first = len(self.sizes)
        index, coordinates = value[..., :first].long(), value[..., first:]
        return self._choices.log_prob(index).sum(-1) + self.normals.log_prob(coordinates)

    def sample(self, noise: TaskNoise) -> Tensor:
        """``[task, ..., choice + coordinate]``, of one draw for all parts."""
        options = self._choices.logits
        number = options.shape[-2] * options.shape[-1]
        shape = (*self.logits.shape[:-1], number + self.normals.mean.shape[-1])
        drawn = noise.normal(shape, self.logits.dtype)
        # The distribution function of a normal number is uniform, and -log(-log(uniform)) is Gumbel.
        gumbel = -torch.log(-torch.special.log_ndtr(drawn[..., :number]))
        index = (options + gumbel.view(options.shape)).argmax(-1)
        return self._joined(index, self.normals.mean + self.normals.log_std.exp() * drawn[..., number:])

    def mode(self) -> Tensor:
        """The likeliest choices, and the means, ``[..., choice + coordinate]``."""
        return self._joined(self._choices.mode(), self.normals.mode())

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[...]``."""
        return self._choices.entropy().sum(-1) + self.normals.entropy()

    def kl(self, other: Distribution) -> Tensor:
        """``KL(self || other)`` in nats, ``[...]``."""
        assert isinstance(other, Product) and other.sizes == self.sizes
        return self._choices.kl(other._choices).sum(-1) + self.normals.kl(other.normals)

    def fisher_product(self, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Fisher information times tangents of (logits, mean, log_std), block by block."""
        logits_tangent, *others = tangents
        (image,) = self._choices.fisher_product((self._by_choice(logits_tangent, 0.0),))
        parts = [image[..., index, :size] for index, size in enumerate(self.sizes)]
        return torch.cat(parts, dim=-1), *self.normals.fisher_product((others[0], others[1]))

    @cached_property
    def _choices(self) -> Categorical:
        return Categorical(self._by_choice(self.logits, -math.inf))

    def _by_choice(self, flat: Tensor, fill: float) -> Tensor:
        """``[..., choice, option]`` of ``[..., sum(sizes)]``, shorter ones filled up."""
        most = max(self.sizes)
        if most * len(self.sizes) == flat.shape[-1]:
            return flat.reshape(*flat.shape[:-1], len(self.sizes), most)
        parts = torch.split(flat, list(self.sizes), dim=-1)
        return torch.stack([pad(part, (0, most - part.shape[-1]), value=fill) for part in parts], dim=-2)

    def _joined(self, index: Tensor, coordinates: Tensor) -> Tensor:
        return torch.cat([index.to(coordinates.dtype), coordinates], dim=-1)


Distribution = Categorical | DiagGaussian | Product
