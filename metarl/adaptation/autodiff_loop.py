"""The inner loop of any update rule, as one graph that derivatives are carried through by automatic differentiation.

``J`` is the Jacobian of the adapted parameters with respect to the initial ones and to the rule's own. ``J' w`` is a
backward pass through the graph of all steps. ``J v`` is a backward pass through the graph of that backward pass: with
respect to ``w``, in which it is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from metarl.adaptation.leaves import other_leaves
from metarl.adaptation.update_rules import LossFn, UpdateRule, slopes
from metarl.networks.module_call import call_with
from metarl.networks.params import Params

Move = Callable[[Params | None, Params, Params, Tensor], tuple[Params, Params]]
"""A step of a rule: state (None before the first), parameters, gradients, losses -> new parameters, new state."""


@dataclass(frozen=True)
class AutodiffLoop:
    """The result of :func:`autodiff_loop`; its methods are those of :class:`metarl.adaptation.InnerLoop`.

    Attributes:
        adapted: stacked parameters after the last step, detached.
        state: state of the rule after the last step, detached; None before the first.
        starts: where each step began, as leaves.
        nodes: parameters before each step and after the last one, with their graph; empty without derivatives.
        weights: the rule's own parameters, leaves of that graph.
    """

    adapted: Params
    state: Params | None
    starts: tuple[Params, ...]
    nodes: tuple[Params, ...]
    weights: Params

    @property
    def others(self) -> list[Tensor]:
        """See :attr:`metarl.adaptation.InnerLoop.others`."""
        known = [*(self.nodes[0].values() if self.nodes else ()), *self.weights.values()]
        return other_leaves([value for node in self.nodes for value in node.values()], known)

    def jvp(self, tangent: Params, rule_tangent: Mapping[str, Tensor] | None = None) -> Params:
        """See :meth:`metarl.adaptation.InnerLoop.jvp`."""
        probes, images = self._transpose
        tangents = [*tangent.values(), *((rule_tangent or {}).get(name) for name in self.weights)]
        # What does not depend on the probes is not connected: it moves nothing.
        pairs = [(i, t) for i, t in zip(images, tangents, strict=True) if t is not None and i.requires_grad]
        found = torch.autograd.grad(
            [image for image, _ in pairs],
            probes,
            grad_outputs=[t for _, t in pairs],
            retain_graph=True,
            materialize_grads=True,
        )
        return dict(zip(self.adapted, found, strict=True))

    def vjp(self, cotangent: Params, direct: Sequence[Params | None] = ()) -> tuple[Params, Params]:
        """See :meth:`metarl.adaptation.InnerLoop.vjp`."""
        start, *_ = self._nodes()
        parts = [*zip(self.nodes[:-1], direct, strict=True)] if direct else []
        outputs, weights = [*self.nodes[-1].values()], [cotangent[name] for name in self.adapted]
        for node, here in parts:
            if here is not None:
                outputs += node.values()
                weights += [here[name] for name in node]
        found = torch.autograd.grad(
            outputs,
            [*start.values(), *self.weights.values()],
            grad_outputs=weights,
            retain_graph=True,
            materialize_grads=True,
        )
        return dict(zip(start, found, strict=False)), dict(zip(self.weights, found[len(start) :], strict=True))

    def _nodes(self) -> tuple[Params, ...]:
        if not self.nodes:
            raise RuntimeError("this inner loop was run with differentiable=False: it has no derivatives.")
        return self.nodes

    @cached_property
    def _transpose(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Probes ``w``, and ``J' w`` with its graph."""
        start, *_ = self._nodes()
        with torch.enable_grad():
            outputs = [*self.nodes[-1].values()]
            probes = [torch.zeros_like(value, requires_grad=True) for value in outputs]
            images = torch.autograd.grad(
                outputs,
                [*start.values(), *self.weights.values()],
                grad_outputs=probes,
                create_graph=True,
                materialize_grads=True,
            )
        return probes, images


class Path(NamedTuple):
    """The way that steps of a rule took.

    Attributes:
        nodes: parameters before each step and after the last one, with their graph.
        starts: where each step began, as leaves.
        state: the rule's state after the last step, with its graph; None before the first.
    """

    nodes: tuple[Params, ...]
    starts: tuple[Params, ...]
    state: Params | None


def take_steps(
    params: Params,
    losses: Sequence[LossFn],
    move: Move,
    *,
    second_order: bool,
    state: Params | None = None,
    signals: Sequence[Tensor] | None = None,
    factor: float = 1.0,
    differentiable: bool = True,
) -> Path:
    """Take one step per loss from ``params``, whose graph, if there is one, the path goes on with.

    Args:
        params: as in :func:`metarl.adaptation.inner_loop`, also with a graph.
        losses: likewise.
        move: a step of the rule; with its own parameters or others.
        second_order: as in :func:`metarl.adaptation.inner_loop`.
        state: likewise.
        signals: likewise.
        factor: likewise.
        differentiable: likewise.

    Raises:
        ValueError: for a loss or a signal that is not one number per task.
    """
    through = second_order and differentiable
    nodes, starts = [params], []
    for index, loss_fn in enumerate(losses):
        current = nodes[-1]
        point = {name: value.detach().requires_grad_() for name, value in current.items()}
        starts.append(point)
        found = slopes(loss_fn, current if through else point, create_graph=through)
        shown = found.losses if through else found.losses.detach()
        if signals is not None:
            if signals[index].shape != shown.shape:
                raise ValueError(f"signals must have shape {tuple(shown.shape)}, got {tuple(signals[index].shape)}.")
            shown = signals[index]
        with torch.set_grad_enabled(differentiable):
            moved, state = move(state, current, found.gradient, shown)
            moved = {name: value if name in found.unused else moved[name] for name, value in current.items()}
            if factor != 1.0:
                moved = {name: value + factor * (moved[name] - value) for name, value in current.items()}
        nodes.append(moved)
    return Path(tuple(nodes), tuple(starts), state)


def autodiff_loop(
    params: Params,
    losses: Sequence[LossFn],
    rule: UpdateRule,
    *,
    second_order: bool,
    weights: Mapping[str, Tensor] | None = None,
    state: Params | None = None,
    signals: Sequence[Tensor] | None = None,
    factor: float = 1.0,
    differentiable: bool = True,
) -> AutodiffLoop:
    """Take one step of the rule per loss; see :func:`metarl.adaptation.inner_loop`."""
    given = {name: value for name, value in rule.named_parameters() if value.requires_grad} | dict(weights or {})
    own = {name: value.detach().requires_grad_() for name, value in given.items()}
    path = take_steps(
        {name: value.detach().requires_grad_() for name, value in params.items()},
        losses,
        lambda *step: call_with(rule, own, *step),
        second_order=second_order,
        state=state,
        signals=signals,
        factor=factor,
        differentiable=differentiable,
    )
    return AutodiffLoop(
        {name: value.detach() for name, value in path.nodes[-1].items()},
        None if path.state is None else {name: value.detach() for name, value in path.state.items()},
        path.starts,
        path.nodes if differentiable else (),
        own,
    )
