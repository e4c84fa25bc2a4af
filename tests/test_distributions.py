"""Action distributions, against torch.distributions and derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from metarl.networks.distributions import Categorical, DiagGaussian, Distribution
from metarl.networks.noise import TaskNoise

KINDS = ["categorical", "gaussian"]


CPU = torch.device("cpu")


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(kind: str, seed: int) -> tuple[Tensor, ...]:
    return (randn(5, 3, seed=seed),) if kind == "categorical" else (randn(5, 3, seed=seed), randn(5, 3, seed=seed + 50))


def ours(kind: str, parts: tuple[Tensor, ...]) -> Distribution:
    return Categorical(*parts) if kind == "categorical" else DiagGaussian(*parts)


def theirs(kind: str, parts: tuple[Tensor, ...]) -> TorchCategorical | Independent:
    if kind == "categorical":
        return TorchCategorical(logits=parts[0])
    return Independent(Normal(parts[0], parts[1].exp()), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_entropy_and_kl_equal_those_of_torch(kind: str) -> None:
    p, q = parameters(kind, 0), parameters(kind, 1)
    value = torch.tensor([0, 2, 1, 1, 0]) if kind == "categorical" else randn(5, 3, seed=7)
    expected, other = theirs(kind, p), theirs(kind, q)
    found = ours(kind, p)
    assert torch.allclose(found.log_prob(value), expected.log_prob(value), atol=1e-12)
    assert torch.allclose(found.entropy(), expected.entropy(), atol=1e-12)
    assert torch.allclose(found.kl(ours(kind, q)), kl_divergence(expected, other), atol=1e-12)
    assert found.kl(found).abs().max() < 1e-12
    assert found.entropy().shape == found.log_prob(value).shape == (5,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("argument", ["first", "second"])
def test_fisher_product_is_the_hessian_of_the_kl_where_it_vanishes(kind: str, argument: str) -> None:
    parts = parameters(kind, 0)
    sizes = [part[0].numel() for part in parts]
    fixed = ours(kind, tuple(part[:1] for part in parts))

    def kl(flat: Tensor) -> Tensor:
        moving = ours(kind, tuple(part[None] for part in flat.split(sizes)))
        return (fixed.kl(moving) if argument == "second" else moving.kl(fixed)).sum()

    hessian = torch.autograd.functional.hessian(kl, torch.cat([part[0] for part in parts]))
    tangent = randn(sum(sizes), seed=3)
    product = torch.cat(fixed.fisher_product(tuple(part[None] for part in tangent.split(sizes))), dim=1)[0]
    assert (product - hessian @ tangent).abs().max() < 1e-10
    assert product.abs().max() > 1e-3


def test_categorical_samples_have_the_probabilities_as_frequencies() -> None:
    """Within 5 standard errors over 200,000 samples, also for a rare choice."""
    logits = torch.tensor([2.0, 0.0, -1.0, -6.0])
    num = 200_000
    samples = Categorical(logits.expand(num, 4)).sample(TaskNoise(CPU, 0))
    p = logits.softmax(0)
    errors = (samples.bincount(minlength=4) / num - p).abs()
    assert (errors < 5 * (p * (1 - p) / num).sqrt()).all()


def test_gaussian_samples_have_mean_spread_and_independent_coordinates() -> None:
    num = 200_000
    mean, log_std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0])
    samples = DiagGaussian(mean.expand(num, 2), log_std.expand(num, 2)).sample(TaskNoise(CPU, 0))
    std = log_std.exp()
    assert ((samples.mean(0) - mean).abs() < 5 * std / num**0.5).all()
    assert ((samples.std(0) / std - 1).abs() < 5 / (2 * num) ** 0.5).all()
    assert samples.T.corrcoef()[0, 1].abs() < 5 / num**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_a_function_of_the_noise_alone(kind: str) -> None:
    policy = ours(kind, parameters(kind, 0))
    first = policy.sample(TaskNoise(CPU, 1))
    torch.rand(3)
    assert torch.equal(first, policy.sample(TaskNoise(CPU, 1)))
    assert not torch.equal(first, policy.sample(TaskNoise(CPU, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_mode_is_the_likeliest_value(kind: str) -> None:
    policy = ours(kind, parameters(kind, 0))
    best = policy.log_prob(policy.mode())
    for seed in range(20):
        assert (best >= policy.log_prob(policy.sample(TaskNoise(CPU, seed)))).all()


def test_extreme_logits_stay_finite() -> None:
    """Also in float32, where a probability underflows to 0."""
    policy = Categorical(torch.tensor([[300.0, 0.0, -300.0]]))
    assert policy.log_prob(torch.tensor([2])).item() == -600.0
    assert policy.entropy().item() == 0.0
    assert torch.isfinite(policy.kl(Categorical(torch.tensor([[-300.0, 0.0, 300.0]])))).all()
    assert (policy.sample(TaskNoise(CPU, 0)) == 0).all()


MASKED = torch.tensor([[0.3, -torch.inf, -1.2, 0.7], [-torch.inf, 2.0, -torch.inf, -torch.inf]], dtype=torch.float64)
ALLOWED = torch.isfinite(MASKED)


def test_a_forbidden_choice_counts_for_nothing() -> None:
    """Entropy, KL and Fisher products are those of the other choices alone; it is never sampled."""
    moved = MASKED + randn(2, 4, seed=1)
    policy, other = Categorical(MASKED), Categorical(moved)
    tangent = randn(2, 4, seed=2)
    (product,) = policy.fisher_product((tangent,))
    for row in range(2):
        own = ALLOWED[row]
        p, q = TorchCategorical(logits=MASKED[row][own]), TorchCategorical(logits=moved[row][own])
        assert float(policy.entropy()[row]) == pytest.approx(float(p.entropy()), abs=1e-12)
        assert float(policy.kl(other)[row]) == pytest.approx(float(kl_divergence(p, q)), abs=1e-12)
        (expected,) = Categorical(MASKED[row][own]).fisher_product((tangent[row][own],))
        assert torch.allclose(product[row][own], expected, atol=1e-14) and (product[row][~own] == 0).all()
    values = torch.tensor([[1], [1]])
    assert policy.log_prob(values[:, 0]).tolist() == [-torch.inf, 0.0]
    samples = Categorical(MASKED[:, None].expand(2, 20_000, 4)).sample(TaskNoise(CPU, 0))
    assert ALLOWED[0][samples[0]].all() and (samples[1] == 1).all()
    assert Categorical(torch.zeros(1, 4)).kl(Categorical(MASKED[:1])).tolist() == [torch.inf]


def test_derivatives_beside_a_forbidden_choice_are_those_of_finite_differences() -> None:
    """First and second ones, of entropy, KL in both arguments and log-probability."""
    fixed = Categorical(MASKED[:1] + randn(1, 4, seed=3))

    def numbers(free: Tensor) -> Tensor:
        policy = Categorical(torch.where(ALLOWED[:1], free, -torch.inf))
        return torch.cat(
            [
                policy.entropy(),
                policy.kl(fixed),
                fixed.kl(policy),
                policy.log_prob(torch.tensor([3])),
                policy.kl(policy),
            ]
        )

    free = randn(1, 4, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(numbers, (free,))
    assert torch.autograd.gradgradcheck(numbers, (free,))
    (slope,) = torch.autograd.grad(numbers(free).sum(), free)
    assert slope[0, 1] == 0 and slope.abs().max() > 1e-2
