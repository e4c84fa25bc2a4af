"""The on-policy collector: agent x tasks -> one episode in every slot."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from metarl.agent import Agent
from metarl.rollouts.episodes import Episodes
from metarl.rollouts.recording import Recording
from metarl.seeding import derive
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Rollout, Task
from metarl.vector.options import environment_seeds

State = TypeVar("State")

_INSTANCES = 100
"""From so many on a batch is played in parts."""


class Collector:
    """Runs exactly ``rollouts_per_task`` episodes of each task, side by side, from explicit resets.

    Where an environment reports ``info["invalid"]``, its simulation has diverged: the episode is truncated there with
    reward 0 and the last valid observation, so that it earns nothing, loses nothing and holds no bad number; it is
    marked in ``Rollout.invalid`` and is no success.

    Where environments step in other processes (``TaskDistribution.num_parts``), a large meta-batch is played in parts:
    while one is simulated, the agent acts in the other, as in Sample Factory (Petrenko et al., 2020, arXiv 2006.11751).
    The parts depend on the number of tasks and slots, not on the machine, and results are a function of the seed.

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
        self._envs: list[VectorEnv[Any, Any, Any]] = []
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
        while self._envs:
            self.distribution.close_vector_env(self._envs.pop())

    def divide(self, num_tasks: int) -> list[slice]:
        """The parts in which ``num_tasks`` tasks are played, as slices of the task axis.

        One or as many as the distribution says: where there are few instances, what every action costs whatever their
        number costs more than overlapping gains.
        """
        enough = num_tasks * self.rollouts_per_task >= _INSTANCES
        number = min(self.distribution.num_parts if enough else 1, num_tasks)
        bounds = [num_tasks * index // number for index in range(number + 1)]
        return [slice(*pair) for pair in itertools.pairwise(bounds)]

    def collect(
        self,
        agent: Agent[State],
        state: State,
        tasks: Sequence[Task],
        previous: Rollout | None = None,
        deterministic: bool = False,
    ) -> tuple[Rollout, State]:
        """As :meth:`collect_parts`, with one state for all tasks."""
        rollout, states = self.collect_parts(agent, [state], [slice(0, len(tasks))], tasks, previous, deterministic)
        return rollout, states[0]

    @torch.no_grad()
    def collect_parts(
        self,
        agent: Agent[State],
        states: Sequence[State],
        parts: Sequence[slice],
        tasks: Sequence[Task],
        previous: Rollout | None = None,
        deterministic: bool = False,
    ) -> tuple[Rollout, list[State]]:
        """Let ``agent`` play one episode in every slot of every task.

        Args:
            agent: acts with ``states``.
            states: the agent's states for the tasks of each part.
            parts: slices of the task axis, one behind the other, such as :meth:`divide` makes.
            tasks: one task per entry of the task axis.
            previous: the rollout before this one in the same trial: its last action and reward are shown to the
                agent at the first step, together with ``prev_done = 1``. If it had another number of slots, slot k
                follows its slot k modulo that number.
            deterministic: act by the distribution's mode.

        Returns:
            The rollout, and the agent's states after their last steps.

        Raises:
            NonFiniteError: if an environment returns a NaN or infinite observation or reward, and does not report it
                as invalid; float32's infinity begins at 3.4e38.
            ConfigError: if a vector environment's observations, rewards, flags or success are not one row or number
                for each instance.
            WorkerError: if an environment raises anything, or leaves Python.
        """
        states, slots = list(states), self.rollouts_per_task
        envs = self._environments([(part.stop - part.start) * slots for part in parts])
        record = Recording(self._spec, slots, parts, self.device)
        if previous is not None:
            record.follow(previous[:, torch.arange(slots, device=self.device) % previous.valid.shape[1]])
        # Streams belong to the task's place in the batch: a task plays the same in any company.
        seeds = episode_seeds(self._seed, self._num_collected, len(tasks), slots, self._first_task)
        exploration = exploration_seed(self._seed, self._num_collected)
        self._num_collected += 1
        playing = [
            Episodes(self.distribution.id, self._spec, env, tasks[part], overlaps=len(parts) > 1)
            for env, part in zip(envs, parts, strict=True)
        ]
        streams = []
        try:
            for episodes, part in zip(playing, parts, strict=True):
                agent.noise.seed(exploration, self._first_task + part.start)
                streams.append(agent.noise.stream)
                episodes.reset(seeds[part].flatten().tolist())
            for step in itertools.count():
                for index, episodes in enumerate(playing):
                    if episodes.is_stepping:
                        record.earn(step - 1, index, *episodes.end_step(step - 1))
                    if episodes.active.any():
                        timestep = record.see(step, index, episodes.seen, episodes.active)
                        agent.noise.stream = streams[index]
                        action, states[index] = agent.act(states[index], timestep, deterministic)
                        record.act(step, index, action)
                        episodes.begin_step(action.value.flatten(0, 1))
                if not any(episodes.is_stepping for episodes in playing):
                    break
        finally:
            if any(episodes.is_stepping for episodes in playing):
                self.close()  # Something was raised in one part: nobody will ask the others for their answers.
        return record.rollout(step, playing), states

    def _environments(self, sizes: list[int]) -> list[VectorEnv[Any, Any, Any]]:
        if [env.num_envs for env in self._envs] != sizes:
            self.close()
            self._envs = self.distribution.make_vector_envs(sizes)
        return self._envs


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
