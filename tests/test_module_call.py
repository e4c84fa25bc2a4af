"""One call of any module for many tasks is a loop over tasks: values, gradients, second derivatives, buffers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarl.adaptation import adapt, call, stack_module
from metarl.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")

NUM_TASKS = 3


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.memory, self.out = kind(2, 4, batch_first=True), nn.Linear(4, 1)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.memory(x[:, :, None].expand(-1, -1, 2))[0][:, -1])
        return out


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.left(x) if x.sum() > 0 else self.right(x)
        return out


class Attention(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(1, 4), nn.Linear(4, 1)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.layer(self.into(x[:, :, None]))[:, -1])
        return out


class Tied(nn.Module):
    """Two layers with one weight, one of them reachable by two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)
        self.second.weight = self.first.weight
        self.whole = nn.Sequential(self.first, nn.Tanh(), self.second, self.out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.whole(x)
        return out


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), *middle, nn.Linear(4, 1))


MODULES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "mlp": (lambda: mlp(nn.Tanh()), False),
    "tied": (Tied, False),
    "layer norm": (lambda: mlp(nn.LayerNorm(4), nn.Tanh()), False),
    "batch norm": (lambda: mlp(nn.BatchNorm1d(4), nn.Tanh()), False),
    "batch norm in evaluation": (lambda: mlp(nn.BatchNorm1d(4), nn.Tanh()).eval(), False),
    "batch norm without statistics": (lambda: mlp(nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh()), False),
    "rnn": (lambda: Recurrent(nn.RNN), True),
    "gru": (lambda: Recurrent(nn.GRU), True),
    "lstm": (lambda: Recurrent(nn.LSTM), True),
    "dropout": (lambda: mlp(nn.Tanh(), nn.Dropout(0.5)), True),
    "dropout in evaluation": (lambda: mlp(nn.Tanh(), nn.Dropout(0.5)).eval(), False),
    "branches": (Branching, True),
    "attention": (lambda: Attention(0.0), False),
    "attention with dropout": (lambda: Attention(0.3), True),
    "attention in evaluation": (lambda: Attention(0.3).eval(), False),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 1)), nn.Tanh()), False),
    "spectral norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3))), True),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(1)
    module = MODULES[name][0]()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer += 0.1 * torch.rand_like(buffer)
    return module


def inputs() -> Tensor:
    return torch.randn(NUM_TASKS, 5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def moved(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that differ by task."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: value + 0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in stack_module(module, NUM_TASKS).items()
    }


def plain(module: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """Task by task, a copy of the module for each, with no help of ``torch.func``."""
    first = {id(value): name for name, value in [*module.named_parameters(remove_duplicate=False)][::-1]}
    outs = []
    for task in range(NUM_TASKS):
        own = copy.deepcopy(module)
        for part, original in zip(own.modules(), module.modules(), strict=True):
            for name, value in original.named_parameters(recurse=False, remove_duplicate=False):
                delattr(part, name)
                setattr(part, name, params[first[id(value)]][task])
            if isinstance(part, nn.RNNBase):
                part._flat_weights = [getattr(part, name) for name in part._flat_weights_names]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            outs.append(own(x[task]))
    return torch.stack(outs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULES)
def test_a_call_is_a_loop_over_tasks(name: str) -> None:
    """Outputs, gradients and gradients of gradients by parameters and inputs; with dropout the same masks."""
    module, x = built(name), inputs().requires_grad_()
    params = {key: value.requires_grad_() for key, value in moved(module).items()}
    leaves = [*params.values(), x]
    found = []
    for run in (call, plain):
        torch.manual_seed(4)
        out = run(module, params, x)
        slopes = torch.autograd.grad(out.square().sum(), leaves, create_graph=True, materialize_grads=True)
        again = torch.autograd.grad(sum(slope.pow(3).sum() for slope in slopes), leaves, materialize_grads=True)
        found.append([out, *slopes, *again])
    assert all(torch.allclose(left, right, rtol=1e-9, atol=1e-11) for left, right in zip(*found, strict=True))
    assert found[0][0].shape[:2] == (NUM_TASKS, 5) and found[0][0].std() > 0
    with torch.no_grad():
        torch.manual_seed(4)
        assert torch.allclose(call(module, params, x), found[0][0], rtol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_the_same_after_a_call(name: str) -> None:
    """Parameters and buffers are the same objects with the same values under the same names."""
    module = built(name)
    before = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    values = [value.clone() for _, value in before]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(module, moved(module), inputs())
    after = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    assert [name for name, _ in before] == [name for name, _ in after]
    assert all(left is right for (_, left), (_, right) in zip(before, after, strict=True))
    assert all(torch.equal(left, right) for left, (_, right) in zip(values, after, strict=True))
    assert all(isinstance(value, nn.Parameter) for value in module.parameters())


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_vmap_cannot_run_is_told_once(name: str) -> None:
    module = built(name)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            call(module, moved(module), inputs())
    texts = [str(one.message) for one in told if "vmap cannot run" in str(one.message)]
    assert len(texts) == MODULES[name][1]
    assert all(type(module).__name__ in text and "task by task" in text for text in texts)


@pytest.mark.parametrize(
    ("name", "buffer"), [("batch norm", "1.running_mean"), ("spectral norm", "0.parametrizations.weight.0._u")]
)
def test_buffers_that_a_call_would_change_are_named_once(name: str, buffer: str) -> None:
    module = built(name)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            call(module, moved(module), inputs())
    texts = [str(one.message) for one in told if "changes its buffers" in str(one.message)]
    assert len(texts) == 1 and buffer in texts[0]


@pytest.mark.parametrize("name", ["mlp", "lstm", "batch norm in evaluation", "spectral norm"])
@pytest.mark.filterwarnings("ignore")
def test_a_call_in_inference_mode_gives_the_same(name: str) -> None:
    module = built(name)
    with torch.inference_mode():
        found = call(module, moved(module), inputs())
    assert torch.allclose(found, call(module, moved(module), inputs()))


@pytest.mark.filterwarnings("ignore:a call of")
def test_batch_norm_in_training_normalises_by_each_tasks_own_batch() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.eye(2))
        module[1].bias.zero_()
    shifted = inputs() + torch.tensor([0.0, 10.0, -50.0])[:, None, None]
    out = call(module, stack_module(module, NUM_TASKS), shifted)
    assert out.mean(1).abs().max() < 1e-12
    module.eval()
    assert torch.allclose(call(module, stack_module(module, NUM_TASKS), shifted), shifted / (1 + 1e-5) ** 0.5)


class Scaled(nn.Module):
    """Several inputs, a keyword argument that is a tensor, one that is not, and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], *, scale: Tensor, twice: bool) -> dict[str, Any]:
        out = self.layer(x + pair[0]) * scale
        return {"out": 2 * out if twice else out, "rest": (pair[1], out.sum())}


@pytest.mark.parametrize("looped", [False, True])
def test_inputs_and_outputs_may_be_several_and_named(looped: bool) -> None:
    module = Scaled()
    if looped:
        module.layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(1e-9))  # type: ignore[assignment]
    x, y, z, scale = (inputs() + k for k in range(4))
    params = moved(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = call(module, params, x, (y, z), scale=scale, twice=True)
    w, b = (next(value for key, value in params.items() if key.endswith(kind)) for kind in ("weight", "bias"))
    out = ((x + y) @ w.mT + b[:, None]) * scale
    assert torch.allclose(found["out"], 2 * out) and torch.allclose(found["rest"][1], out.sum((1, 2)))
    assert torch.equal(found["rest"][0], z)


def test_a_list_holds_inputs_of_unequal_sizes_and_gives_a_list_of_outputs() -> None:
    """Unequal shots: adapted parameters are those of each task alone, and of a mask over padded inputs."""
    module = mlp(nn.Tanh())
    sizes = [2, 5, 3]
    x = [torch.randn(size, 2) for size in sizes]
    y = [torch.randn(size, 1) for size in sizes]
    padded = [
        torch.stack([nn.functional.pad(one, (0, 0, 0, 5 - len(one)), value=9.0) for one in part]) for part in (x, y)
    ]
    mask = torch.stack([torch.arange(5) < size for size in sizes])

    def by_list(model: Callable[[Any], Any]) -> Tensor:
        return torch.stack([(out - one).square().mean() for out, one in zip(model(x), y, strict=True)])

    def by_mask(model: Callable[[Any], Any]) -> Tensor:
        errors = (model(padded[0]) - padded[1]).square().squeeze(-1)
        return torch.where(mask, errors, 0.0).sum(1) / mask.sum(1)

    models = [adapt(module, loss, steps=2, rule=0.1, num_tasks=3) for loss in (by_list, by_mask)]
    for task in range(3):
        one: Callable[[Any], Tensor] = lambda model: (model(x[task][None]) - y[task]).square().mean((1, 2))  # noqa: B023, E731
        alone = adapt(module, one, steps=2, rule=0.1, num_tasks=1)
        for model in models:
            assert all(torch.allclose(value[0], model.params[key][task]) for key, value in alone.params.items())


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda m, p: call(m, p, inputs()[:2]),
            r"input 0 must have the shape \[task, \.\.\.\] with 3 tasks, got \(2, 5, 2\)",
        ),
        (lambda m, p: call(m, p, torch.zeros(4, 5, 2)), r"input 0 must have .* got \(4, 5, 2\)"),
        (lambda m, p: call(m, p, [inputs()[0]] * 2), "one entry for each of 3 tasks, got a list of 2"),
        (lambda m, p: call(m, p, input=inputs()[:1]), "the keyword argument 'input' must have"),
        (lambda m, p: call(m, {}, inputs()), "needs the stacked parameters"),
        (lambda m, p: call(m, {**p, "0.wieght": p["0.weight"]}, inputs()), r"'0\.wieght'.* Did you mean '0\.weight'"),
        (lambda m, p: call(m, p, torch.zeros(3, 5, 7)), "shapes|size"),
    ],
)
def test_what_cannot_be_called_is_refused(run: Callable[[nn.Module, dict[str, Tensor]], Any], message: str) -> None:
    """A mistake inside the module is told as it is, without a word about vmap."""
    module = mlp(nn.Tanh())
    params = stack_module(module, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ConfigError, ValueError, RuntimeError), match=message):
            run(module, params)


def test_a_module_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear has no parameter to train: weight, bias are frozen"):
        stack_module(nn.Linear(2, 1).requires_grad_(False), 3)
    with pytest.raises(ConfigError, match="Tanh has no parameter to train: it has none"):
        stack_module(nn.Tanh(), 3)
