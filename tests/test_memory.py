"""Memories: step by step or all at once is the same, the past is never seen early, and SNAIL is what the paper says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metarl import evaluate, make
from metarl.agents.rl2 import SNAILConfig
from metarl.errors import ConfigError
from metarl.networks.memory import GRUMemory, LSTMMemory, Memory, input_size
from metarl.networks.snail import AttentionBlock, DenseBlock, SNAILMemory
from metarl.networks.transformer import TransformerMemory
from metarl.types import Spec

SPEC = Spec(obs_dim=3, action_dim=2, discrete=True, horizon=4)
NUM_STEPS, NUM_SEQUENCES = 11, 5


def memories() -> list[Memory]:
    torch.manual_seed(0)
    made = [
        GRUMemory(SPEC, 6, 1.0),
        LSTMMemory(SPEC, 6, 1.0),
        SNAILMemory(SPEC, 4, 1.0, NUM_STEPS),
        TransformerMemory(SPEC, 8, 1.0, (5,), num_layers=2, num_heads=2, context=NUM_STEPS),
    ]
    for memory in made:  # Heads start near zero; here every output must matter.
        for parameter in memory.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return [memory.double() for memory in made]


def inputs(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_SEQUENCES, NUM_STEPS, input_size(SPEC), generator=generator, dtype=torch.float64)


def empty(memory: Memory) -> Tensor:
    return torch.zeros(NUM_SEQUENCES, memory.state_size, dtype=torch.float64)


@pytest.mark.parametrize("memory", memories(), ids=["gru", "lstm", "snail", "transformer"])
@pytest.mark.parametrize("pieces", [[1] * NUM_STEPS, [4, 7], [3, 1, 5, 2]])
def test_acting_in_pieces_equals_the_whole_sequence(memory: Memory, pieces: list[int]) -> None:
    x = inputs()
    whole = memory(x, empty(memory))
    state, outs, values = empty(memory), [], []
    for piece in x.split(pieces, dim=1):
        out, value, state = memory(piece, state)
        outs.append(out)
        values.append(value)
    assert torch.allclose(torch.cat(outs, 1), whole[0], atol=1e-12)
    assert torch.allclose(torch.cat(values, 1), whole[1], atol=1e-12)
    assert torch.allclose(state, whole[2], atol=1e-12)


@pytest.mark.parametrize("memory", memories(), ids=["gru", "lstm", "snail", "transformer"])
def test_outputs_depend_on_the_whole_past_and_on_no_future(memory: Memory) -> None:
    x = inputs().requires_grad_()
    for step in (0, 5, NUM_STEPS - 1):
        out, _, _ = memory(x, empty(memory))
        (slope,) = torch.autograd.grad(out[:, step].sum(), x)
        assert (slope[:, : step + 1].abs().amax(-1) > 0).all()
        assert (slope[:, step + 1 :] == 0).all()


@pytest.mark.parametrize("memory", memories()[2:], ids=["snail", "transformer"])
def test_sequences_at_different_positions_are_stepped_together(memory: Memory) -> None:
    """Episodes of different lengths leave the slots of a batch at different steps of their trials."""
    x = inputs()
    whole, _, _ = memory(x, empty(memory))
    ahead = torch.tensor([0, 3, 1, 7, 5])
    state = torch.cat(
        [
            memory(x[i : i + 1, :n], empty(memory)[:1])[2] if n else empty(memory)[:1]
            for i, n in enumerate(ahead.tolist())
        ]
    )
    out, _, _ = memory(x[torch.arange(NUM_SEQUENCES), ahead][:, None], state)
    assert torch.allclose(out[:, 0], whole[torch.arange(NUM_SEQUENCES), ahead], atol=1e-12)


def test_dense_block_is_a_gated_causal_convolution() -> None:
    torch.manual_seed(2)
    block = DenseBlock(3, 4, dilation=2).double()
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    out, last = block(x, torch.zeros(1, block.state_size, dtype=torch.float64))
    for t in range(6):
        before = x[0, t - 2] if t >= 2 else torch.zeros(3, dtype=torch.float64)
        taps = block.past.weight @ before + block.present.weight @ x[0, t] + block.present.bias
        expected = taps[:4].tanh() * taps[4:].sigmoid()
        assert torch.allclose(out[0, t], torch.cat([x[0, t], expected]), atol=1e-12)
    assert torch.allclose(last.view(2, 8), x[0, -2:] @ block.past.weight.T, atol=1e-12)


def test_attention_block_is_a_causal_look_up() -> None:
    torch.manual_seed(3)
    block = AttentionBlock(3, 2, 4, num_steps=5).double()
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    out, _ = block(x, torch.zeros(1, block.state_size, dtype=torch.float64), torch.zeros(1, dtype=torch.long))
    for t in range(5):
        stored = block.memory(x[0, : t + 1])
        scores = stored[:, :2] @ block.query(x[0, t]) / math.sqrt(2)
        read = scores.softmax(0) @ stored[:, 2:]
        assert torch.allclose(out[0, t], torch.cat([x[0, t], read]), atol=1e-12)


def test_dilations_reach_over_the_whole_trial() -> None:
    memory = SNAILMemory(SPEC, 4, 1.0, num_steps=100)
    dilations = [block.dilation for block in memory.blocks]
    assert dilations == [1, 2, 4, 8, 16, 32, 64] * 2


def test_an_episode_that_outgrows_snail_is_refused() -> None:
    bandit = make("bandit")
    agent = SNAILConfig(hidden_size=4, episodes_per_trial=1).build(bandit.spec, torch.device("cpu"), 0)
    assert evaluate(agent, bandit, num_tasks=3, seed=0).returns.shape == (3, 1)
    with pytest.raises(ConfigError, match=r"built for 10 steps .* has seen 10"):
        evaluate(agent, bandit, num_tasks=3, seed=0, num_adaptations=1)
    # An episode that is longer than those of training, alone or as the last of several.
    longer = make("bandit-k5-n100")
    with pytest.raises(ConfigError, match=r"built for trials of 10 steps, but .* has up to 100"):
        evaluate(agent, longer, num_tasks=3, seed=0)
    agent = SNAILConfig(hidden_size=4, episodes_per_trial=25).build(bandit.spec, torch.device("cpu"), 0)
    with pytest.raises(ConfigError, match=r"has seen 200: another episode of up to 100 does not fit"):
        evaluate(agent, longer, num_tasks=3, seed=0, num_adaptations=2)
