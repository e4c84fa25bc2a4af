"""The on-policy collector: agent x tasks -> one episode in every slot."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from metarl.agent import Agent
from metarl.errors import ConfigError, MetarlError, NonFiniteError, WorkerError, raised
from metarl.seeding import derive
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Rollout, Task, Timestep
from metarl.vector.instances import ENVIRONMENT_ERRORS
from metarl.vector.options import environment_seeds
from metarl.vector.protocol import success_of_batch

State = TypeVar("State")

_UNBOUNDED = float(np.finfo(np.float32).max)
"""What environments write for a bound that they do not have, where it is not infinite."""


class Collector:
    """Runs exactly ``rollouts_per_task`` episodes of each task, side by side, from explicit resets.

    Where an environment reports ``info["invalid"]``, its simulation has diverged: the episode is truncated there with
    reward 0 and the last valid observation, so that it earns nothing, loses nothing and holds no bad number; it is
    marked in ``Rollout.invalid`` and is no success.

    Args:
        distribution: where environments come from.
        rollouts_per_task: episode slots per task.
        device: where timesteps are handed to the agent.
    """

    def __init__(self, distribution: TaskDistribution, rollouts_per_task: int, device: torch.device) -> None:
        self.distribution = distribution
        self.rollouts_per_task = rollouts_per_task
        self.device = device
        self._spec = distribution.spec
        self._env: VectorEnv[Any, Any, Any] | None = None
        self._seed = 0
        self._first_task = 0
        self._num_collected = 0

    def seed(self, seed: int, first_task: int = 0) -> None:
        """Restart the environments' random streams; the next rollouts are a function of ``seed``.

        Args:
            seed: for all tasks.
            first_task: index in the meta-batch of the first task that is played, where a meta-batch is shared out over
                processes.
        """
        self._seed, self._first_task = seed, first_task
        self._num_collected = 0

    def close(self) -> None:
        """Free the environments and their processes."""
        if self._env is not None:
            env, self._env = self._env, None
            self.distribution.close_vector_env(env)

    @torch.no_grad()
    def collect(
        self,
        agent: Agent[State],
        state: State,
        tasks: Sequence[Task],
        previous: Rollout | None = None,
        deterministic: bool = False,
    ) -> tuple[Rollout, State]:
        """Let ``agent`` play one episode in every slot of every task.

        Args:
            agent: acts with ``state``.
            state: the agent's state for these tasks.
            tasks: one task per entry of the task axis.
            previous: the rollout before this one in the same trial: its last action and reward are shown to the
                agent at the first step, together with ``prev_done = 1``. If it had another number of slots, slot k
                follows its slot k modulo that number.
            deterministic: act by the distribution's mode.

        Returns:
            The rollout, and the agent's state after its last step.

        Raises:
            NonFiniteError: if an environment returns a NaN or infinite observation or reward, and does not report it
                as invalid; float32's infinity begins at 3.4e38.
            ConfigError: if a vector environment's rewards, flags or success are not one number for each instance.
            WorkerError: if an environment raises anything, or leaves Python.
        """
        spec, slots = self._spec, self.rollouts_per_task
        shape = (len(tasks), slots)
        env = self._environments(len(tasks) * slots)
        instance_tasks = [task for task in tasks for _ in range(slots)]
        # Streams belong to the task's place in the batch: a task plays the same in any company.
        seeds: Any = episode_seeds(self._seed, self._num_collected, *shape, self._first_task).flatten().tolist()
        agent.noise.seed(exploration_seed(self._seed, self._num_collected), self._first_task)
        obs, _ = self._call("reset", tasks, seed=seeds, options={"tasks": instance_tasks})
        self._num_collected += 1
        prev_action, prev_reward, prev_done = self._before_first_step(shape, previous)

        active = np.ones(env.num_envs, dtype=bool)
        last_obs = np.zeros((env.num_envs, spec.obs_dim), np.float32)
        success = np.zeros(env.num_envs, dtype=bool)
        reported = np.zeros(env.num_envs, dtype=bool)
        invalid = np.zeros(env.num_envs, dtype=bool)
        timesteps: list[Timestep] = []
        actions: list[Tensor] = []
        log_probs: list[Tensor] = []
        outcomes: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []

        self._check_finite("observation", obs[active], tasks, active, 0)
        for step in range(spec.horizon):
            # What an ended instance returns is unspecified, and a NaN would pass through every mask that multiplies.
            obs = np.where(active[:, None], obs, 0.0)
            timestep = Timestep(
                torch.tensor(obs, dtype=torch.float32, device=self.device).view(*shape, spec.obs_dim),
                prev_action,
                prev_reward,
                prev_done,
                torch.tensor(active, device=self.device).view(shape),
            )
            action, state = agent.act(state, timestep, deterministic)
            seen = obs
            obs, rewards, terminated, truncated, info = self._call(
                "step", tasks, env_actions(env.single_action_space, action.value.flatten(0, 1))
            )
            for name, array in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
                if np.shape(array) != (env.num_envs,):
                    raise ConfigError(
                        f"{self.distribution.id}: {name} have shape {np.shape(array)}, expected {(env.num_envs,)}."
                    )
            if "invalid" in info:
                diverged = active & np.asarray(info["invalid"], bool)
                invalid |= diverged
                obs = np.where(diverged[:, None], seen, obs)
                terminated, truncated = terminated & ~diverged, truncated | diverged
            rewards = np.where(active & ~invalid, rewards, 0.0)
            self._check_finite("reward", rewards[active], tasks, active, step)
            # Also the last observation of an episode, whose value a truncated episode counts.
            self._check_finite("observation", obs[active], tasks, active, step + 1)
            terminated = active & terminated
            truncated = active & (truncated | (step == spec.horizon - 1)) & ~terminated
            successful, told = success_of_batch(info, env.num_envs)
            success |= active & successful
            reported |= active & told

            timesteps.append(timestep)
            actions.append(action.value)
            log_probs.append(action.log_prob)
            outcomes.append((rewards.astype(np.float32), terminated, truncated))
            prev_action = self._encode(action.value)
            prev_reward = torch.from_numpy(outcomes[-1][0]).to(self.device).view(shape)
            prev_done = torch.zeros(shape, device=self.device)

            ended = terminated | truncated
            last_obs[ended] = obs[ended]
            active = active & ~ended
            if not active.any():
                break

        def over_time(arrays: list[NDArray[Any]]) -> Tensor:
            return torch.from_numpy(np.stack(arrays, axis=-1)).to(self.device).view(*shape, len(arrays))

        all_rewards, all_terminated, all_truncated = (list(column) for column in zip(*outcomes, strict=True))
        rollout = Rollout(
            timesteps=_stack_time(timesteps),
            actions=torch.stack(actions, dim=2),
            log_probs=torch.stack(log_probs, dim=2),
            rewards=over_time(all_rewards),
            terminated=over_time(all_terminated),
            truncated=over_time(all_truncated),
            last_obs=torch.from_numpy(last_obs).to(self.device).view(*shape, spec.obs_dim),
            success=torch.from_numpy(success & ~invalid).to(self.device).view(shape),
            invalid=torch.from_numpy(invalid).to(self.device).view(shape),
            success_reported=torch.from_numpy(reported).to(self.device).view(shape),
        )
        return rollout, state

    def _environments(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        if self._env is None or self._env.num_envs != num_envs:
            self.close()
            self._env = self.distribution.make_vector_env(num_envs)
        return self._env

    def _call(self, verb: str, tasks: Sequence[Task], *arguments: Any, **options: Any) -> Any:
        """What a method of the environments returns; those of a user's ``make_vector`` may raise anything."""
        try:
            return getattr(self._env, verb)(*arguments, **options)
        except MetarlError:
            raise
        except ENVIRONMENT_ERRORS as error:
            what = f"the vector environment raised in {verb} with tasks {reprlib.repr(list(tasks))}"
            raise WorkerError(raised(f"{self.distribution.id}: {what}", error)) from error

    def _before_first_step(self, shape: tuple[int, int], previous: Rollout | None) -> tuple[Tensor, Tensor, Tensor]:
        if previous is None:
            zeros = torch.zeros(shape, device=self.device)
            return torch.zeros(*shape, self._spec.action_dim, device=self.device), zeros, zeros
        previous = previous[:, torch.arange(shape[1], device=self.device) % previous.valid.shape[1]]
        last = (previous.lengths - 1)[..., None]
        reward = previous.rewards.gather(2, last).squeeze(2)
        if self._spec.discrete:
            action = previous.actions.gather(2, last).squeeze(2)
        else:
            index = last[..., None].expand(*shape, 1, self._spec.action_dim)
            action = previous.actions.gather(2, index).squeeze(2)
        return self._encode(action), reward, torch.ones(shape, device=self.device)

    def _encode(self, action: Tensor) -> Tensor:
        """Actions as float32 vectors ``[task, episode, action_dim]``: one-hot, or clipped to the normalised box."""
        if self._spec.discrete:
            return one_hot(action, self._spec.action_dim).float()
        return action.clamp(-1.0, 1.0)

    def _check_finite(
        self, name: str, values: NDArray[Any], tasks: Sequence[Task], active: NDArray[np.bool_], step: int
    ) -> None:
        with np.errstate(over="ignore"):
            # Agents see float32, in which a number beyond 3.4e38 is infinite.
            finite = np.isfinite(np.asarray(values).astype(np.float32))
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            instance = int(np.flatnonzero(active)[row])
            beyond = ", which is infinite in float32" if np.isfinite(values[row]).all() else ""
            raise NonFiniteError(
                f"{self.distribution.id}: {name} {values[row]} at step {step} in an environment of task "
                f"{tasks[instance // self.rollouts_per_task]!r}{beyond}."
            )


def env_actions(space: gym.Space[Any], actions: Tensor) -> NDArray[Any]:
    """An agent's actions as an environment takes them: integers as they are, [-1, 1] mapped onto the box.

    A coordinate without a lower or an upper bound has no box to be mapped onto: it is passed on as it is. All are
    clipped last, so that each lies inside its bounds.

    Args:
        space: the flat action space of one instance.
        actions: ``[...]`` int64, or ``[..., action_dim]`` float32.

    Returns:
        ``[...]`` int64, or ``[..., action_dim]`` float32.
    """
    values = actions.cpu().numpy()
    if isinstance(space, gym.spaces.Discrete):
        return values
    assert isinstance(space, gym.spaces.Box)
    bounded = (np.abs(space.low) < _UNBOUNDED) & (np.abs(space.high) < _UNBOUNDED)
    low, high = np.where(bounded, space.low, -1.0), np.where(bounded, space.high, 1.0)
    scaled = low + (np.clip(values, -1.0, 1.0) + 1.0) * 0.5 * (high - low)
    return np.asarray(np.clip(np.where(bounded, scaled, values).astype(np.float32), space.low, space.high))


def exploration_seed(seed: int, number: int) -> int:
    """What an agent's noise is seeded with in rollout ``number`` (from 0) of a collector that got ``seed``."""
    return derive(seed, "actions", number)


def episode_seeds(seed: int, number: int, num_tasks: int, slots: int, first_task: int = 0) -> NDArray[np.uint64]:
    """What the environments are seeded with in rollout ``number`` (from 0) of a collector that got ``seed``.

    Returns:
        ``[task, slot]`` below 2**31, each a function of the task's and the slot's numbers alone, tasks being counted
        from ``first_task``.
    """
    places = np.add.outer(np.arange(first_task, first_task + num_tasks) << 32, np.arange(slots))
    return environment_seeds(derive(seed, "rollout", number), places.astype(np.uint64))


def _stack_time(timesteps: list[Timestep]) -> Timestep:
    return Timestep(
        obs=torch.stack([t.obs for t in timesteps], 2),
        prev_action=torch.stack([t.prev_action for t in timesteps], 2),
        prev_reward=torch.stack([t.prev_reward for t in timesteps], 2),
        prev_done=torch.stack([t.prev_done for t in timesteps], 2),
        valid=torch.stack([t.valid for t in timesteps], 2),
    )
