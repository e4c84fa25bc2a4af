"""An agent in one ordinary environment: it acts, observes and adapts, one step after another.

Everything that an agent sees, does and learns from goes through the code that collects in training: what is played here
gives the same numbers.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any, Generic, TypeVar

import gymnasium as gym
import numpy as np
import torch

from metarl.agent import Agent
from metarl.deployment.export import export_step
from metarl.deployment.told_env import UNKNOWN, ToldEnv
from metarl.errors import ConfigError, WorkerError, raised
from metarl.rollouts.collector import exploration_seed
from metarl.rollouts.episodes import Episodes
from metarl.rollouts.recording import Recording
from metarl.types import Rollout, Spec
from metarl.vector.contract import ClosedError, ResetNeededError
from metarl.vector.gym_env import env_name
from metarl.vector.instances import ENVIRONMENT_ERRORS
from metarl.vector.protocol import reset_result, step_result
from metarl.vector.spaces import spec_of

State = TypeVar("State")


class OnlineLearner(Generic[State]):
    """Lets an agent meet one task, in an environment that the user steps.

    ::

        learner = OnlineLearner(agent, env)  # or metarl.load(run).learner(env)
        for episode in range(30):
            obs, _ = env.reset()
            learner.reset()
            over = False
            while not over:
                obs, reward, terminated, truncated, _ = env.step(learner.act(obs))
                over = learner.observe(reward, terminated, truncated, obs)

    A gradient-based agent takes a gradient step after every ``rollouts_per_task`` episodes, as if these had been played
    side by side; a memory takes in every step, and carries on from one episode to the next.

    Args:
        agent: trained or not; it is never changed, and may have many learners.
        env: the environment that is going to be stepped, which says what its spaces are. Only :meth:`play` calls it.
        seed: seed for sampled actions.
        rollouts_per_task: episodes between two gradient steps; default: as in training. Each is a trial of its own for
            a memory, which has one trial here: for it only 1 will do, the default.
        num_adaptations: gradient steps after which the policy stays as it is; default: as many as an evaluation takes.
            A memory knows no such end.

    Raises:
        ConfigError: if the agent was built for other spaces, or for a count that cannot be.
    """

    def __init__(
        self,
        agent: Agent[State],
        env: gym.Env[Any, Any],
        *,
        seed: int = 0,
        rollouts_per_task: int | None = None,
        num_adaptations: int | None = None,
    ) -> None:
        if not isinstance(env, gym.Env):
            raise ConfigError(
                f"a learner needs one environment, a gymnasium.Env, got an instance of {type(env).__name__}. Vector "
                "environments are for metarl.Collector."
            )
        self._name = env_name(env)
        self._told = ToldEnv(env)
        _require_spec(agent, self._told, self._name)
        has_memory = agent.config is not None and agent.config.adapts_by == "episode"
        if has_memory and (rollouts_per_task not in (None, 1) or num_adaptations is not None):
            raise ConfigError(
                f"{type(agent).__name__} adapts by its memory, at every step of one trial: leave out rollouts_per_task "
                f"and num_adaptations, got {rollouts_per_task!r} and {num_adaptations!r}."
            )
        if rollouts_per_task is None:
            rollouts_per_task = 1 if has_memory else agent.rollouts_per_task
        if rollouts_per_task < 1 or (num_adaptations is not None and num_adaptations < 0):
            raise ConfigError(
                "a learner needs rollouts_per_task above 0 and num_adaptations of 0 or more, got "
                f"{rollouts_per_task!r} and {num_adaptations!r}."
            )
        self.agent, self.env = agent, env
        self.rollouts_per_task = rollouts_per_task
        limit = agent.num_eval_adaptations if num_adaptations is None else num_adaptations
        self._limit = None if has_memory else limit
        self._parts = [slice(index, index + 1) for index in range(rollouts_per_task)]
        self._longest = 0
        self.begin(seed)

    @property
    def state(self) -> State:
        """What the agent knows of the task: fast weights, or a memory."""
        return self._state

    @property
    def num_adaptations(self) -> int:
        """Adaptations so far; for a memory, the episodes that it carried on from."""
        return self._num_adaptations

    def begin(self, seed: int = 0) -> None:
        """Forget the task, and begin as if nothing had been seen."""
        self.agent.seed(seed)
        self._seed = seed
        self._state = self.agent.begin(1)
        self._num_adaptations = self._num_rollouts = 0
        self._start_rollout()
        self._step, self._acted, self._over = 0, False, False

    def reset(self) -> None:
        """Say that the environment was reset: the next :meth:`act` begins an episode.

        Raises:
            ConfigError: in the middle of an episode, whose end nobody has told.
        """
        if self._acted or (self._step and not self._over):
            raise ConfigError(
                f"{self._name}: the episode is at step {self._step} and has not ended. Tell its end first: "
                "observe(reward, terminated, truncated, next_obs) with truncated=True where it is cut off; or forget "
                "everything with begin()."
            )
        self._step, self._over = 0, False

    @torch.no_grad()
    def act(self, obs: Any, deterministic: bool = False) -> Any:
        """Choose an action; the first of an episode adapts before, if that is due.

        Args:
            obs: the environment's observation.
            deterministic: take the distribution's mode.

        Returns:
            An action of the environment's own space.

        Raises:
            ConfigError: for what is no observation of the environment, or another one than :meth:`observe` was told;
                if the last action's outcome was not told.
            ResetNeededError: after an episode's end, before :meth:`reset`.
            ClosedError: if the environment says that it was closed.
            NonFiniteError: for an observation that is NaN or infinite.
        """
        self._require_open()
        if self._acted:
            raise ConfigError(f"{self._name}: act was called twice; call observe with the outcome of the first action.")
        if self._over:
            raise ResetNeededError(
                f"{self._name}: the episode has ended after {self._step} steps; reset the environment and the learner, "
                "env.reset() and learner.reset(), before act."
            )
        flat = self._flat(obs)
        if self._step == 0:
            self._start_episode(flat)
        elif not np.array_equal(flat, self._playing[-1].seen):
            raise ConfigError(
                f"{self._name}: at step {self._step} act got {flat[0].tolist()}, but observe was told "
                f"{self._playing[-1].seen[0].tolist()} as the observation after the last action. Give act the last "
                "next_obs; after env.reset(), call learner.reset()."
            )
        slot, episodes = len(self._playing) - 1, self._playing[-1]
        timestep = self._record.see(self._step, slot, episodes.seen, episodes.active)
        self.agent.noise.stream = self._stream
        action, state = self.agent.act(self._state, timestep, deterministic)
        if self.rollouts_per_task > 1 and state is not self._state:
            raise ConfigError(
                f"{type(self.agent).__name__} remembers what it sees, so that {self.rollouts_per_task} episodes one "
                "after another are not those that it would play side by side: use rollouts_per_task=1."
            )
        self._state = state
        self._record.act(self._step, slot, action)
        episodes.begin_step(action.value.flatten(0, 1))
        self._acted = True
        return self._told.own_action()

    def observe(self, reward: float, terminated: bool, truncated: bool, next_obs: Any) -> bool:
        """Take in what became of the last action.

        Args:
            reward: what it earned.
            terminated: the task is over.
            truncated: time ran out; as in training it does so after the horizon, told or not.
            next_obs: the environment's observation after it, also of an episode's last step.

        Returns:
            Whether the episode is over, for the environment or at the horizon: then reset both.

        Raises:
            ConfigError: before :meth:`act`; for values of another kind than an environment's ``step`` returns.
            NonFiniteError: for a reward or an observation that is NaN or infinite. Nothing is taken in then.
        """
        if not self._acted:
            raise ConfigError(f"{self._name}: observe was called before act; there is no action that had an outcome.")
        slot, episodes = len(self._playing) - 1, self._playing[-1]
        self._told.tell_step(self._flat(next_obs), reward, terminated, truncated)
        self._record.earn(self._step, slot, *episodes.end_step(self._step))
        self._acted = False
        self._step += 1
        self._longest = max(self._longest, self._step)
        self._over = not episodes.active.any()
        return self._over

    def adapt(self) -> bool:
        """Learn from the episodes that were played, if all of a gradient step have ended; returns whether it did.

        :meth:`act` calls this when an episode begins; call it before to have the time between two episodes for it.

        Raises:
            ConfigError: what the agent's ``adapt`` raises, such as SNAIL's where the next episode may outgrow it.
        """
        if len(self._playing) < self.rollouts_per_task or self._playing[-1].active.any():
            return False
        played = self._record.rollout(self._longest, self._playing)
        may = self._limit is None or self._num_adaptations < self._limit
        if may:
            # The slots of the one task, which were recorded as if they were tasks.
            self._state = self.agent.adapt(self._state, played[:, 0][None])
            self._num_adaptations += 1
        self._num_rollouts += 1
        self._start_rollout(played)
        return may

    def play(self, num_episodes: int = 1, *, deterministic: bool = False, seed: int | None = None) -> list[float]:
        """Play whole episodes in the environment; returns their returns.

        Args:
            num_episodes: how many.
            deterministic: take the distribution's mode.
            seed: seed for the first reset; default: the environment's stream goes on.

        Raises:
            WorkerError: if the environment raises anything, as a closed one does.
        """
        returns = []
        for number in range(num_episodes):
            self._require_open()
            self.reset()
            obs, _ = reset_result(self._call("reset", seed=seed if number == 0 else None))
            total, over = 0.0, False
            while not over:
                obs, reward, terminated, truncated, _ = step_result(self._call("step", self.act(obs, deterministic)))
                over = self.observe(reward, terminated, truncated, obs)
                total += reward
            returns.append(total)
        return returns

    def export(self, path: Path | str, *, sample: bool = False) -> None:
        """Write the agent's step as it is now into a file; see :func:`metarl.deployment.export.export_step`.

        A gradient-based agent's is the policy after the adaptations so far, one that is due included. A memory's takes
        what it remembers as an input, and begins with nothing.
        """
        if self._limit is not None:
            self.adapt()
        export_step(self.agent, self._state, self.env.action_space, Path(path), sample=sample)

    def _start_rollout(self, previous: Rollout | None = None) -> None:
        self._longest = 0
        self._playing: list[Episodes] = []
        self._record: Recording = Recording(self.agent.spec, 1, self._parts, self.agent.device)
        if previous is not None:
            self._record.follow(previous)

    def _start_episode(self, obs: Any) -> None:
        self.adapt()
        episodes = Episodes(self._name, self.agent.spec, self._told, [UNKNOWN], overlaps=True)
        self._told.tell_reset(obs)
        episodes.reset([0])
        self._playing.append(episodes)
        noise = self.agent.noise
        noise.seed(exploration_seed(self._seed, self._num_rollouts), first_slot=len(self._playing) - 1)
        self._stream = noise.stream

    def _flat(self, obs: Any) -> Any:
        try:
            return self._told.flat(obs)
        except Exception as error:
            raise ConfigError(
                f"{self._name}: {reprlib.repr(obs)} is no observation of {self.env.observation_space} "
                f"({type(error).__name__}: {error})."
            ) from error

    def _require_open(self) -> None:
        """Gymnasium asks no environment to say that it was closed; those of ``gym.make`` do."""
        layer: Any = self.env
        while not (getattr(layer, "close_called", False) is True or getattr(layer, "closed", False) is True):
            if not isinstance(layer, gym.Wrapper):
                return
            layer = layer.env
        raise ClosedError(f"{self._name} was closed; make a new environment, and a learner for it.")

    def _call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self.env, verb)(*arguments, **options)
        except ENVIRONMENT_ERRORS as error:
            raise WorkerError(raised(f"{self._name} raised in {verb}", error)) from error


def _require_spec(agent: Agent[Any], told: ToldEnv, name: str) -> None:
    """Refuse an environment that ``agent`` was not built for."""
    found, spec = spec_of(told.single_observation_space, told.single_action_space, agent.spec.horizon), agent.spec
    if found != spec:
        raise ConfigError(
            f"the agent was built for {spec.obs_dim} numbers of observation and {_actions(spec)}, but {name} has "
            f"{found.obs_dim} and {_actions(found)}."
        )


def _actions(spec: Spec) -> str:
    """How many of what an action is made of."""
    if spec.discrete:
        return f"{spec.action_dim} choices"
    parts = [f"{number} choices" for number in spec.choices]
    return " and ".join([*parts, *([f"{spec.num_coordinates} action coordinates"] if spec.num_coordinates else [])])
