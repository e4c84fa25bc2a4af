"""A transformer as memory of a trial: causal attention with rotary positions, and a cache of keys and values.

Vaswani et al., 2017 (arXiv 1706.03762), with layer normalisation before each part of a block and none on the way
around it, which is what makes transformers learn by reinforcement (Parisotto et al., 2019, arXiv 1910.06764, "identity
map reordering"); as memory of a meta-learner Melo, 2022 (arXiv 2206.06614). Positions turn queries and keys (Su et al.,
2021, arXiv 2104.09864), so that attention sees how long ago a step was, and a cache can go on for ever. Where a trial
is cut into pieces no gradient flows into the cache, as in Transformer-XL (Dai et al., 2019, arXiv 1901.02860).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metarl.networks.heads import HeadFactory, LinearHead
from metarl.networks.memory import Memory, tanh_layers
from metarl.types import Spec

_BASE = 10_000.0
"""The slowest turn takes this many steps times two pi (Su et al., section 3.4.3)."""


class CachedAttention(nn.Module):
    """Causal attention with several heads over the last ``context`` steps, the present one included.

    The cache is a ring: step ``t`` lies at slot ``t % context``. Keys are stored as turned by their positions, so that
    their order in the cache does not matter.

    Args:
        size: channels of input and output.
        num_heads: heads; ``size`` must be a multiple of twice as many.
        context: steps that can be seen.
    """

    def __init__(self, size: int, num_heads: int, context: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.context = context
        self.query_key_value = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)

    @property
    def state_size(self) -> int:
        """Numbers in the keys and values of ``context`` steps."""
        return self.context * 2 * self.out.in_features

    def forward(self, x: Tensor, state: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """What is read at each step, ``[sequence, time, size]``, and the new state.

        Args:
            x: ``[sequence, time, size]``.
            state: ``[sequence, state_size]`` before the first of these steps.
            position: ``[sequence]`` int64, the steps before.
        """
        num_steps, context = x.shape[1], self.context
        steps = position[:, None] + torch.arange(num_steps, device=x.device)
        query, key, value = self.query_key_value(x).chunk(3, dim=-1)
        query, key = self._turned(query, steps), self._turned(key, steps)
        stored = state.view(len(x), context, -1)
        new = torch.cat([key, value], dim=-1).to(stored.dtype)
        kept = min(num_steps, context)
        slots = (steps[:, -kept:] % context)[..., None].expand(-1, -1, new.shape[-1])
        written = stored.scatter(1, slots, new[:, -kept:])
        if num_steps == 1:
            # What the new step has overwritten is out of sight.
            read = self._read(query, written, self._held(position + 1)[:, None] >= 0)
        else:
            # Blocks as long as the context see themselves and the one before them, the first one the cache.
            known, places = torch.cat([stored, new], dim=1), torch.cat([self._held(position), steps], dim=1)
            blocks = []
            for first in range(0, num_steps, context):
                seen = places[:, None, first : first + 2 * context]
                ago = steps[:, first : first + context, None] - seen
                visible = (ago >= 0) & (ago < context) & (seen >= 0)
                blocks.append(
                    self._read(query[:, first : first + context], known[:, first : first + 2 * context], visible)
                )
            read = torch.cat(blocks, dim=1)
        return self.out(read), written.flatten(1)

    def _held(self, count: Tensor) -> Tensor:
        """Positions of the steps in the cache's slots after ``count`` ``[sequence]`` steps; negative where empty."""
        last = count[:, None] - 1
        return last - (last - torch.arange(self.context, device=count.device)) % self.context

    def _turned(self, x: Tensor, steps: Tensor) -> Tensor:
        """``x`` ``[sequence, time, size]`` with the two halves of every head turned as pairs by angles of ``steps``."""
        first, second = self._heads(x).chunk(2, dim=-1)
        half = first.shape[-1]
        rates = _BASE ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
        angles = steps[:, None, :, None] * rates
        # Of angles in float32, thousands of steps would leave three digits; in bfloat16, cosines have two.
        kind = torch.promote_types(x.dtype, torch.float32)
        cos, sin = angles.cos().to(kind), angles.sin().to(kind)
        turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
        return turned.transpose(1, 2).flatten(2)

    def _read(self, query: Tensor, stored: Tensor, visible: Tensor) -> Tensor:
        """Softmax attention; ``visible`` is ``[sequence, query, key]`` bool."""
        key, value = stored.to(query.dtype).chunk(2, dim=-1)
        read = nn.functional.scaled_dot_product_attention(
            self._heads(query), self._heads(key), self._heads(value), attn_mask=visible[:, None]
        )
        return read.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        """``[sequence, time, size]`` -> ``[sequence, head, time, size / heads]``."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        size: channels.
        num_heads: heads of the attention.
        context: steps that it sees.
        num_layers: blocks of the whole network, by which the first outputs are scaled down (Radford et al., 2019).
    """

    def __init__(self, size: int, num_heads: int, context: int, num_layers: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size)
        self.attention = CachedAttention(size, num_heads, context)
        self.mlp_norm = nn.LayerNorm(size)
        wide, narrow = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.mlp = nn.Sequential(wide, nn.GELU(), narrow)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for last in (self.attention.out, narrow):
                last.weight.mul_(1.0 / math.sqrt(2.0 * num_layers))

    def forward(self, x: Tensor, state: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`CachedAttention.forward`."""
        read, state = self.attention(self.attention_norm(x), state, position)
        x = x + read
        return x + self.mlp(self.mlp_norm(x)), state


class TransformerMemory(Memory):
    """Blocks of attention and MLP over the trial so far.

    Args:
        spec: sizes of observation and action.
        hidden_size: channels, a multiple of twice the number of heads.
        init_std: initial standard deviation of a Gaussian policy.
        encoder_sizes: widths of tanh layers between the input and the first block.
        num_layers: blocks.
        num_heads: heads of each block's attention.
        context: steps that each attention sees, the present one included; the state holds their keys and values.
        head: makes the heads.
    """

    def __init__(
        self,
        spec: Spec,
        hidden_size: int,
        init_std: float,
        encoder_sizes: tuple[int, ...],
        num_layers: int,
        num_heads: int,
        context: int,
        head: HeadFactory = LinearHead,
    ) -> None:
        blocks = [Block(hidden_size, num_heads, context, num_layers) for _ in range(num_layers)]
        state_sizes = [*(block.attention.state_size for block in blocks), 1]
        super().__init__(spec, hidden_size, sum(state_sizes), init_std, head)
        self.state_sizes = state_sizes
        layers, width = tanh_layers(spec, encoder_sizes)
        self.encoder = nn.Sequential(layers, nn.Linear(width, hidden_size))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_size)

    def remember(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state holds keys and values of all blocks, and the number of steps."""
        *caches, count = torch.split(state, self.state_sizes, dim=-1)
        position = count.squeeze(-1).long()
        x = self.encoder(inputs)
        following: list[Tensor] = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, written = block(x, cache, position)
            following.append(written)
        return self.norm(x), torch.cat([*following, count + inputs.shape[1]], dim=-1)
