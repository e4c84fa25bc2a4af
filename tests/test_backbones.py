"""Networks of few-shot learning: the papers' blocks, in float32 and in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.adaptation import call
from metarl.errors import ConfigError
from metarl.networks.backbones import Conv4, Downsample, MLPBackbone, Precision
from metarl.networks.task_norm import Norm, set_step

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


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["transductive", "running", "per-step", "none"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_many_tasks_at_once_are_each_of_them_alone(downsample: Downsample, norm: Norm, training: bool) -> None:
    """Outputs, first and second derivatives in float64, with shared parameters among those of the tasks."""
    torch.manual_seed(3)
    net = Conv4((2, 17, 22), 4, 3, norm=norm, downsample=downsample, num_steps=2).double().train(training)
    for name, buffer in net.named_buffers():
        buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("var") else 0.0))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    own = {name: value for name, value in net.named_parameters() if not name.startswith("body.0.")}
    params = {name: value.detach() + 0.1 * torch.randn(3, *value.shape).double() for name, value in own.items()}
    set_step(net, 1)
    x = torch.randn(3, 5, 2, 17, 22, dtype=torch.float64)
    # Plain calls of copies, one task after the other, since running statistics change in training.
    alone = [copy.deepcopy(net) for _ in range(3)]

    def derivatives(outputs: Tensor, at: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(outputs.tanh().square().sum(), at, create_graph=True)
        return [*first, *torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), at)]

    stacked = {name: value.clone().requires_grad_() for name, value in params.items()}
    outputs = call(net, stacked, x)
    both = [*stacked.values(), *(value for name, value in net.named_parameters() if name.startswith("body.0."))]
    found = [outputs, *derivatives(outputs, both)]
    single = {name: value.clone().requires_grad_() for name, value in params.items()}
    expected = torch.stack(
        [
            torch.func.functional_call(
                one,
                {**dict(net.named_parameters()), **{name: value[task] for name, value in single.items()}},
                (x[task],),
            )
            for task, one in enumerate(alone)
        ]
    )
    plain = [expected, *derivatives(expected, [*single.values(), *both[len(single) :]])]
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


class _Changed(Conv4):
    """Half the features of its class, which knows nothing of it."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


def _changed(how: str) -> Conv4:
    kind = _Changed if how == "subclass" else Conv4
    net = kind((1, 20, 20), 4, 3, downsample="stride", norm="none")
    if how == "hook":
        net.body.register_forward_hook(lambda module, given, out: 2 * out)
    if how == "part":
        net.body[2] = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    if how == "head":
        net.add_module("head", nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    if how == "method":
        vars(net)["forward"] = lambda x: x.flatten(1)[:, :3] * net.body[0].weight.sum()
    return net


@pytest.mark.parametrize("how", ["subclass", "hook", "part", "head", "method"])
def test_what_was_changed_of_conv4_acts_where_tasks_have_parameters_of_their_own(how: str) -> None:
    torch.manual_seed(4)
    net = _changed(how)
    params = {name: value.detach() + 0.1 * torch.randn(2, *value.shape) for name, value in net.named_parameters()}
    x = torch.rand(2, 5, 1, 20, 20)
    for value in params.values():
        value.requires_grad_()
    outputs = call(net, params, x)
    for task in range(2):
        own = {name: value[task] for name, value in params.items()}
        torch.testing.assert_close(outputs[task], torch.func.functional_call(net, own, (x[task],)))
    if how == "part":
        assert torch.autograd.grad(outputs.square().sum(), params["body.2.weight"])[0].abs().sum((1, 2, 3, 4)).min() > 0


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_bfloat16_acts_where_tasks_have_parameters_of_their_own(downsample: Downsample) -> None:
    """The gradient through a step of adaptation points where that in float32 does."""

    def gradient(precision: Precision) -> Tensor:
        torch.manual_seed(2)
        net = Conv4((1, 28, 28), 16, 5, downsample=downsample, precision=precision)
        y = (torch.arange(25) % 5).expand(2, 25)
        x, query = torch.rand(2, 2, 25, 1, 28, 28) + 0.1 * y[..., None, None, None]
        params = {name: value.expand(2, *value.shape) for name, value in net.named_parameters()}
        loss = F.cross_entropy(call(net, params, x).flatten(0, 1), y.flatten())
        steps = torch.autograd.grad(loss, [*params.values()], create_graph=True)
        moved = {name: value - 0.4 * step for (name, value), step in zip(params.items(), steps, strict=True)}
        F.cross_entropy(call(net, moved, query).flatten(0, 1), y.flatten()).backward()  # type: ignore[no-untyped-call]
        return torch.cat([value.grad.flatten() for value in net.parameters() if value.grad is not None])

    exact, rounded = gradient("float32"), gradient("bfloat16")
    assert 0.95 < torch.cosine_similarity(exact, rounded, 0) < 0.9999


def test_images_that_are_too_small_to_pool_are_told() -> None:
    with pytest.raises(ConfigError, match=r"at least 16 x 16.*got the shape \(1, 8, 8\)"):
        Conv4((1, 8, 8), 4)
    assert Conv4((1, 8, 8), 4, 3, downsample="stride")(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert MLPBackbone((1, 8, 8), (6,), 3, norm="running")(torch.rand(2, 1, 8, 8)).shape == (2, 3)
