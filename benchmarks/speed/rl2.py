"""An epoch of RL²'s PPO beside the matrix products that it cannot do without, and truncated back-propagation.

The part ``rl2`` of :mod:`metarl.benchmarks.speed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from metarl.agents.rl2 import RL2, RL2Config
from metarl.benchmarks.speed.measure import Clock, complete, measure, synthetic_timesteps
from metarl.networks.memory import input_size
from metarl.types import Spec, Trial

LIMIT = 1.3
"""An epoch may take this many times as long as its bare matrix products."""


@dataclass(frozen=True)
class Size:
    """Trials of two episodes, and the GRU that reads them."""

    num_trials: int
    num_steps: int
    hidden_size: int
    bptt_steps: tuple[int, ...]

    @property
    def spec(self) -> Spec:
        """Sizes of Meta-World."""
        return Spec(39, 4, False, self.num_steps // 2)

    def agent(self, device: torch.device, bptt_steps: int) -> RL2:
        """One epoch in the default number of minibatches."""
        config = RL2Config(hidden_size=self.hidden_size, num_epochs=1, bptt_steps=bptt_steps)
        return config.build(self.spec, device, 0)

    def trial(self, device: torch.device) -> Trial:
        """Random observations; the reward depends on the action before last, so that memory matters."""
        generator = torch.Generator().manual_seed(0)
        rollouts = []
        for _ in range(2):
            timesteps = synthetic_timesteps(self.spec, (self.num_trials, 1, self.num_steps // 2), generator, device)
            actions = torch.randn(self.num_trials, 1, self.num_steps // 2, 4, generator=generator).to(device)
            log_probs = (-0.5 * actions.square() - 0.919).sum(-1)
            rollouts.append(complete(timesteps, actions, log_probs, actions.roll(2, dims=2).sum(-1)))
        return Trial(list(range(self.num_trials)), tuple(rollouts))


FULL = Size(20, 5000, 256, (100, 500))
QUICK = Size(4, 20, 8, (5,))


def bare_products(size: Size, device: torch.device, num_sequences: int, num_steps: int) -> None:
    """The matrix products of one pass over all trials, forward and backward, in minibatches of the same shapes.

    Input and heads are products over all steps at once; the hidden state goes step by step.
    """
    width, inputs, heads = size.hidden_size, input_size(size.spec), size.spec.action_dim + 1
    sequences = size.num_trials * size.num_steps // num_steps
    for _ in range(sequences // num_sequences):
        x = torch.randn(num_sequences * num_steps, inputs, device=device)
        gates = torch.randn(num_sequences * num_steps, 3 * width, device=device)
        features = torch.randn(num_sequences * num_steps, width, device=device)
        outputs = torch.randn(num_sequences * num_steps, heads, device=device)
        from_input = torch.randn(inputs, 3 * width, device=device)
        from_hidden = torch.randn(width, 3 * width, device=device)
        to_heads = torch.randn(width, heads, device=device)
        hidden, change = features[:num_sequences], gates[:num_sequences]
        out, back = torch.empty_like(change), torch.empty_like(hidden)
        x @ from_input
        for _ in range(num_steps):
            torch.mm(hidden, from_hidden, out=out)
        features @ to_heads
        outputs @ to_heads.T
        features.T @ outputs
        for _ in range(num_steps):
            torch.mm(change, from_hidden.T, out=back)
        features.T @ gates
        x.T @ gates


def gradients(agent: RL2, trial: Trial) -> tuple[Tensor, Tensor]:
    """The gradient of PPO's first step on all trials at once: all parameters, and those of the recurrent network."""
    agent.ppo_step(agent.sequences(trial))
    named = {name: p.grad.flatten() for name, p in agent.memory.named_parameters() if p.grad is not None}
    return torch.cat([*named.values()]), torch.cat([slope for name, slope in named.items() if name.startswith("gru")])


def run(console: Console, clock: Clock, device: torch.device, quick: bool) -> None:
    """Measure and print the table."""
    size = QUICK if quick else FULL
    trial = size.trial(device)
    repeats = 1 if quick else 2
    whole = gradients(size.agent(device, 0), trial)
    table = Table(
        "gradient through",
        *(
            "epoch, s",
            "host, s",
            "bare products, s",
            "x bare",
            f"at most {LIMIT}",
            "times as fast",
            "cosine to full",
            "of the GRU",
        ),
        title=f"RL²: one PPO epoch over {size.num_trials} trials x {size.num_steps} steps, GRU of {size.hidden_size}",
    )
    full = 0.0
    for steps in (0, *size.bptt_steps):
        agent = size.agent(device, steps)
        batch = agent.sequences(trial)
        minibatch = -(-len(batch.inputs) // min(agent.config.num_minibatches, len(batch.inputs)))
        shape = (minibatch, batch.inputs.shape[1])
        bare = measure(partial(bare_products, size, device, *shape), clock, device, repeats).device
        epoch = measure(partial(agent.improve, batch), clock, device, repeats)
        full = full or epoch.device
        own = gradients(size.agent(device, steps), trial)
        cosines = (torch.nn.functional.cosine_similarity(*pair, dim=0).item() for pair in zip(own, whole, strict=True))
        table.add_row(
            f"{steps} steps" if steps else "whole trials",
            *(f"{epoch.device:.2f}", f"{epoch.host:.2f}", f"{bare:.2f}", f"{epoch.device / bare:.2f}"),
            *("yes" if epoch.device <= LIMIT * bare else "no", f"{full / epoch.device:.2f}"),
            *(f"{cosine:.5f}" for cosine in cosines),
        )
    console.print(table)
