"""An agent's actions as an environment takes them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.vector.products import FlatProduct
from metarl.vector.spaces import bounded


class ActionMap:
    """Choices as they are, and [-1, 1] mapped onto a box.

    A coordinate without a lower or an upper bound has no box to be mapped onto: it is passed on as it is. All are
    clipped last, so that each lies inside its bounds.

    Args:
        space: the flat action space of one instance.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        self._discrete = isinstance(space, gym.spaces.Discrete)
        if self._discrete:
            return
        assert isinstance(space, gym.spaces.Box)
        mapped = bounded(space)
        if isinstance(space, FlatProduct):
            mapped[: len(space.choices)] = False  # Whole numbers inside their bounds, not shares of them.
        start = np.where(mapped, space.low, -1.0)
        width = np.where(mapped, space.high, 1.0) - start
        self._box: tuple[NDArray[Any], ...] = (mapped, start, width, space.low, space.high)
        self._one = np.ones(space.shape, np.float32)

    def __call__(self, actions: Tensor) -> NDArray[Any]:
        """``actions`` are ``[...]`` int64, or ``[..., number]`` float32, and so is what is returned."""
        values: NDArray[Any] = actions.cpu().numpy()
        if self._discrete:
            return values
        return np.asarray(_onto_box(np, values, self._one, *self._box))

    def of_tensors(self, actions: Tensor) -> Tensor:
        """The same as tensors, of the same device, for a graph that is to be exported."""
        if self._discrete:
            return actions
        constants = (torch.as_tensor(part, device=actions.device) for part in (self._one, *self._box))
        mapped: Tensor = _onto_box(torch, actions, *constants)
        return mapped


def _onto_box(lib: Any, values: Any, one: Any, bounded: Any, start: Any, width: Any, low: Any, high: Any) -> Any:
    """The map, with arrays of NumPy or tensors of PyTorch: ``lib`` is one of these modules."""
    # Not np.clip, which takes as long for a few numbers as all the rest.
    scaled = start + (lib.minimum(lib.maximum(values, -one), one) + 1.0) * 0.5 * width
    chosen = lib.asarray(lib.where(bounded, scaled, values), dtype=lib.float32)
    return lib.minimum(lib.maximum(chosen, low), high)


def random_action(space: gym.Space[Any], rng: np.random.Generator) -> Tensor:
    """An action as an agent's distribution draws it: a choice, numbers in [-1, 1], or choices and numbers.

    Args:
        space: the flat action space of one instance.
        rng: source of the draw.
    """
    if isinstance(space, gym.spaces.Discrete):
        return torch.as_tensor(rng.integers(space.n))
    choices: Any = rng.integers(space.choices) if isinstance(space, FlatProduct) else ()
    numbers = rng.uniform(-1.0, 1.0, (space.shape or (0,))[0] - len(choices))
    return torch.from_numpy(np.concatenate([choices, numbers]).astype(np.float32))


def env_actions(space: gym.Space[Any], actions: Tensor) -> NDArray[Any]:
    """:class:`ActionMap` of a space that is asked once."""
    return ActionMap(space)(actions)
