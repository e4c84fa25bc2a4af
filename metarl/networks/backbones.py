"""Networks of few-shot learning: features of an input, with a linear head on top or without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from metarl.errors import ConfigError
from metarl.networks.params import Params
from metarl.networks.task_convolution import task_convolution
from metarl.networks.task_norm import Norm, TaskNorm

Downsample = Literal["pool", "stride"]

Precision = Literal["float32", "bfloat16"]
"""Of matrix products and convolutions; parameters are float32 in either."""


class Conv4(nn.Module):
    """Four blocks of a 3 x 3 convolution, normalisation and ReLU, each halving height and width.

    The embedding of Matching and Prototypical Networks (Vinyals et al., 2016, section 3.1.1; Snell et al., 2017,
    section 3) has ``downsample="pool"`` (2 x 2 maximum) and flattens; MAML's network for Omniglot ``"stride"`` and a
    mean over positions (Finn et al., 2017, section 5.2).

    Args:
        input_shape: ``(channels, height, width)``, at least 16 x 16 to pool.
        num_filters: channels of every block.
        num_outputs: outputs of a linear head; None for the features alone.
        norm: see :class:`TaskNorm`; or none.
        downsample: how blocks halve their input.
        num_steps: inner steps that normalisation per step tells apart.
        precision: of the convolutions, and of the maps between them; features and outputs are float32.

    Raises:
        ConfigError: for inputs that are no images, or too small.

    Attributes:
        num_features: size of the features.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_filters: int,
        num_outputs: int | None = None,
        *,
        norm: Norm = "transductive",
        downsample: Downsample = "pool",
        num_steps: int = 1,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        smallest = 16 if downsample == "pool" else 1
        if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
            raise ConfigError(
                f"conv4 needs images (channels, height, width) of at least {smallest} x {smallest} to halve them four "
                f"times, got the shape {tuple(input_shape)}. Take the backbone mlp, or one of your own."
            )
        channels, height, width = input_shape
        blocks: list[nn.Module] = []
        for _ in range(4):
            blocks.append(_Convolution(channels, num_filters, 3, stride=2 if downsample == "stride" else 1, padding=1))
            if norm != "none":
                blocks.append(TaskNorm(num_filters, norm, num_steps))
            if downsample == "pool":
                # The maximum of positive parts is the positive part of the maximum, of a quarter of the numbers.
                blocks.append(nn.MaxPool2d(2))
            blocks.append(nn.ReLU())
            channels = num_filters
        self.body = nn.Sequential(*blocks)
        self.precision = precision
        self.mean_over_positions = downsample == "stride"
        self.num_features = num_filters if self.mean_over_positions else num_filters * (height // 16) * (width // 16)
        self.head = None if num_outputs is None else nn.Linear(self.num_features, num_outputs)
        # A quarter to a third faster on CPUs; the numbers are the same ones in another order.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Features or outputs ``[example, ...]`` of images ``[example, channel, height, width]``."""
        maps = self.body(x.to(torch.bfloat16) if self.precision == "bfloat16" else x).to(x.dtype)
        features: Tensor = maps.mean((2, 3)) if self.mean_over_positions else maps.flatten(1)
        return features if self.head is None else _linear(self.head, features)

    def run_tasks(self, params: Params, x: Tensor) -> Tensor | None:
        """:class:`metarl.networks.module_call.RunsTasks`, for images ``[task, example, channel, height, width]``."""
        made_of = {_Convolution, TaskNorm, nn.MaxPool2d, nn.ReLU}
        if not {type(part) for part in self.body} <= made_of or type(self.head) not in (nn.Linear, type(None)):
            return None
        maps = x.movedim(2, -1)
        if self.precision == "bfloat16":
            maps = maps.to(torch.bfloat16)
        for name, part in self.body.named_children():
            if isinstance(part, _Convolution | TaskNorm):
                weight, bias = params[f"body.{name}.weight"], params[f"body.{name}.bias"]
                if isinstance(part, TaskNorm):
                    maps = part.run_tasks(maps, weight, bias)
                else:
                    maps = task_convolution(maps, weight, bias, part.stride[0])
            else:
                maps = part(maps.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).unflatten(0, x.shape[:2])
        maps = maps.to(x.dtype).movedim(-1, 2)
        features: Tensor = maps.mean((3, 4)) if self.mean_over_positions else maps.flatten(2)
        if self.head is None:
            return features
        return torch.baddbmm(params["head.bias"][:, None], features, params["head.weight"].mT)


class _Convolution(nn.Conv2d):
    """In the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """As in torch."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out: Tensor = self._conv_forward(x, self.weight.to(x.dtype), bias)
        return out


class MLPBackbone(nn.Module):
    """Linear layers with ReLU, and normalisation if asked for; inputs are flattened.

    Args:
        input_shape: of one input.
        hidden_sizes: widths; none makes the features the inputs.
        num_outputs: outputs of a linear head; None for the features alone.
        head_bias: whether the head adds a constant.
        norm: see :class:`TaskNorm`; or none.
        num_steps: inner steps that normalisation per step tells apart.

    Attributes:
        num_features: size of the features.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden_sizes: Sequence[int],
        num_outputs: int | None = None,
        *,
        head_bias: bool = True,
        norm: Norm = "none",
        num_steps: int = 1,
    ) -> None:
        super().__init__()
        size = math.prod(input_shape)
        layers: list[nn.Module] = []
        for width in hidden_sizes:
            layers.append(nn.Linear(size, width))
            if norm != "none":
                layers.append(TaskNorm(width, norm, num_steps))
            layers.append(nn.ReLU())
            size = width
        self.body = nn.Sequential(*layers)
        self.num_features = size
        self.head = None if num_outputs is None else nn.Linear(size, num_outputs, bias=head_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features or outputs ``[example, ...]`` of inputs ``[example, ...]``."""
        features: Tensor = self.body(x.flatten(1))
        return features if self.head is None else _linear(self.head, features)


def _linear(layer: nn.Linear, features: Tensor) -> Tensor:
    out: Tensor = layer(features)
    return out
