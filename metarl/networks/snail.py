"""SNAIL: causal convolutions interleaved with attention, with incremental acting.

Mishra et al., 2018 (arXiv 1707.03141), section 3 and Figure 2: a *dense block* is a causal convolution of kernel 2 with
a gated activation whose output is concatenated to its input; a *TC block* is a stack of them with dilations 1, 2, 4,
... up to the length of the trial; an *attention block* is one causal soft look-up, concatenated as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metarl.networks.memory import Memory, input_size
from metarl.types import Spec


class DenseBlock(nn.Module):
    """``x -> [x, tanh(f(x)) * sigmoid(g(x))]`` with causal convolutions f and g of kernel 2.

    Args:
        size: channels of the input.
        num_filters: channels that are added.
        dilation: steps between the two taps of the kernel.
    """

    def __init__(self, size: int, num_filters: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.past = nn.Linear(size, 2 * num_filters, bias=False)
        self.present = nn.Linear(size, 2 * num_filters)

    @property
    def state_size(self) -> int:
        """Numbers in what the kernel's earlier tap gives for the last ``dilation`` inputs; fewer than in these."""
        return self.dilation * self.past.out_features

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Block output ``[sequence, time, size + num_filters]``, and the last earlier taps for the next call."""
        past = torch.cat([state.view(len(x), self.dilation, -1), self.past(x)], dim=1)
        content, gate = (past[:, : x.shape[1]] + self.present(x)).chunk(2, dim=-1)
        return torch.cat([x, content.tanh() * gate.sigmoid()], dim=-1), past[:, -self.dilation :].flatten(1)

    def peek(self, x: Tensor, state: Tensor) -> Tensor:
        """Block output for many alternatives of one next step, which do not see each other.

        Args:
            x: ``[sequence, alternative, size]``.
            state: of the steps before.
        """
        past = state.view(len(x), self.dilation, -1)[:, :1]
        content, gate = (past + self.present(x)).chunk(2, dim=-1)
        return torch.cat([x, content.tanh() * gate.sigmoid()], dim=-1)


class AttentionBlock(nn.Module):
    """``x -> [x, attention over the trial so far]`` with one head.

    Args:
        size: channels of the input.
        key_size: size of queries and keys.
        value_size: channels that are added.
        num_steps: longest trial; a state of another length holds as many steps as fit.
    """

    def __init__(self, size: int, key_size: int, value_size: int, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.key_size = key_size
        self.query = nn.Linear(size, key_size)
        self.memory = nn.Linear(size, key_size + value_size)

    @property
    def state_size(self) -> int:
        """Numbers in the keys and values of a whole trial."""
        return self.num_steps * self.memory.out_features

    def forward(self, x: Tensor, state: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Block output ``[sequence, time, size + value_size]`` and the new state, after ``position`` earlier steps."""
        num_sequences, num_steps, _ = x.shape
        steps = position[:, None] + torch.arange(num_steps, device=x.device)
        stored = state.view(num_sequences, -1, self.memory.out_features)
        stored = stored.scatter(1, steps[..., None].expand(-1, -1, stored.shape[-1]), self.memory(x))
        keys, values = self._split(stored)
        scores = self.query(x) @ keys.mT / math.sqrt(self.key_size)
        future = torch.arange(stored.shape[1], device=x.device) > steps[..., None]
        read = scores.masked_fill(future, float("-inf")).softmax(-1) @ values
        return torch.cat([x, read], dim=-1), stored.flatten(1)

    def peek(self, x: Tensor, state: Tensor) -> Tensor:
        """Block output for many alternatives of one next step, which do not see each other.

        Args:
            x: ``[sequence, alternative, size]``.
            state: keys and values of the steps before, of which there are as many as fill it.
        """
        keys, values = self._split(state.view(len(x), -1, self.memory.out_features))
        own_key, own_value = self._split(self.memory(x))
        query = self.query(x)
        scores = torch.cat([query @ keys.mT, (query * own_key).sum(-1, keepdim=True)], dim=-1)
        weights = (scores / math.sqrt(self.key_size)).softmax(-1)
        read = weights[..., :-1] @ values + weights[..., -1:] * own_value
        return torch.cat([x, read], dim=-1)

    def _split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Keys and values."""
        return torch.split(stored, [self.key_size, stored.shape[-1] - self.key_size], dim=-1)


class SNAILMemory(Memory):
    """Two TC blocks and an attention block, as in the paper's bandits and MDPs (one trunk for policy and value).

    Args:
        spec: sizes of observation and action.
        num_filters: filters of each dense block, and sizes of keys and values; the paper's 32.
        init_std: initial standard deviation of a Gaussian policy.
        num_steps: longest trial; the attention looks no further.
    """

    def __init__(self, spec: Spec, num_filters: int, init_std: float, num_steps: int) -> None:
        dilations = [2**power for power in range(max(1, math.ceil(math.log2(num_steps))))]
        blocks: list[DenseBlock] = []
        size = num_filters
        for dilation in (*dilations, *dilations):
            blocks.append(DenseBlock(size, num_filters, dilation))
            size += num_filters
        attention = AttentionBlock(size, num_filters, num_filters, num_steps)
        state_sizes = [*(block.state_size for block in blocks), attention.state_size, 1]
        super().__init__(spec, size + num_filters, sum(state_sizes), init_std)
        self.num_steps = num_steps
        self.state_sizes = state_sizes
        self.encoder = nn.Linear(input_size(spec), num_filters)
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention

    def remember(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state holds the last earlier taps of all convolutions, keys and values, and the number of steps."""
        *histories, stored, count = torch.split(state, self.state_sizes, dim=-1)
        x = self.encoder(inputs)
        following: list[Tensor] = []
        for block, history in zip(self.blocks, histories, strict=True):
            x, last = block(x, history)
            following.append(last)
        x, stored = self.attention(x, stored, count.squeeze(-1).long())
        return x, torch.cat([*following, stored, count + inputs.shape[1]], dim=-1)
