"""A rollout while it is played: tensors that every step is written into, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.errors import ConfigError
from metarl.networks.actions import encoded_actions
from metarl.rollouts.episodes import Episodes, Flags
from metarl.types import Action, Rollout, Spec, Timestep

_ROOM = 512
"""Steps that there is room for at first; longer episodes double it, since few reach a generous horizon."""

_SEEN = ("obs", "prev_action", "prev_reward", "prev_done", "valid")


class Recording:
    """What happens in a rollout, ``[time, task, slot, ...]``, so that a step of neighbouring tasks is one block.

    What is never written is padding: zero.

    Args:
        spec: sizes of observation and action, and the horizon.
        slots: episodes of each task.
        parts: neighbouring tasks, whose steps are written one part at a time.
        device: of the agent.
    """

    def __init__(self, spec: Spec, slots: int, parts: Sequence[slice], device: torch.device) -> None:
        self._spec, self._shape, self._device = spec, (parts[-1].stop, slots), device
        self._parts = parts
        self._room = min(spec.horizon, _ROOM)
        flag, host = torch.bool, torch.device("cpu")
        self._columns = {
            "obs": self._column(spec.obs_dim),
            "prev_action": self._column(spec.action_dim),
            "prev_reward": self._column(),
            "prev_done": self._column(),
            "valid": self._column(dtype=flag),
            # What environments return stays on the host until the end.
            "rewards": self._column(device=host),
            "terminated": self._column(dtype=flag, device=host),
            "truncated": self._column(dtype=flag, device=host),
        }

    def follow(self, previous: Rollout) -> None:
        """Show at the first step the last action and reward of ``previous``, which has as many slots."""
        last = (previous.lengths - 1)[..., None]
        index = last if self._spec.discrete else last[..., None].expand(*self._shape, 1, *self._spec.action_shape)
        shown = {
            "prev_action": encoded_actions(self._spec, previous.actions.gather(2, index).squeeze(2)),
            "prev_reward": previous.rewards.gather(2, last).squeeze(2),
            "prev_done": torch.ones(self._shape, device=self._device),
        }
        for name, values in shown.items():
            self._columns[name].whole[0] = values

    def see(self, step: int, part: int, obs: NDArray[np.float32], active: Flags) -> Timestep:
        """Take in what some tasks show, ``[instance, obs_dim]`` and ``[instance]``; what an agent sees of them."""
        columns = self._columns
        columns["obs"].put(step, part, obs)
        columns["valid"].put(step, part, active)
        return Timestep(*[columns[name].places[part][step] for name in _SEEN])

    def act(self, step: int, part: int, action: Action) -> None:
        """Take in what an agent does in some tasks."""
        columns = self._columns
        if "actions" not in columns:
            self._require(action, columns["valid"].places[part][step].shape)
            columns["actions"] = self._column(*action.value.shape[2:], dtype=action.value.dtype)
            columns["log_probs"] = self._column(dtype=action.log_prob.dtype)
        columns["actions"].places[part][step].copy_(action.value)
        columns["log_probs"].places[part][step].copy_(action.log_prob)
        if step + 1 < self._spec.horizon:
            if step + 1 == self._room:
                self._grow()
            columns["prev_action"].places[part][step + 1].copy_(encoded_actions(self._spec, action.value))

    def _require(self, action: Action, shape: torch.Size) -> None:
        """Refuse an agent's first action if it is of another kind, which the tensors would take in their own way."""
        spec = self._spec
        value, log_prob = action.value, action.log_prob
        whole = (*shape, *spec.action_shape)
        if tuple(value.shape) != whole or value.is_floating_point() == spec.discrete or log_prob.shape != shape:
            kind = "whole numbers" if spec.discrete else "floats"
            raise ConfigError(
                f"the agent's act returned a value of {value.dtype} and shape {list(value.shape)} with a log_prob of "
                f"shape {list(log_prob.shape)}, expected {kind} of shape {list(whole)} and log_prob of {list(shape)}. "
                "metarl.testing.check_agent finds such faults."
            )
        if spec.discrete and not ((value >= 0) & (value < spec.action_dim)).all():
            raise ConfigError(
                f"the agent's act chose from {int(value.min())} to {int(value.max())}, expected choices from 0 to "
                f"{spec.action_dim - 1}. metarl.testing.check_agent finds such faults."
            )

    def earn(self, step: int, part: int, rewards: NDArray[np.float32], terminated: Flags, truncated: Flags) -> None:
        """Take in what environments of some tasks answer, ``[instance]`` each."""
        columns = self._columns
        columns["rewards"].put(step, part, rewards)
        columns["terminated"].put(step, part, terminated)
        columns["truncated"].put(step, part, truncated)
        if step + 1 < self._spec.horizon:
            columns["prev_reward"].put(step + 1, part, rewards)

    def rollout(self, num_steps: int, parts: Sequence[Episodes]) -> Rollout:
        """The first steps, and what became of the episodes of all parts."""
        whole = {name: self._over_time(column.whole[:num_steps]) for name, column in self._columns.items()}
        timesteps = Timestep(*(whole.pop(name) for name in _SEEN))
        of_episodes: dict[str, list[NDArray[Any]]] = {
            "last_obs": [part.last_obs for part in parts],
            "success": [part.success & ~part.invalid for part in parts],
            "invalid": [part.invalid for part in parts],
            "success_reported": [part.reported for part in parts],
        }
        for name, arrays in of_episodes.items():
            joined = np.concatenate(arrays)
            whole[name] = torch.from_numpy(joined).to(self._device).view(*self._shape, *joined.shape[1:])
        return Rollout(timesteps, **whole)

    def _column(self, *sizes: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> _Column:
        shape = (self._room, *self._shape, *sizes)
        return _Column(torch.zeros(shape, dtype=dtype, device=device or self._device), self._parts)

    def _grow(self) -> None:
        self._room *= 2
        for name, column in self._columns.items():
            longer = torch.cat([column.whole, torch.zeros_like(column.whole)])
            self._columns[name] = _Column(longer, self._parts)

    def _over_time(self, kept: Tensor) -> Tensor:
        """``[task, slot, time, ...]`` of ``[time, task, slot, ...]``."""
        return kept.to(self._device).movedim(0, 2).contiguous()


class _Column:
    """One of the tensors, and its places: a view for every part and step, all made at once as views cost time.

    Args:
        whole: ``[time, task, slot, ...]``.
        parts: slices of the task axis.
    """

    def __init__(self, whole: Tensor, parts: Sequence[slice]) -> None:
        self.whole = whole
        self.places = [whole[:, part].unbind(0) for part in parts]
        self._arrays: list[NDArray[Any]] = []
        if whole.device.type == "cpu":
            # NumPy writes what comes from NumPy in a fraction of the time.
            own = (whole[:, part] for part in parts)
            self._arrays = [some.view(len(some), -1, *some.shape[3:]).numpy() for some in own]

    def put(self, step: int, part: int, values: NDArray[Any]) -> None:
        """Write what environments return, ``[instance, ...]``."""
        if self._arrays:
            self._arrays[part][step] = values
        else:
            place = self.places[part][step]
            place.copy_(torch.from_numpy(values).view(place.shape))
