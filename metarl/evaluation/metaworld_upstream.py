"""Agents of metarl in Meta-World's own evaluation, ``metaworld.evaluation.metalearning_evaluation``.

That function adapts and acts through the callbacks of ``metaworld.evaluation.MetaLearningAgent``;
:class:`OfficialAgent` gives them to any agent of metarl. Reached as ``metarl.envs.metaworld.OfficialAgent`` too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.agent import Agent
from metarl.envs.metaworld.task_sets import TaskSet
from metarl.envs.metaworld.upstream import upstream
from metarl.errors import ConfigError
from metarl.functional.trees import map_tensors
from metarl.rollouts.collector import exploration_seed
from metarl.seeding import derive
from metarl.types import Rollout, Timestep

State = TypeVar("State")
Array = NDArray[Any]

_MOST_ENVS = 20
"""Instances of one upstream evaluation: Meta-World+'s meta-batch size (arXiv 2505.11289)."""


@dataclass(frozen=True)
class _Before:
    """What an agent is shown of the step before, ``[env, 1, ...]``."""

    action: Tensor
    reward: Tensor
    done: Tensor


class OfficialAgent(Generic[State]):
    """An agent of metarl with the callbacks of ``metaworld.evaluation.MetaLearningAgent``.

    Every environment is a task with one episode slot. While adapting, upstream hands over rewards; while evaluating it
    does not, so an agent that adapts by episodes needs them in its observations: build the environments with
    ``recurrent_info_in_obs=True`` and ``normalize_reward_in_recurrent_info=False``. An evaluation episode begins from
    what the agent knew after adaptation, whatever was played since, as in Meta-World+'s own agents.

    Upstream does not hand over the last observation of an episode; the one before it stands for it.

    Args:
        agent: trained or not.
        num_envs: environments in upstream's vector environment.
        adapts_by: what the agent adapts by: one ``adapt`` on all episodes, or one after each.
        seed: seed for everything that the agent samples.
    """

    def __init__(
        self,
        agent: Agent[State],
        num_envs: int,
        *,
        adapts_by: Literal["gradient step", "episode"] = "gradient step",
        seed: int = 0,
    ) -> None:
        if agent.spec.discrete or agent.spec.choices:
            raise ConfigError(f"Meta-World's actions are continuous, but the agent was built for {agent.spec}.")
        if num_envs < 1:
            raise ConfigError(f"OfficialAgent: num_envs must be 1 or more, got {num_envs!r}.")
        self.agent, self.num_envs, self.adapts_by = agent, num_envs, adapts_by
        self._seed = seed
        self._num_trials = 0
        self.init()

    def init(self) -> None:
        """Forget the tasks: new ones follow."""
        self._trial_seed = derive(self._seed, "official", self._num_trials)
        self._num_trials += 1
        self._num_rollouts = 0
        self.agent.seed(self._trial_seed)
        self.agent.noise.seed(exploration_seed(self._trial_seed, 0))
        self._state = self.agent.begin(self.num_envs)
        zeros = torch.zeros(self.num_envs, 1, device=self.agent.device)
        size = (self.num_envs, 1, self.agent.spec.action_dim)
        self._before = _Before(torch.zeros(size, device=self.agent.device), zeros, zeros)
        self._steps: list[tuple[Timestep, Tensor, Tensor]] = []
        self._outcomes: list[tuple[Array, Array, Array]] = []
        self._episodes: list[Rollout] = []
        self._adapted, self._before_evaluation = self._state, self._before
        self._just_reset = np.ones(self.num_envs, bool)

    def adapt_action(self, observations: Array) -> tuple[Array, dict[str, Array]]:
        """Sample actions ``[env, 4]`` while adapting; also their log-probabilities."""
        if len(self._steps) != len(self._outcomes):
            raise ConfigError("OfficialAgent: adapt_action was called twice without a step in between.")
        self._check_shown_rewards(observations)
        timestep = self._timestep(observations, self._before)
        action, self._state = self.agent.act(self._state, timestep)
        self._steps.append((timestep, action.value, action.log_prob))
        return self._to_env(action.value), {"log_prob": action.log_prob.flatten().cpu().numpy()}

    def step(self, timestep: Any) -> None:
        """Take note of what an action of :meth:`adapt_action` led to.

        Args:
            timestep: ``metaworld.evaluation.Timestep``.

        Raises:
            ConfigError: if some episodes end before others.
        """
        terminated, truncated = np.asarray(timestep.terminated, bool), np.asarray(timestep.truncated, bool)
        reward = np.asarray(timestep.reward, np.float32)
        self._outcomes.append((reward, terminated, truncated))
        ended = terminated | truncated
        if ended.any() != ended.all():
            raise ConfigError(
                f"{int(ended.sum())} of {self.num_envs} episodes ended before the others; adaptation needs episodes of "
                "equal length: leave terminate_on_success off, as metalearning_evaluation does."
            )
        done = torch.full((self.num_envs, 1), float(ended.all()), device=self.agent.device)
        self._before = _Before(self._steps[-1][1].clamp(-1.0, 1.0), self._column(reward), done)
        if ended.all():
            self._end_episode()

    def adapt(self) -> None:
        """Learn from the episodes since the last call; what is known now is where evaluation episodes begin."""
        if self._episodes:
            self._learn()
        self._adapted, self._before_evaluation = self._state, self._before

    def reset(self, env_mask: Array) -> None:
        """Where ``env_mask`` ``[env]``, an evaluation episode begins, from what was known after adaptation."""
        mask = torch.as_tensor(np.asarray(env_mask, bool), device=self.agent.device)
        self._state = _where(mask, self._adapted, self._state)
        self._before = _where(mask, self._before_evaluation, self._before)
        self._just_reset = self._just_reset | np.asarray(env_mask, bool)

    def eval_action(self, observations: Array) -> Array:
        """The mode of the policy, ``[env, 4]``."""
        extra = self._shown(observations)
        if extra is not None:
            fresh = torch.as_tensor(self._just_reset, device=self.agent.device)[:, None]
            reward = torch.where(fresh, self._before.reward, self._column(extra))
            self._before = dataclasses.replace(self._before, reward=reward)
        elif self.adapts_by == "episode":
            raise ConfigError(
                "an agent that adapts by episodes must see its rewards while it is evaluated: build the environments "
                "with recurrent_info_in_obs=True and normalize_reward_in_recurrent_info=False."
            )
        action, self._state = self.agent.act(self._state, self._timestep(observations, self._before), True)
        self._before = _Before(action.value.clamp(-1.0, 1.0), self._before.reward, torch.zeros_like(self._before.done))
        self._just_reset[:] = False
        return self._to_env(action.value)

    def _timestep(self, observations: Array, before: _Before) -> Timestep:
        size = self.agent.spec.obs_dim
        if np.shape(observations) not in ((self.num_envs, size), (self.num_envs, size + self._num_extra)):
            raise ConfigError(
                f"observations have shape {np.shape(observations)}, expected {(self.num_envs, size)}, or "
                f"{(self.num_envs, size + self._num_extra)} with recurrent_info_in_obs."
            )
        obs = torch.as_tensor(np.asarray(observations)[:, None, :size], dtype=torch.float32, device=self.agent.device)
        valid = torch.ones(self.num_envs, 1, dtype=torch.bool, device=self.agent.device)
        return Timestep(obs, before.action, before.reward, before.done, valid)

    @property
    def _num_extra(self) -> int:
        """Numbers that upstream's ``RNNBasedMetaRLWrapper`` appends: action, reward, done."""
        return self.agent.spec.action_dim + 2

    def _shown(self, observations: Array) -> Array | None:
        """Rewards of the step before, float32 ``[env]``, if observations hold them."""
        if np.shape(observations)[-1] != self.agent.spec.obs_dim + self._num_extra:
            return None
        return np.asarray(observations)[:, -2].astype(np.float32)

    def _check_shown_rewards(self, observations: Array) -> None:
        shown = self._shown(observations)
        if shown is None or not self._outcomes or bool(self._before.done.any()):
            return
        earned = self._before.reward.flatten().cpu().numpy()
        if not np.array_equal(shown, earned):
            raise ConfigError(
                f"observations show rewards {shown[:3]} where {earned[:3]} were earned; build the environments with "
                "normalize_reward_in_recurrent_info=False and without reward_normalization_method."
            )

    def _end_episode(self) -> None:
        """Turn the steps so far into one episode; agents that adapt by episodes learn from it at once."""
        timesteps, actions, log_probs = zip(*self._steps, strict=True)
        rewards, terminated, truncated = (np.stack(column, axis=-1) for column in zip(*self._outcomes, strict=True))
        device, shape = self.agent.device, (self.num_envs, 1, len(rewards[0]))

        def over_time(array: Array) -> Tensor:
            return torch.from_numpy(array).to(device).view(shape)

        nothing = torch.zeros(self.num_envs, 1, dtype=torch.bool, device=device)
        episode = Rollout(
            timesteps=Timestep(
                **{
                    field.name: torch.stack([getattr(timestep, field.name) for timestep in timesteps], 2)
                    for field in dataclasses.fields(Timestep)
                }
            ),
            actions=torch.stack(actions, 2),
            log_probs=torch.stack(log_probs, 2),
            rewards=over_time(rewards),
            terminated=over_time(terminated),
            truncated=over_time(truncated & ~terminated),
            last_obs=timesteps[-1].obs,
            success=nothing,
            invalid=nothing,
        )
        self._steps, self._outcomes = [], []
        self._episodes.append(episode)
        # As a collector does before each rollout.
        self._num_rollouts += 1
        self.agent.noise.seed(exploration_seed(self._trial_seed, self._num_rollouts))
        if self.adapts_by == "episode":
            self._learn()

    def _learn(self) -> None:
        self._state = self.agent.adapt(self._state, _join(self._episodes))
        self._episodes = []

    def _column(self, values: Array) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.agent.device).view(self.num_envs, 1)

    @staticmethod
    def _to_env(value: Tensor) -> Array:
        return value.squeeze(1).clamp(-1.0, 1.0).cpu().numpy()


def upstream_envs(
    task_set: TaskSet,
    split: Literal["train", "test"],
    goals_per_task: int,
    *,
    reward_version: str = "v2",
    recurrent: bool = False,
    **settings: Any,
) -> tuple[gym.vector.SyncVectorEnv, int]:
    """Upstream's own environments of a split, and how many evaluations of them cover every goal once.

    Args:
        task_set: which goals.
        split: ``"train"`` or ``"test"``.
        goals_per_task: the first so many goals of every task.
        reward_version: upstream's reward functions.
        recurrent: show action, reward and done in the observations, unscaled.
        settings: settings of upstream's environments, e.g. ``max_episode_steps``.
    """
    names = {task["env_name"] for task in getattr(task_set.goals, split)}
    limit = _MOST_ENVS // len(names) or 1
    each = max(number for number in range(1, min(limit, goals_per_task) + 1) if goals_per_task % number == 0)
    family, _, task_name = task_set.name.partition("/")
    common = {
        "seed": task_set.seed,
        "meta_batch_size": each * len(names),
        "total_tasks_per_cls": goals_per_task,
        "split": split,
        "task_select": "pseudorandom",
        "reward_function_version": reward_version,
        "recurrent_info_in_obs": recurrent,
        "normalize_reward_in_recurrent_info": False,
        **settings,
    }
    if family == "custom":
        envs: Any = gym.make_vec(
            "Meta-World/custom-ml-envs",
            vector_strategy="sync",
            train_envs=list(task_set.train_names),
            test_envs=list(task_set.test_names),
            **common,
        )
    else:
        # Not gym.make_vec, whose ML1 environments hold the test goals whatever the split.
        envs = upstream().make_ml_envs(task_name or family.upper(), **common)
    return envs, goals_per_task // each


def upstream_evaluation(
    agent: Agent[Any],
    task_set: TaskSet,
    split: Literal["train", "test"],
    goals_per_task: int,
    *,
    adapts_by: Literal["gradient step", "episode"],
    seed: int,
    reward_version: str = "v2",
    adaptation_episodes: int = 10,
    evaluation_episodes: int = 3,
    **settings: Any,
) -> tuple[float, dict[str, float]]:
    """Upstream's own figure for ``agent``: mean success, and that of each task.

    It counts the evaluation episodes that end first, and an episode ends with success: a goal that is solved quickly
    is counted more often than its share. :mod:`metarl.evaluation.metaworld_protocol` counts each goal alike.

    Args:
        agent: trained or not.
        task_set: which goals.
        split: ``"train"`` or ``"test"``.
        goals_per_task: the first so many goals of every task.
        adapts_by: what the agent adapts by.
        seed: seed for everything that the agent samples.
        reward_version: upstream's reward functions.
        adaptation_episodes: episodes of adaptation for each goal.
        evaluation_episodes: episodes that count, for each task and evaluation.
        settings: settings of upstream's environments.
    """
    from metaworld.evaluation import metalearning_evaluation

    envs, num_evals = upstream_envs(
        task_set, split, goals_per_task, reward_version=reward_version, recurrent=adapts_by == "episode", **settings
    )
    try:
        success, _, by_task = metalearning_evaluation(
            OfficialAgent(agent, envs.num_envs, adapts_by=adapts_by, seed=seed),
            envs,
            num_evals=num_evals,
            adaptation_episodes=adaptation_episodes,
            evaluation_episodes=evaluation_episodes,
        )
    finally:
        envs.close()
    return float(success), {name: float(value) for name, value in by_task.items()}


def _join(episodes: list[Rollout]) -> Rollout:
    """Episodes of equal length side by side, ``[task, episode, time]``."""

    def join(parts: list[Any]) -> Any:
        if isinstance(parts[0], Tensor):
            return torch.cat(parts, 1)
        names = [field.name for field in dataclasses.fields(parts[0])]
        return type(parts[0])(**{name: join([getattr(part, name) for part in parts]) for name in names})

    return cast(Rollout, join(episodes))


def _where(mask: Tensor, new: Any, old: Any) -> Any:
    """``new`` for the tasks in ``mask`` ``[task]``, else ``old``."""
    return map_tensors(lambda a, b: torch.where(mask.view(-1, *(1,) * (a.dim() - 1)), a, b), new, old)
