"""A trained agent and the spaces of the tasks that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from metarl.agent import Agent
from metarl.deployment.export import export_step
from metarl.deployment.learner import OnlineLearner
from metarl.errors import ConfigError
from metarl.vector.gym_env import env_name
from metarl.vector.spaces import flat_spaces, flattened


@dataclass(frozen=True)
class TrainedAgent:
    """What :func:`metarl.load` returns.

    Attributes:
        agent: the agent of a checkpoint.
        observation_space: of its tasks' environments, as they have it themselves.
        action_space: the same for actions.
        iteration: meta-updates behind it.
    """

    agent: Agent[Any]
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    iteration: int

    def learner(
        self,
        env: gym.Env[Any, Any],
        *,
        seed: int = 0,
        rollouts_per_task: int | None = None,
        num_adaptations: int | None = None,
    ) -> OnlineLearner[Any]:
        """A learner of one task in ``env``; arguments as for :class:`OnlineLearner`.

        Raises:
            ConfigError: if the environment's spaces are others than those of the tasks, bounds of actions included: the
                agent's actions are shares of them.
        """
        agent = self.agent
        if agent.config is not None and agent.config.told_task:
            raise ConfigError(
                f"{type(agent.config).__name__}'s agent is told its task beside every observation, which no "
                "environment shows: it is a reference for evaluations, and cannot learn in one."
            )
        found = OnlineLearner(
            agent, env, seed=seed, rollouts_per_task=rollouts_per_task, num_adaptations=num_adaptations
        )
        actions, trained = flat_spaces(env)[1], flattened(self.observation_space, self.action_space)[1]
        if actions != trained:
            raise ConfigError(
                f"the agent was trained with actions in {trained}, but {env_name(env)} has {actions}. "
                "gymnasium.wrappers.RescaleAction changes an environment's bounds."
            )
        return found

    def export(self, path: Path | str, *, sample: bool = False) -> None:
        """Write its step into a file, knowing no task; see :func:`metarl.deployment.export.export_step`.

        What a gradient-based agent has adapted to, its learner's ``export`` writes.
        """
        export_step(self.agent, self.agent.begin(1), self.action_space, Path(path), sample=sample)
