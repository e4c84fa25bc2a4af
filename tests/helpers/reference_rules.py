"""Learned update rules written plainly: one coordinate of one task at a time, every gate by hand.

What the tests of the batched rules compare with. It shares nothing with the implementation but the names, order and
values of the parameters. Everything is a differentiable scalar or vector, so that autograd gives every derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from helpers.reference_maml import Episode, Reference
from metarl.adaptation import UpdateRule
from metarl.agents.common.gradient_agent import GradientAgent
from metarl.types import Trial

Weights = dict[str, Tensor]
Memory = list[Tensor]
Step = Callable[[Weights, Tensor, Tensor, Tensor, Memory], tuple[Tensor, Memory]]
"""Weights, one coordinate, its gradient, what stands for its task's loss, memory (empty at first) -> the coordinate,
memory."""


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def features(x: Tensor) -> list[Tensor]:
    """Andrychowicz et al., appendix A, with p = 10."""
    if abs(float(x)) >= math.exp(-10):
        return [torch.log(torch.abs(x)) / 10, torch.sign(x)]
    return [torch.tensor(-1.0, dtype=x.dtype), math.exp(10) * x]


def lstm(weights: Weights, layer: str, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Input, forget, candidate and output gate, in torch's order."""
    z = weights[f"{layer}.weight_ih"] @ x + weights[f"{layer}.bias_ih"]
    z = z + weights[f"{layer}.weight_hh"] @ hidden + weights[f"{layer}.bias_hh"]
    i, f, g, o = z[:20], z[20:40], z[40:60], z[60:]
    cell = sigmoid(f) * cell + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(cell), cell


def ravi(weights: Weights, theta: Tensor, grad: Tensor, loss: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    zeros, zero = torch.zeros(20, dtype=theta.dtype), torch.zeros((), dtype=theta.dtype)
    hidden, cell, forget, rate = memory or (zeros, zeros, zero, zero)
    hidden, cell = lstm(weights, "layer", torch.stack([*features(grad), *features(loss)]), hidden, cell)

    def gate(name: str, previous: Tensor) -> Tensor:
        seen = torch.cat([hidden, torch.stack([theta, previous])])
        return sigmoid(weights[f"{name}.weight"][0] @ seen + weights[f"{name}.bias"][0])

    forget, rate = gate("forget", forget), gate("rate", rate)
    return forget * theta - rate * grad, [hidden, cell, forget, rate]


def andrychowicz(inner_lr: float, output_scale: float) -> Step:
    def step(weights: Weights, theta: Tensor, grad: Tensor, loss: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        zeros = torch.zeros(20, dtype=theta.dtype)
        hidden0, cell0, hidden1, cell1 = memory or [zeros] * 4
        hidden0, cell0 = lstm(weights, "first", torch.stack(features(grad)), hidden0, cell0)
        hidden1, cell1 = lstm(weights, "second", hidden0, hidden1, cell1)
        out = weights["output.weight"][0] @ hidden1 + weights["output.bias"][0]
        return theta - inner_lr * grad + output_scale * out, [hidden0, cell0, hidden1, cell1]

    return step


def move(
    step: Step,
    weights: Weights,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    loss: Tensor,
    memories: list[Memory],
) -> list[Tensor]:
    """One step of one task, coordinate by coordinate; fills or replaces ``memories``, one for each coordinate."""
    moved, coordinate = [], 0
    for value, grad in zip(params, grads, strict=True):
        entries = []
        for theta, slope in zip(value.flatten(), grad.flatten(), strict=True):
            if coordinate == len(memories):
                memories.append([])
            entry, memories[coordinate] = step(weights, theta, slope, loss, memories[coordinate])
            entries.append(entry)
            coordinate += 1
        moved.append(torch.stack(entries).view_as(value))
    return moved


def spread(rule: UpdateRule) -> None:
    """Set the rule's parameters so that no term of a derivative vanishes and its steps stay moderate."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in rule.named_parameters():
            if not (name.endswith("bias") and name.split(".")[0] in ("forget", "rate")):
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
            elif name.startswith("forget"):
                parameter.fill_(2.0)


class RuleReference(Reference):
    """MAML's reference, with inner steps by a learned rule.

    Args:
        agent: its parameters, rule and settings are copied.
        trial: what it would be updated with.
        step: the rule, plainly.
    """

    def __init__(self, agent: GradientAgent, trial: Trial, step: Step) -> None:
        self.rule_step, self.horizon = step, agent.spec.horizon
        self.rule_names = [name for name, _ in agent.rule.named_parameters()]
        Reference.__init__(self, agent, trial, getattr(agent.rule, "adapted", None))

    def stages(self, meta: list[Tensor], samples: list[Episode]) -> list[list[Tensor]]:
        """See :class:`Reference`."""
        params, weights = meta[: len(self.names)], dict(zip(self.rule_names, meta[len(self.names) :], strict=True))
        found: list[list[Tensor]] = [params]
        memories: list[Memory] = []
        for inner in samples[:-1]:
            gradient = torch.autograd.grad(self.inner_loss(found[-1], inner), found[-1], create_graph=True)
            if self.config.first_order:
                gradient = tuple(slope.detach() for slope in gradient)
            shown = -inner.mean_return / self.horizon
            chosen = [index for index, name in enumerate(self.names) if name in self.adapting]
            before = [found[-1][index] for index in chosen]
            moved = move(self.rule_step, weights, before, [gradient[index] for index in chosen], shown, memories)
            following = list(found[-1])
            for index, value in zip(chosen, moved, strict=True):
                following[index] = value
            found.append(following)
        return found
