"""Scores ``[task, shot]`` on held-out tasks, with an exact quota of episodes for each."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from metarl.agent import Agent
from metarl.distributed import current
from metarl.errors import ConfigError, NonFiniteError, require_kind, unknown_name
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.seeding import derive, numpy_stream
from metarl.statistics import Float, mean_interval
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Rollout, Task, Trial
from metarl.vector.instances import digest_or_none


@dataclass(frozen=True)
class Evaluation:
    """How an agent did on a sample of tasks.

    Attributes:
        returns: ``[task, shot]`` mean return over the episodes of each task after ``shot`` adaptations.
        success: ``[task, shot]`` share of episodes with success at any step; None if no environment ever reported any.
        episodes_per_shot: episodes behind each entry.
        num_env_steps: what the evaluation cost, in environment steps.
        num_invalid: episodes whose simulation diverged; they count with what they had earned, and as no success.
        num_distinct: different tasks in the sample. Where they are fewer than ``task`` has entries, intervals speak of
            further draws from these tasks, and not of new ones.
    """

    returns: Float
    success: Float | None
    episodes_per_shot: int
    num_env_steps: int
    num_invalid: int
    num_distinct: int

    @property
    def mean_success(self) -> list[float] | None:
        """Share of episodes with success after each number of adaptations; None where it was never reported."""
        if self.success is None:
            return None
        means: list[float] = self.success.mean(0).tolist()
        return means

    def metrics(self, name: str) -> dict[str, float]:
        """Means after each number of adaptations: ``name/return_k``, and ``name/success_k`` where it was reported."""
        returns = {f"{name}/return_{shot}": self.interval(shot)[0] for shot in range(self.returns.shape[1])}
        return returns | {f"{name}/success_{shot}": share for shot, share in enumerate(self.mean_success or [])}

    def interval(self, shot: int) -> tuple[float, float, float]:
        """Mean return after ``shot`` adaptations, with its 95 % interval over tasks; of one task its ends are NaN."""
        returns = self.returns[:, shot]
        return mean_interval(returns) if len(returns) > 1 else (float(returns[0]), math.nan, math.nan)


def require_same_spaces(agent: Agent[Any], distribution: TaskDistribution) -> None:
    """Refuse tasks that ``agent`` was not built for.

    Raises:
        ConfigError: if sizes or kinds of observations or actions differ, or an episode may outgrow its memory; for what
            is no agent, or no distribution of tasks.
    """
    require_kind(
        "agent", agent, Agent, "config.build(tasks.spec, device, seed) builds one, metarl.load(RUN).agent is one"
    )
    require_kind("tasks", distribution, TaskDistribution, "metarl.make(ID) makes one of a name")
    theirs, ours = distribution.spec, agent.spec
    own, other = ours.unlike(dataclasses.replace(theirs, horizon=ours.horizon))
    if own:
        raise ConfigError(f"the agent was built for tasks with {own}, but {distribution.id} has {other}.")
    if agent.max_trial_steps is not None and theirs.horizon > agent.max_trial_steps:
        raise ConfigError(
            f"the agent's memory was built for trials of {agent.max_trial_steps} steps, but an episode of "
            f"{distribution.id} has up to {theirs.horizon}. Train it on these tasks, or set a shorter horizon."
        )


def evaluate(
    agent: Agent[Any],
    distribution: TaskDistribution,
    *,
    num_tasks: int | None = None,
    tasks: Sequence[Task] | None = None,
    seed: int,
    num_adaptations: int | None = None,
    split: Literal["train", "test"] = "test",
    rollouts_per_task: int | None = None,
    deterministic_last: bool = False,
    succeeded: Callable[[Rollout], Tensor] | None = None,
) -> Evaluation:
    """Run one trial on a sample of a split, or on chosen tasks; the agent's meta-parameters stay as they are.

    The ranks of a group (:mod:`metarl.distributed`) share the tasks out; each gets the scores of all.

    Args:
        agent: trained or not.
        distribution: tasks whose spaces the agent fits.
        num_tasks: tasks to sample from ``split``.
        tasks: the tasks themselves, instead of a sample; any that the distribution's environments can pose.
        seed: seed for the sample of tasks and for everything random in the trial.
        num_adaptations: shots are ``0 .. num_adaptations``; default: what the agent asks for.
        split: ``"test"`` or ``"train"``.
        rollouts_per_task: episodes per task and shot; default: as in training.
        deterministic_last: act by the distribution's mode after the last adaptation.
        succeeded: says which episodes of a rollout were a success, bool ``[task, episode]``; default: those of which
            the environment said so.

    Raises:
        ConfigError: if the agent was built for other spaces, or for a count that cannot be.
        NonFiniteError: if a reward, an observation or a return is NaN or infinite.
    """
    require_same_spaces(agent, distribution)
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    if (num_tasks is None) == (tasks is None):
        raise ConfigError(f"evaluate needs either num_tasks or tasks, got num_tasks={num_tasks!r} and tasks={tasks!r}.")
    if tasks is None:
        assert num_tasks is not None
        tasks = getattr(distribution, split).sample(num_tasks, numpy_stream(seed, "evaluation", split))
    if not tasks:
        raise ConfigError("evaluate needs at least one task, got none.")
    if num_adaptations is None:
        num_adaptations = agent.num_eval_adaptations
    if rollouts_per_task is None:
        rollouts_per_task = agent.rollouts_per_task
    if rollouts_per_task < 1 or num_adaptations < 0:
        raise ConfigError(
            f"evaluate needs rollouts_per_task above 0 and num_adaptations of 0 or more, got {rollouts_per_task!r} and "
            f"{num_adaptations!r}."
        )
    num_distinct = _num_distinct(tasks)
    group = current()
    share = group.share(len(tasks))
    own: list[Evaluation] = []
    if tasks[share]:
        collector = Collector(distribution, rollouts_per_task, agent.device)
        trial_seed = derive(seed, "evaluation-trial")
        try:
            trial = run_trial(
                agent, collector, tasks[share], num_adaptations, trial_seed, deterministic_last, first_task=share.start
            )
        finally:
            collector.close()
        own.append(_scores(trial, rollouts_per_task, succeeded, num_distinct))
    found = _joined([part for parts in group.gather(own) for part in parts])
    returns = found.returns
    if not np.isfinite(returns).all():
        task, shot = (int(index) for index in np.argwhere(~np.isfinite(returns))[0])
        raise NonFiniteError(
            f"{distribution.id}: the return of task {reprlib.repr(tasks[task])} after {shot} adaptations is "
            f"{returns[task, shot]}: the sum of its rewards leaves the range of numbers. Scale the rewards down."
        )
    return found


def _num_distinct(tasks: Sequence[Task]) -> int:
    """Different tasks among ``tasks``; one that has no digest counts as another than all the rest."""
    digests = [digest_or_none(task) for task in tasks]
    return len(set(digests) - {None}) + digests.count(None)


def _scores(
    trial: Trial, episodes_per_shot: int, succeeded: Callable[[Rollout], Tensor] | None, num_distinct: int
) -> Evaluation:
    def by_shot(values: list[Tensor]) -> Float:
        return np.stack([value.double().mean(1).cpu().numpy() for value in values], axis=1)

    success = None
    if succeeded is not None:
        success = by_shot([succeeded(rollout) for rollout in trial.rollouts])
    elif trial.reports_success:
        success = by_shot([rollout.success for rollout in trial.rollouts])
    returns = by_shot([rollout.returns for rollout in trial.rollouts])
    return Evaluation(returns, success, episodes_per_shot, trial.num_env_steps, trial.num_invalid, num_distinct)


def _joined(parts: list[Evaluation]) -> Evaluation:
    """The scores of several groups of tasks, in their order."""
    success = None
    if any(part.success is not None for part in parts):
        # No environment of that part said so of any episode, which counts as it does beside others.
        success = np.concatenate([np.zeros_like(p.returns) if p.success is None else p.success for p in parts])
    return Evaluation(
        np.concatenate([part.returns for part in parts]),
        success,
        parts[0].episodes_per_shot,
        sum(part.num_env_steps for part in parts),
        sum(part.num_invalid for part in parts),
        parts[0].num_distinct,
    )
