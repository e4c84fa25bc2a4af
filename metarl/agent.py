"""The one abstract class of metarl: an agent adapts to tasks through four verbs."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch

from metarl.config.settings import check_settings
from metarl.networks.noise import TaskNoise
from metarl.runs.components import Components
from metarl.types import Action, Rollout, Spec, Timestep, Trial

State = TypeVar("State")


class Agent(Components, Generic[State]):
    """``begin -> act ... -> adapt -> act ... -> meta_update``.

    ``State`` holds whatever adapts to a task: fast weights (MAML), a hidden state (RL²), a posterior (VariBAD).

    Contract, checked by :func:`metarl.testing.check_agent`: ``adapt`` depends on its arguments alone; permuting
    the tasks permutes its results; only ``meta_update`` changes meta-parameters; an untrained agent can act and
    adapt; the same seed gives the same bits.

    Attributes:
        spec: sizes of observations and actions.
        device: where parameters live and where timesteps arrive.
        num_adaptations: calls of ``adapt`` in one training trial (gradient steps; for memory agents, episodes - 1).
        rollouts_per_task: episodes collected for each task between two adaptations.
        num_eval_adaptations: calls of ``adapt`` in an evaluation, unless it says otherwise.
        noise: source of every sample that ``act`` draws: each task has a stream of its own, so that it plays the same
            in any company.
        generator: source of every sample that ``meta_update`` draws.
        config: settings that it was built from, recorded in its run's folder so that the command line can build it
            again; None for an agent that has none.
        data_parallel: whether ``meta_update`` may get a share of the meta-batch, and takes its sums over tasks with
            :func:`metarl.distributed.current`; other agents are refused by more than one rank.
        max_trial_steps: steps of a trial that it can remember; None where there is no such limit. Tasks whose single
            episode may be longer are refused.
    """

    config: AgentConfig | None = None
    data_parallel: bool = False
    max_trial_steps: int | None = None

    def __init__(
        self,
        spec: Spec,
        device: torch.device,
        *,
        num_adaptations: int,
        rollouts_per_task: int,
        num_eval_adaptations: int | None = None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.num_adaptations = num_adaptations
        self.rollouts_per_task = rollouts_per_task
        self.num_eval_adaptations = num_adaptations if num_eval_adaptations is None else num_eval_adaptations
        self.noise = TaskNoise(device)
        self.generator = torch.Generator(device)

    @abc.abstractmethod
    def begin(self, num_tasks: int) -> State:
        """The state before anything is known about ``num_tasks`` new tasks."""

    @abc.abstractmethod
    def act(self, state: State, timestep: Timestep, deterministic: bool = False) -> tuple[Action, State]:
        """Choose an action for every slot ``[task, episode]``; ``deterministic`` takes the distribution's mode."""

    @abc.abstractmethod
    def adapt(self, state: State, rollout: Rollout) -> State:
        """Learn from one rollout of the same tasks; neither the agent nor ``state`` is changed."""

    @abc.abstractmethod
    def meta_update(self, trial: Trial) -> dict[str, float]:
        """Improve the meta-parameters from one training trial; returns metrics by name."""

    def seed(self, seed: int) -> None:
        """Restart the agent's random streams, which happens before every trial."""
        self.noise.seed(seed)
        self.generator.manual_seed(seed)


@dataclass(frozen=True)
class AgentConfig(abc.ABC):
    """Settings of one kind of agent; a frozen dataclass that knows how to build it.

    The types of its fields say which values they take (:mod:`metarl.config.settings`). A field that an algorithm fixes
    is a ``Literal`` of one value: it cannot be set, and it is recorded with the others.

    Attributes:
        when: when to choose this agent, for ``metarl list``.
        told_task: whether the task's numbers are appended to its observations.
        adapts_by: what lies between two rollouts of a trial.
        renamed: today's names of settings, by the names in older config files.
        retired: settings of older config files, under today's names, that do nothing or cannot be set any more: the
            values that are passed over, None for any, since they never acted.
    """

    when: ClassVar[str] = ""
    told_task: ClassVar[bool] = False
    adapts_by: ClassVar[Literal["gradient step", "episode"]] = "gradient step"
    renamed: ClassVar[Mapping[str, str]] = {}
    retired: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    @abc.abstractmethod
    def rollouts_per_task(self) -> int:
        """Episodes of each task between two adaptations; usually a field."""

    @property
    @abc.abstractmethod
    def num_adaptations(self) -> int:
        """Calls of ``adapt`` in one training trial (gradient steps; for memory agents, episodes - 1)."""

    @abc.abstractmethod
    def build(self, spec: Spec, device: torch.device, seed: int) -> Agent[Any]:
        """A fresh agent whose parameters are a function of ``seed`` alone."""
