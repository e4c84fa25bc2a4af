"""Networks of few-shot learning: the papers' blocks, in float32 and in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metarl.adaptation import call
from metarl.errors import ConfigError
from metarl.networks.backbones import Conv4, Downsample, MLPBackbone, Precision

IMAGES = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(1))


def _conv4(downsample: Downsample, precision: Precision = "float32") -> Conv4:
    torch.manual_seed(2)
    return Conv4((1, 20, 20), 8, 3, downsample=downsample, precision=precision)


def _as_in_the_papers(net: Conv4, downsample: Downsample) -> nn.Sequential:
    """The same weights in blocks of convolution, normalisation, ReLU and maximum, in this order."""
    layers: list[nn.Module] = []
    convolutions = [part for part in net.body if isinstance(part, nn.Conv2d)]
    for channels, convolution in zip((1, 8, 8, 8), convolutions, strict=True):
        own = nn.Conv2d(channels, 8, 3, stride=convolution.stride[0], padding=1)
        own.load_state_dict(convolution.state_dict())
        layers += [own, nn.BatchNorm2d(8), nn.ReLU(), *([nn.MaxPool2d(2)] if downsample == "pool" else [])]
    return nn.Sequential(*layers, *([nn.AdaptiveAvgPool2d(1)] if downsample == "stride" else []), nn.Flatten())


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_conv4_is_the_network_of_the_papers(downsample: Downsample) -> None:
    net = _conv4(downsample)
    assert net.head is not None
    plain = _as_in_the_papers(net, downsample)
    x, other = IMAGES.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    outputs = net(x)
    expected = net.head(plain(other))
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_bfloat16_rounds_the_maps_and_nothing_else(downsample: Downsample) -> None:
    exact, rounded = _conv4(downsample)(IMAGES), _conv4(downsample, "bfloat16")(IMAGES)
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.05
    net = _conv4(downsample, "bfloat16")
    net(IMAGES).square().sum().backward()
    assert {(value.dtype, value.grad is not None) for value in net.parameters()} == {(torch.float32, True)}


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_bfloat16_acts_where_tasks_have_parameters_of_their_own(downsample: Downsample) -> None:
    def gradients(precision: Precision) -> Tensor:
        net = _conv4(downsample, precision)
        params = {name: value.expand(2, *value.shape) for name, value in net.named_parameters()}
        loss = call(net, params, torch.stack([IMAGES, IMAGES.flip(0)])).square().mean()
        first = torch.autograd.grad(loss, [*params.values()], create_graph=True)
        moved = {name: value - 0.1 * step for (name, value), step in zip(params.items(), first, strict=True)}
        call(net, moved, torch.stack([IMAGES, IMAGES])).square().mean().backward()
        return torch.cat([value.grad.flatten() for value in net.parameters() if value.grad is not None])

    exact, rounded = gradients("float32"), gradients("bfloat16")
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded, 0) > 0.95


def test_images_that_are_too_small_to_pool_are_told() -> None:
    with pytest.raises(ConfigError, match=r"at least 16 x 16.*got the shape \(1, 8, 8\)"):
        Conv4((1, 8, 8), 4)
    assert Conv4((1, 8, 8), 4, 3, downsample="stride")(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert MLPBackbone((1, 8, 8), (6,), 3, norm="running")(torch.rand(2, 1, 8, 8)).shape == (2, 3)
