"""The outer loop: sample tasks, run trials, update, and never lose work."""

from __future__ import annotations

import contextlib
import dataclasses
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.agent import Agent
from metarl.config import TrainConfig, from_dict
from metarl.distributed import current, require_ready
from metarl.errors import CheckpointError, ConfigError, NonFiniteError, require_kind
from metarl.evaluation.evaluator import evaluate, require_same_spaces
from metarl.origin import describe_origin, find_names, require_same_origin, warn_of_other_tasks
from metarl.plugins import refuse_while_importing
from metarl.rollouts.collector import Collector
from metarl.rollouts.host_actor import ActOn, acting_on
from metarl.rollouts.trial import run_trial
from metarl.runs.files import typed
from metarl.runs.folder import RunFolder
from metarl.runs.outer_loop import (
    SCORE_WINDOW,
    Callback,
    Progress,
    check_metrics,
    load_state,
    require_content,
    run_loop,
)
from metarl.runs.published import NO_RESUME
from metarl.seeding import derive, numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Spec, Trial

_FOR_EVALUATION = "for_evaluation"
"""The key of a checkpoint's content that says that it holds parameters alone."""


def train(
    agent: Agent[Any],
    distribution: TaskDistribution,
    config: TrainConfig,
    run: RunFolder,
    *,
    checkpoint: Path | None = None,
    listener: Callable[[Progress], None] = lambda _: None,
    callbacks: Sequence[Callback] = (),
    act_on: ActOn = "device",
) -> bool:
    """Meta-train ``agent``, from the newest checkpoint of ``run`` if it has one.

    Inside of :func:`metarl.distributed.join` the ranks share out the tasks of every meta-batch, and rank 0 alone
    writes.

    Args:
        agent: is changed in place.
        distribution: trained on its train split, monitored on its test split. The best checkpoint is chosen by
            training return, since choosing by test tasks would spoil them for the final evaluation.
        config: settings.
        run: where checkpoints and logs go; locked while training. A folder without config.json gets one that names
            agent and tasks, as far as another process can find them by a name, for ``metarl evaluate`` and its like.
        checkpoint: resume from this file instead of the newest; see :func:`metarl.runs.outer_loop.run_loop`.
        listener: called after every iteration; see there.
        callbacks: called in every iteration, and may end training, e.g. those of :mod:`metarl.callbacks`.
        act_on: where the agent acts: on its device, or on the ``"cpu"`` while it learns there, see
            :class:`metarl.rollouts.host_actor.HostActor`. What is learned is the same but for rounding.

    Returns:
        Whether training ended by itself; see there.

    Raises:
        NonFiniteError: if a reward, an observation, a metric or a parameter is NaN or infinite; see there.
        ConfigError: if the agent was built for other spaces; if the command line is importing the script that trains;
            for ranks that the agent cannot learn on, or that differ in settings or code; for an agent without a config
            that is to act elsewhere than it learns.
        CheckpointError: if the run is in use, a checkpoint is damaged or of another agent, or the disk is full.
    """
    refuse_while_importing("trains")
    require_same_spaces(agent, distribution)
    require_kind("config", config, TrainConfig, "metarl.TrainConfig(**settings) is one")
    require_kind("run", run, RunFolder, "metarl.RunFolder.create(root, name) makes one")
    require_ready(f"the agent {type(agent).__name__}", agent.data_parallel, config.meta_batch_size)
    work = _Work(agent, distribution, config, acting_on(agent, act_on))
    with contextlib.closing(work.collector):
        return run_loop(work, config, run, checkpoint=checkpoint, listener=listener, callbacks=callbacks)


def restore(
    agent: Agent[Any],
    content: Mapping[str, Any],
    distribution: TaskDistribution,
    config: TrainConfig,
    *,
    resume: bool = False,
) -> bool:
    """Give ``agent`` the state that :func:`train` saved, or what :func:`for_evaluation` left of it.

    Args:
        agent: is changed in place.
        content: of the checkpoint.
        distribution: the tasks that the run is trained on.
        config: the run's settings.
        resume: training is to go on from it.

    Returns:
        Whether the tasks are still those of the scores that were saved; others are told of.

    Raises:
        CheckpointError: for a published model that training is to go on from; if another agent, one with other
            settings or another seed, or one for other tasks was saved; if something else than :func:`train` saved it.
        ConfigError: if what it says of its tasks' spaces, or of its settings, has an unknown name or another type.
    """
    require_content(content, {"agent": dict, "spec": dict, "env_steps": int, "scores": list})
    published = bool(content.get(_FOR_EVALUATION))
    if published and resume:
        raise CheckpointError(
            f"the checkpoint {NO_RESUME}. Train one like it with its config.json: metarl train --config FILE"
        )
    origin = typed(content, "origin", dict, "the checkpoint") if "origin" in content else None
    require_same_origin(origin, agent, distribution, config)
    # An older metarl saved fewer fields; what it did not know of has its default.
    spec = from_dict(Spec, content["spec"], Spec(obs_dim=0, action_dim=0, discrete=False, horizon=0))
    then, now = spec.unlike(agent.spec)
    if then:
        raise CheckpointError(
            f"the checkpoint was trained on tasks with {then}, but they have {now} now: did their definition change? "
            "Put it back, or start a new run."
        )
    bounds = (origin or {}).get("action_bounds")  # An older metarl did not record them.
    if bounds is not None and bounds != distribution.action_bounds:
        raise CheckpointError(
            f"the checkpoint was trained on actions in {bounds}, but those of {distribution.id} lie in "
            f"{distribution.action_bounds} now, so that the same action does something else: did their definition "
            "change? Put it back, or start a new run."
        )
    changed = warn_of_other_tasks(origin or {}, distribution)
    load_state(agent, content["agent"], "agent", modules_only=published)
    return not changed


def for_evaluation(agent: Agent[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's content with parameters alone, without the states of optimisers and scores of training.

    Args:
        agent: that was given the content by :func:`restore`.
        content: what :func:`train` saved.
    """
    return {**content, "agent": agent.module_state_dict(), "scores": [], _FOR_EVALUATION: True}


class _Work:
    """Meta-training of an agent, for :func:`metarl.runs.outer_loop.run_loop`."""

    counter = "env_steps"
    score_window = SCORE_WINDOW

    def __init__(
        self, agent: Agent[Any], distribution: TaskDistribution, config: TrainConfig, player: Agent[Any]
    ) -> None:
        self.components, self.player = agent, player
        self.distribution, self.config = distribution, config
        # Once: it does not change, and playing a simulator's first steps takes a while.
        self._origin = describe_origin(agent, distribution, config)
        self.collector = Collector(distribution, player.rollouts_per_task, player.device)

    def start(self, run: RunFolder) -> None:
        """A script's run gets a config; that of an experiment has its from the start."""
        if not (run.path / "config.json").exists():
            run.write_manifest(self.config.seed, self.components.device)
            run.write_config(find_names(self.components, self.distribution, self.config))  # Last, as it makes a run.

    def iterate(self, iteration: int) -> tuple[dict[str, float], int]:
        """One meta-update."""
        return _iterate(self.player, self.distribution, self.collector, self.config, iteration)

    def monitor(self) -> dict[str, float]:
        """Returns, and success where it is reported, on held-out tasks."""
        return _monitor(self.player, self.distribution, self.config)

    def score(self, metrics: Mapping[str, float]) -> float:
        """The return after adaptation."""
        return metrics[f"train/return_{self.components.num_adaptations}"]

    def content(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The agent's state and its origin."""
        return {"agent": state, "spec": dataclasses.asdict(self.components.spec), "origin": self._origin}

    def restore(self, content: Mapping[str, Any]) -> bool:
        """See :func:`restore`."""
        return restore(self.components, content, self.distribution, self.config, resume=True)


def _iterate(
    agent: Agent[Any], distribution: TaskDistribution, collector: Collector, config: TrainConfig, iteration: int
) -> tuple[dict[str, float], int]:
    """One meta-update; returns its metrics and the environment steps that it cost."""
    group = current()
    share = group.share(config.meta_batch_size)
    # Every rank draws all tasks, from the one stream.
    tasks = distribution.sample_meta_batch(config.meta_batch_size, numpy_stream(config.seed, "tasks", iteration))
    seed = derive(config.seed, "trial", iteration)
    trial = run_trial(agent, collector, tasks[share], agent.num_adaptations, seed, first_task=share.start)
    if any(rollout.log_probs.isnan().any() for rollout in trial.rollouts):
        raise NonFiniteError(f"{type(agent).__name__}.act returned a log_prob that is NaN.")
    collected = _trial_metrics(trial)
    # A sum of rewards that overflows is told as that, and not as what an update makes of it.
    check_metrics(collected)
    started = time.perf_counter()
    learned = agent.meta_update(trial)
    if not isinstance(learned, Mapping):
        raise ConfigError(
            f"{type(agent).__name__}.meta_update returned {reprlib.repr(learned)}, expected numbers by name, {{}} for "
            "none. metarl.testing.check_agent finds such faults."
        )
    metrics = {
        **{f"agent/{name}": value for name, value in learned.items()},
        **collected,
        "seconds/collect": trial.collect_seconds,
        "seconds/adapt": trial.adapt_seconds,
        "seconds/meta_update": time.perf_counter() - started,
    }
    return metrics, group.total(trial.num_env_steps)


def _trial_metrics(trial: Trial) -> dict[str, float]:
    """Means over the tasks of all ranks."""
    group = current()
    metrics: dict[str, float] = {}
    reports_success = any(group.gather(trial.reports_success))
    for shot, rollout in enumerate(trial.rollouts):
        metrics[f"train/return_{shot}"] = float(rollout.returns.mean())
        if reports_success:
            metrics[f"train/success_{shot}"] = float(rollout.success.float().mean())
    metrics = group.mean(metrics, len(trial.tasks))
    metrics["train/invalid_episodes"] = float(group.total(trial.num_invalid))
    return metrics


def _monitor(agent: Agent[Any], distribution: TaskDistribution, config: TrainConfig) -> dict[str, float]:
    """Returns, and success where it is reported, on held-out tasks.

    They are the same ones every time, and other ones than ``metarl evaluate`` uses.
    """
    seed = derive(config.seed, "monitor")
    return evaluate(agent, distribution, num_tasks=config.eval_tasks, seed=seed).metrics("test")
