"""An environment that somebody else steps: what it shows is what one is told."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from metarl.types import Task
from metarl.vector.protocol import step_result
from metarl.vector.spaces import ActionSpace, flat_observation, flat_spaces, own_action

Array = NDArray[Any]


class ToldEnv(VectorEnv[Array, Array, Array]):
    """One instance, behind which the user steps an environment of his own.

    So the code that plays episodes in vector environments (:class:`metarl.rollouts.episodes.Episodes`) plays this one
    too. What comes next is told by :meth:`tell_reset` and :meth:`tell_step`, in the environment's own spaces.

    Args:
        env: says which spaces these are; it is never called.

    Raises:
        ConfigError: for spaces that agents have no form of; see :func:`metarl.vector.spaces.flat_spaces`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}
        self.num_envs = 1
        self._own_observation_space, self._own_action_space = env.observation_space, env.action_space
        observation_space, action_space = flat_spaces(env)
        self.obs_dim = observation_space.shape[0]
        self.single_observation_space: gym.spaces.Box = observation_space
        self.single_action_space: ActionSpace = action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, 1)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, 1)
        self._observation: Array = np.zeros((1, 0))
        self._answer: Any = None
        self._actions: Array = np.zeros(1)

    def flat(self, observation: Any) -> NDArray[np.float32]:
        """The environment's own observation, ``[1, obs_dim]``.

        Raises:
            ConfigError: for another number of numbers; what is no observation of its space may raise anything.
        """
        return flat_observation(self._own_observation_space, observation, self.obs_dim)[None]

    def tell_reset(self, observation: Array) -> None:
        """What the next :meth:`reset` returns, ``[1, obs_dim]``."""
        self._observation = observation

    def tell_step(self, observation: Array, reward: Any, terminated: Any, truncated: Any) -> None:
        """What the next :meth:`step_wait` returns.

        Raises:
            ConfigError: for a reward that is no number, or a flag that is none.
        """
        _, reward, terminated, truncated, _ = step_result((observation, reward, terminated, truncated, {}))
        self._answer = observation, np.array([reward]), np.array([terminated]), np.array([truncated]), {}

    def own_action(self) -> Any:
        """The last action, as the environment takes it."""
        return own_action(self._own_action_space, self._actions[0])

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """The observation that was told; seed and task are the user's affair."""
        return self._observation, {}

    def step_async(self, actions: Array) -> None:
        """Keep the action for :meth:`own_action`."""
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """What was told."""
        answer: tuple[Array, Array, Array, Array, dict[str, Any]] = self._answer
        return answer


UNKNOWN: Task = "unknown"
"""The task of :class:`ToldEnv`, for messages."""
