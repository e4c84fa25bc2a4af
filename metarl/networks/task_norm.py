"""Batch normalisation where tasks adapt: three choices of the statistics that examples are normalised by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.distributed import SumOverRanks, current

Norm = Literal["transductive", "running", "per-step", "none"]

_EPSILON = 1e-5
"""Added to variances, as in torch."""

_MOMENTUM = 0.1
"""Weight of the newest batch in running statistics, as in torch."""


class TaskNorm(nn.Module):
    """Normalise channels ``[example, channel, ...]``, then scale and shift them.

    Args:
        num_channels: channels of the input.
        norm: by which statistics.

            ``transductive``: those of the batch at hand, always, as MAML's code does (Finn et al., 2017). What is
            predicted of one query then depends on the others: they leak that each class has as many of them, and
            accuracies are higher than for queries that come one by one.

            ``running``: those of the batch in training, averages over training in evaluation. Nothing leaks, but one
            average serves all tasks and inner steps, and the parameters before and after adaptation alike. (Gradient
            steps go by the support set's own statistics in evaluation too: it is given as a whole.)

            ``per-step``: the same with averages, scales and shifts of its own for each inner step (MAML++: Antoniou et
            al., 2019, arXiv 1810.09502, section 4, BNRS and BNWB). Nothing leaks. (MAML++'s code normalises by the
            batch in evaluation as well, which is transductive.)
        num_steps: inner steps that ``per-step`` tells apart; later ones are taken as the last.

    Attributes:
        step: inner steps behind the parameters that the module is called with; see :func:`set_step`.
    """

    def __init__(self, num_channels: int, norm: Norm, num_steps: int = 1) -> None:
        super().__init__()
        if norm == "none":
            raise ValueError("TaskNorm normalises; leave it out instead.")
        self.norm = norm
        self.step = 0
        self.running_mean: Tensor
        self.running_var: Tensor
        shape = (num_steps + 1, num_channels) if norm == "per-step" else (num_channels,)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        if norm != "transductive":
            self.register_buffer("running_mean", torch.zeros(shape))
            self.register_buffer("running_var", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised input, of the same shape."""
        weight, bias = self._own(self.weight), self._own(self.bias)
        if self.norm == "transductive":
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=_EPSILON)
        running_mean, running_var = self._own(self.running_mean), self._own(self.running_var)
        if not self.training or not _over_ranks.get() or current().world_size == 1:
            return F.batch_norm(x, running_mean, running_var, weight, bias, self.training, _MOMENTUM, _EPSILON)
        out, mean, var = _normalised_over_ranks(x, weight, bias)
        running_mean.lerp_(mean, _MOMENTUM)
        running_var.lerp_(var, _MOMENTUM)
        return out

    def run_tasks(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The same for many tasks, each normalised by itself; running statistics stay as they are.

        Args:
            x: ``[task, example, ..., channel]``.
            weight: each task's scales, ``[task, *self.weight.shape]``.
            bias: its shifts.
        """
        weight, bias = (self._own(value.movedim(0, -1)).movedim(-1, 0)[:, None] for value in (weight, bias))
        values = x.flatten(1, -2).to(weight.dtype)
        if self.norm == "transductive" or self.training:
            if values.shape[1] == 1:
                raise ValueError("one value of each channel has no statistics to be normalised by; give more examples.")
            values = values - values.mean(1, keepdim=True)
            var = values.square().mean(1, keepdim=True)
        else:
            values, var = values - self._own(self.running_mean), self._own(self.running_var)
        return torch.addcmul(bias, values, weight * torch.rsqrt(var + _EPSILON)).to(x.dtype).view_as(x)

    def _own(self, values: Tensor) -> Tensor:
        """Those of the step."""
        return values[min(self.step, len(values) - 1)] if self.norm == "per-step" else values


_KINDS = (TaskNorm, nn.modules.batchnorm._BatchNorm)
"""Batch normalisation, ours and torch's."""


def is_transductive(module: nn.Module) -> bool:
    """Whether what ``module`` gives for an example always depends on the other examples."""
    return any(
        part.norm == "transductive" if isinstance(part, TaskNorm) else part.running_mean is None
        for part in module.modules()
        if isinstance(part, _KINDS)
    )


def frozen_norms(module: nn.Module) -> list[nn.Module]:
    """Batch normalisation in ``module`` whose scale and shift are frozen: its averages stay as they are, too."""
    found = []
    for part in module.modules():
        own = list(part.parameters(recurse=False)) if isinstance(part, _KINDS) else []
        if own and not any(value.requires_grad for value in own):
            found.append(part)
    return found


@contextlib.contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Inside the block batch normalisation goes by the batch at hand, as in training; nothing else is as in training.

    Args:
        module: any; what stands in it of torch's batch normalisation is meant as well, if it is not frozen.
    """
    frozen = {id(part) for part in frozen_norms(module)}
    parts = [
        part for part in module.modules() if isinstance(part, _KINDS) and not part.training and id(part) not in frozen
    ]
    for part in parts:
        part.training = True
    try:
        yield
    finally:
        for part in parts:
            part.training = False


_over_ranks: ContextVar[bool] = ContextVar("over_ranks", default=False)


@contextlib.contextmanager
def one_batch() -> Iterator[None]:
    """Inside the block the examples of all ranks are one batch, whose statistics in training are taken together."""
    token = _over_ranks.set(True)
    try:
        yield
    finally:
        _over_ranks.reset(token)


def _normalised_over_ranks(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What batch normalisation makes of ``x``, and mean and unbiased variance of the examples of all ranks."""
    rest = [axis for axis in range(x.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    values = x.to(weight.dtype)
    count = current().total(x.numel() // x.shape[1])
    mean = SumOverRanks.apply(values.sum(rest)) / count  # type: ignore[no-untyped-call]
    centred = values - mean.view(shape)
    var = SumOverRanks.apply(centred.square().sum(rest)) / count  # type: ignore[no-untyped-call]
    out = centred * (var + _EPSILON).rsqrt().view(shape) * weight.view(shape) + bias.view(shape)
    return out.to(x.dtype), mean.detach(), var.detach() * (count / max(count - 1, 1))


def set_step(module: nn.Module, step: int) -> None:
    """Tell every :class:`TaskNorm` in ``module`` how many inner steps the parameters have behind them."""
    for part in module.modules():
        if isinstance(part, TaskNorm):
            part.step = step
