"""The stacked MLP's own derivatives against automatic ones, to the third order."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from metarl.networks.mlp import Activation, MLPPolicy, stacked_mlp
from metarl.networks.params import Params, stack
from metarl.types import Spec

NUM_TASKS, NUM_SAMPLES, SIZES = 2, 3, (4, 3, 5, 2)
NUM_LAYERS = len(SIZES) - 1

pytestmark = pytest.mark.usefixtures("float64")


def random_params(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES)):
        found[f"w{layer}"] = torch.randn(NUM_TASKS, fan_in, fan_out, generator=generator)
        found[f"b{layer}"] = torch.randn(NUM_TASKS, fan_out, generator=generator)
    return found


def plain_mlp(params: Params, x: Tensor, activation: Activation) -> Tensor:
    """One task after the other, by operations whose derivatives are PyTorch's."""
    outputs = []
    for task in range(NUM_TASKS):
        y = x[task]
        for layer in range(NUM_LAYERS):
            y = y @ params[f"w{layer}"][task] + params[f"b{layer}"][task]
            if layer < NUM_LAYERS - 1:
                y = torch.tanh(y) if activation == "tanh" else torch.relu(y)
        outputs.append(y)
    return torch.stack(outputs)


def derivatives(net: str, activation: Activation, obs_grad: bool) -> list[Tensor]:
    """Value and the first three derivatives of a nonlinear loss, each along random directions."""
    generator = torch.Generator().manual_seed(9)
    params = {name: value.requires_grad_() for name, value in random_params(0).items()}
    x = torch.randn(NUM_TASKS, NUM_SAMPLES, SIZES[0], generator=generator).requires_grad_(obs_grad)
    out = stacked_mlp(params, x, NUM_LAYERS, activation) if net == "stacked" else plain_mlp(params, x, activation)
    value = (out * torch.randn(out.shape, generator=generator)).sin().sum()
    leaves = (*params.values(), x) if obs_grad else tuple(params.values())
    found = [out, value]
    for _ in range(3):
        slopes = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        found += slopes
        value = sum(((s * torch.randn(s.shape, generator=generator)).sum() for s in slopes), torch.zeros(()))
    return found


@pytest.mark.parametrize("obs_grad", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_three_derivatives_equal_those_of_plain_operations(activation: Activation, obs_grad: bool) -> None:
    """The third is what a learned update rule needs; a wrong second one would be a wrong meta-gradient."""
    stacked, plain = (derivatives(net, activation, obs_grad) for net in ("stacked", "plain"))
    assert len(stacked) == len(plain)
    for ours, theirs in zip(stacked, plain, strict=True):
        assert (ours - theirs).abs().max() < 1e-10 * (1 + theirs.abs().max())
    second = stacked[2 + len(random_params(0)) + obs_grad :]
    assert max(part.detach().abs().max().item() for part in second) > 0.1


@pytest.mark.parametrize("chosen", [["w0"], ["b0"], ["w1"], ["b1"], ["w2", "b2"]])
def test_second_derivatives_along_one_parameter_alone_are_right(chosen: list[str]) -> None:
    """Automatic differentiation leaves out the gradients that are not asked for: each of them must do without."""
    images = []
    for net in ("stacked", "plain"):
        params = {name: value.requires_grad_() for name, value in random_params(0).items()}
        x = torch.linspace(-1, 1, NUM_TASKS * NUM_SAMPLES * SIZES[0]).view(NUM_TASKS, NUM_SAMPLES, -1)
        out = stacked_mlp(params, x, NUM_LAYERS, "tanh") if net == "stacked" else plain_mlp(params, x, "tanh")
        slopes = torch.autograd.grad(out.square().sum(), [params[name] for name in chosen], create_graph=True)
        image = torch.autograd.grad([slope.square().sum() for slope in slopes], list(params.values()))
        images.append(torch.cat([part.flatten() for part in image]))
    assert torch.allclose(*images, rtol=1e-10, atol=1e-10)
    assert images[0].abs().max() > 0.01


@pytest.mark.parametrize("spec", [Spec(4, 2, True, 5), Spec(4, 2, False, 5)], ids=["categorical", "gaussian"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_linearised_policy_moves_as_a_small_step_does(spec: Spec, activation: Activation) -> None:
    policy = MLPPolicy(spec, (3, 5), activation)
    generator = torch.Generator().manual_seed(2)
    params = {name: value.detach().clone() for name, value in stack(policy.params(), NUM_TASKS).items()}
    for value in params.values():
        value += 0.5 * torch.randn(value.shape, generator=generator)
    tangent = {name: torch.randn(value.shape, generator=generator) for name, value in params.items()}
    obs = torch.randn(NUM_TASKS, NUM_SAMPLES, 4, generator=generator)
    _, push = policy.linearise(params, obs)
    small = 1e-6
    ahead, behind = (
        policy.distribution({name: value + sign * small * tangent[name] for name, value in params.items()}, obs)
        for sign in (1, -1)
    )
    moved = push(tangent)
    assert len(moved) == len(ahead.parameters)
    for ours, after, before in zip(moved, ahead.parameters, behind.parameters, strict=True):
        assert (ours - (after - before) / (2 * small)).abs().max() < 1e-7
        assert ours.abs().max() > 0.1
