"""The data that flows between environments, agents and trainer.

Axes are named in every docstring, always in the order ``[task, episode, time, ...]``. An *episode slot*
is one environment instance; a rollout holds exactly one episode per slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Environments run in worker processes that need no torch, and would pay seconds for importing it.
    import torch
    from torch import Tensor

Task = Any
"""A task: whatever the distribution's sampler returns, usually a dict of numbers or small arrays."""


@dataclass(frozen=True)
class Spec:
    """What an agent must know about its tasks before it can be built.

    Attributes:
        obs_dim: size of the flat float32 observation.
        action_dim: number of choices (discrete) or of action coordinates (continuous); of actions of several parts the
            sum of both. So many numbers a policy's network puts out, and an agent is shown of its last action.
        discrete: whether actions are indices ``0..action_dim-1``.
        horizon: the largest number of steps in an episode.
        choices: for actions of several parts, how many there are to choose from in each of its discrete parts; the rest
            of ``action_dim`` are coordinates, which come last. Empty for other actions.
        unbounded: by coordinate, whether it lacks a bound, so that actions are passed on as they are; empty if none
            does; no part of what two specs are compared by.
        measured: whether observations hold measured numbers, not codes (one-hot, bits) or pixels alone; no part of what
            two specs are compared by.
    """

    obs_dim: int
    action_dim: int
    discrete: bool
    horizon: int
    choices: tuple[int, ...] = ()
    measured: bool = field(default=True, compare=False)
    unbounded: tuple[bool, ...] = field(default=(), compare=False)

    @property
    def num_coordinates(self) -> int:
        """Action coordinates, each of which has a mean and a standard deviation."""
        return 0 if self.discrete else self.action_dim - sum(self.choices)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action: ``()`` of an index, ``(action_dim,)`` of coordinates, ``(choice + coordinate,)``."""
        return () if self.discrete else (len(self.choices) + self.num_coordinates,)

    def unlike(self, other: Spec) -> tuple[str, str]:
        """What tells this one from another, of each: ``("horizon = 10", "horizon = 12")``; empty if nothing."""
        names = [f.name for f in fields(self) if f.compare and getattr(self, f.name) != getattr(other, f.name)]
        own, theirs = (", ".join(f"{name} = {getattr(spec, name)}" for name in names) for spec in (self, other))
        return own, theirs


@dataclass(frozen=True)
class Timestep:
    """What an agent sees before it acts.

    The axes are ``[task, episode]`` while acting, and ``[task, episode, time]`` inside a :class:`Rollout`,
    which keeps exactly what the agent saw: recomputing a policy can then never disagree with acting.

    Attributes:
        obs: ``[..., obs_dim]`` float32 observation.
        prev_action: ``[..., action_dim]`` the action before this one, one-hot if discrete, of several parts the one-hot
            vectors and then the coordinates; zeros at a trial's start.
        prev_reward: ``[...]`` the reward that action earned; zero at a trial's start.
        prev_done: ``[...]`` 1.0 at the first step of an episode that follows another one in the same trial.
        valid: ``[...]`` bool, False once the slot's episode has ended: such entries are padding.
    """

    obs: Tensor
    prev_action: Tensor
    prev_reward: Tensor
    prev_done: Tensor
    valid: Tensor

    def __getitem__(self, index: Any) -> Timestep:
        """Index the leading axes of every field."""
        return Timestep(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device) -> Timestep:
        """The same timestep on ``device``."""
        return Timestep(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class Action:
    """What an agent answers, for every slot.

    Attributes:
        value: ``[task, episode]`` int64 index, or ``[task, episode, action_dim]`` float32 in the normalised box:
            the collector maps [-1, 1] onto the environment's bounds and clips there. Of several parts
            (``Spec.choices``) ``[task, episode, choice + coordinate]`` float32: indices, then coordinates in that box.
        log_prob: ``[task, episode]`` log-probability (density) of ``value`` under the acting policy.
    """

    value: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class Rollout:
    """One episode in every slot of every task; shorter episodes are padded and masked by ``valid``.

    Attributes:
        timesteps: what the agent saw, ``[task, episode, time]``.
        actions: ``[task, episode, time]`` int64, or ``[task, episode, time, number]`` float32 (before clipping), as in
            :class:`Action`.
        log_probs: ``[task, episode, time]`` of ``actions`` under the policy that acted.
        rewards: ``[task, episode, time]``, zero on padding.
        terminated: ``[task, episode, time]`` bool: the environment ended the episode at this step.
        truncated: ``[task, episode, time]`` bool: time ran out at this step; the state still has a value.
        last_obs: ``[task, episode, obs_dim]`` the observation after the episode's last step.
        success: ``[task, episode]`` bool: the environment reported success at any step (False if it never reports).
        invalid: ``[task, episode]`` bool: the simulation diverged, which cut the episode off and denied it success.
        success_reported: ``[task, episode]`` bool: the environment said at any step whether it was a success; some say
            so only when it was. Default: everywhere.
    """

    timesteps: Timestep
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    last_obs: Tensor
    success: Tensor
    invalid: Tensor
    success_reported: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        given: Any = self.success_reported
        if given is None:
            object.__setattr__(self, "success_reported", self.success.new_ones(self.success.shape))

    @property
    def obs(self) -> Tensor:
        """Observations, ``[task, episode, time, obs_dim]``."""
        return self.timesteps.obs

    @property
    def valid(self) -> Tensor:
        """Which steps happened, bool ``[task, episode, time]``; always a prefix of the time axis."""
        return self.timesteps.valid

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of each episode, ``[task, episode]``."""
        return self.rewards.sum(-1)

    @property
    def lengths(self) -> Tensor:
        """Steps in each episode, int64 ``[task, episode]``."""
        return self.valid.sum(-1)

    def __getitem__(self, index: Any) -> Rollout:
        """Select along the leading axes, e.g. ``rollout[2:4]`` for two tasks."""
        return Rollout(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device) -> Rollout:
        """The same rollout on ``device``."""
        return Rollout(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class Trial:
    """Everything that happened to a batch of tasks: rollout, adaptation, rollout, ...

    Attributes:
        tasks: the tasks, one for each entry of the rollouts' task axis.
        rollouts: ``num_adaptations + 1`` rollouts; number ``k`` was collected after ``k`` adaptations.
        collect_seconds: wall time spent collecting.
        adapt_seconds: wall time spent adapting.
        sampled: the last rollout once more, from the same state and by sampled actions; None unless it was asked for.
            It is no part of the trial's steps.
    """

    tasks: Sequence[Task]
    rollouts: tuple[Rollout, ...]
    collect_seconds: float = 0.0
    adapt_seconds: float = 0.0
    sampled: Rollout | None = None

    def to(self, device: torch.device) -> Trial:
        """The same trial on ``device``; tasks stay what they are."""
        sampled = None if self.sampled is None else self.sampled.to(device)
        rollouts = tuple(rollout.to(device) for rollout in self.rollouts)
        return replace(self, rollouts=rollouts, sampled=sampled)

    @property
    def num_env_steps(self) -> int:
        """Environment steps in the trial, adaptation included."""
        return int(sum(rollout.valid.sum() for rollout in self.rollouts))

    @property
    def reports_success(self) -> bool:
        """Whether any episode was told to be a success or none; if not, there is no success rate to show."""
        return any(bool(rollout.success_reported.any()) for rollout in self.rollouts)

    @property
    def num_invalid(self) -> int:
        """Episodes whose simulation diverged."""
        return int(sum(rollout.invalid.sum() for rollout in self.rollouts))
