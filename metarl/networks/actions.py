"""Actions between networks and the world: the distribution that outputs stand for, and actions as inputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from metarl.networks.distributions import Categorical, DiagGaussian, Distribution, Product
from metarl.types import Spec


def policy_distribution(spec: Spec, out: Tensor, log_std: Tensor | None) -> Distribution:
    """What a network's outputs say of an action.

    Args:
        spec: which kind of action.
        out: ``[..., action_dim]``: logits, means, or the logits of all choices and then the means.
        log_std: of the coordinates, of a shape that expands to that of the means; None where there are none.
    """
    if spec.discrete:
        return Categorical(out)
    logits, mean = split_outputs(spec, out)
    normals = DiagGaussian(mean, torch.zeros_like(mean) if log_std is None else log_std.expand_as(mean))
    return normals if logits is None else Product(logits, spec.choices, normals)


def split_outputs(spec: Spec, out: Tensor) -> tuple[Tensor | None, Tensor]:
    """Outputs ``[..., action_dim]`` of actions that are no single choice: logits, None without choices, and means."""
    if not spec.choices:
        return None, out
    number = sum(spec.choices)
    return out[..., :number], out[..., number:]


def encoded_actions(spec: Spec, actions: Tensor) -> Tensor:
    """Actions as an agent sees them at the next step, ``[..., action_dim]``: one-hot, or clipped to [-1, 1].

    Those of several parts are the one-hot vectors of all choices and then the clipped coordinates. Coordinates without
    a bound, which the environment gets as they are, are not clipped.
    """
    if spec.discrete:
        return one_hot(actions, spec.action_dim).float()
    if not spec.choices:
        return _as_sent(spec, actions)
    each = [one_hot(actions[..., part].long(), number) for part, number in enumerate(spec.choices)]
    coordinates = _as_sent(spec, actions[..., len(each) :])
    return torch.cat([*(part.to(actions.dtype) for part in each), coordinates], dim=-1)


def _as_sent(spec: Spec, coordinates: Tensor) -> Tensor:
    clipped = coordinates.clamp(-1.0, 1.0)
    if not spec.unbounded:
        return clipped
    return coordinates.where(torch.tensor(spec.unbounded, device=coordinates.device), clipped)
