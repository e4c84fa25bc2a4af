"""The outer loop: sample tasks, run trials, update, and never lose work."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from metarl.agent import Agent
from metarl.config import TrainConfig
from metarl.errors import CheckpointError, NonFiniteError, WorkerError, raised
from metarl.evaluation.evaluator import evaluate, require_same_spaces
from metarl.origin import describe_origin, find_names, require_same_origin
from metarl.plugins import refuse_while_importing
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.runs.files import typed
from metarl.runs.folder import RunFolder
from metarl.runs.logger import Logger
from metarl.seeding import derive, numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Trial

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
"""What terminals, containers and job schedulers send before they kill; SIGXCPU: the limit of CPU time is near."""

_SCORE_WINDOW = 10
"""Iterations over which the return after adaptation is averaged to tell the best checkpoint."""


@dataclass(frozen=True)
class Progress:
    """What :func:`train` tells its listener after every iteration.

    Attributes:
        iteration: iterations done.
        num_iterations: iterations in all.
        metrics: this iteration's metrics by name.
    """

    iteration: int
    num_iterations: int
    metrics: Mapping[str, float]


def train(
    agent: Agent[Any],
    distribution: TaskDistribution,
    config: TrainConfig,
    run: RunFolder,
    *,
    checkpoint: Path | None = None,
    listener: Callable[[Progress], None] = lambda _: None,
) -> bool:
    """Meta-train ``agent``, from the newest checkpoint of ``run`` if it has one.

    Iteration ``i`` is a function of the checkpoint before it and of (seed, i) alone, hence a run that was killed and
    resumed ends with the same bits as one that was not.

    Args:
        agent: is changed in place.
        distribution: trained on its train split, monitored on its test split. The best checkpoint is chosen by
            training return, since choosing by test tasks would spoil them for the final evaluation.
        config: settings.
        run: where checkpoints and logs go; locked while training. A folder without config.json gets one that names
            agent and tasks, as far as another process can find them by a name, for ``metarl evaluate`` and its like.
        checkpoint: resume from this file instead of the newest; what came after it is kept in the run's folder
            ``abandoned``.
        listener: called after every iteration; what it raises ends training, with a checkpoint.

    Returns:
        Whether training ended by itself; False after Ctrl-C (or SIGTERM, SIGHUP, SIGUSR1, SIGXCPU), which ends the
        run after the iteration in hand, with a checkpoint.

    Raises:
        NonFiniteError: if a reward, an observation, a metric or a parameter is NaN or infinite, naming iteration,
            tensor and last good checkpoint. Nothing of that iteration is saved, nor of one in which anything else
            fails; those before it are.
        ConfigError: if the agent was built for other spaces; if the command line is importing the script that trains.
        CheckpointError: if the run is in use, a checkpoint is damaged or of another agent, or the disk is full.
    """
    refuse_while_importing("trains")
    require_same_spaces(agent, distribution)
    run.checkpoints.keep_last = config.keep_checkpoints
    with run.lock(), contextlib.ExitStack() as stack:
        state = _load(agent, run, checkpoint, distribution, config)
        scores = deque(state.scores, maxlen=_SCORE_WINDOW)
        collector = Collector(distribution, agent.rollouts_per_task, agent.device)
        stack.callback(collector.close)
        env_steps, iteration, saved = state.env_steps, state.iteration, state.iteration

        def save(state: Mapping[str, Any]) -> None:
            nonlocal saved
            content = {
                "agent": state,
                "spec": dataclasses.asdict(agent.spec),
                "origin": describe_origin(agent, distribution, config),
                "env_steps": env_steps,
                "scores": list(scores),
            }
            run.checkpoints.save(iteration, content, score=sum(scores) / len(scores) if scores else None)
            saved = iteration

        if not (run.path / "config.json").exists():
            # A script's run: that of an experiment has its config from the start. It comes last, as it makes a run.
            run.write_manifest(config.seed, agent.device)
            run.write_config(find_names(agent, distribution, config))
        if checkpoint is not None:
            run.set_aside(state.iteration)
            # Drops later checkpoints before the log drops later entries: killed from here on, both still agree.
            save(agent.state_dict())
        elif state.resumed:
            run.checkpoints.settle()
        logger = stack.enter_context(Logger(run, resume_from=state.iteration if state.resumed else None))
        stop = stack.enter_context(_graceful_stop())
        if not state.resumed:
            save(agent.state_dict())
        while iteration < config.num_iterations and not stop.is_set():
            before = copy.deepcopy(agent.state_dict())
            try:
                metrics, trial_steps = _iterate(agent, distribution, collector, config, iteration)
                _check_parameters(agent)
                if (iteration + 1) % config.eval_every == 0 or iteration + 1 == config.num_iterations:
                    metrics |= _monitor(agent, distribution, config)
                _check_metrics(metrics)
            except (Exception, SystemExit) as error:
                # The iteration may have failed half way through an update: what is saved is what it began with.
                if saved != iteration:
                    logger.sync()
                    save(before)
                note = f"The {iteration} iterations that were finished before it are saved in {run.path}."
                if isinstance(error, SystemExit):
                    raise WorkerError(f"{raised('the code of tasks or agent left Python', error)}\n{note}") from error
                if not isinstance(error, NonFiniteError):
                    error.add_note(note)
                    raise
                raise NonFiniteError(
                    f"iteration {iteration}: {error} Training stopped before anything of this iteration was saved; "
                    f"the last good checkpoint is {run.checkpoints.latest()}."
                ) from error
            env_steps += trial_steps
            scores.append(metrics[f"train/return_{agent.num_adaptations}"])
            metrics["env_steps"] = float(env_steps)
            iteration += 1
            logger.log(iteration - 1, metrics)
            if iteration % config.checkpoint_every == 0 or iteration == config.num_iterations:
                logger.sync()
                save(agent.state_dict())
            try:
                listener(Progress(iteration, config.num_iterations, metrics))
            except Exception:
                if saved != iteration:
                    logger.sync()
                    save(agent.state_dict())
                raise
        # Only here is it certain that no more iterations follow: the signal may come at any line of the loop.
        if saved != iteration:
            logger.sync()
            save(agent.state_dict())
        return not stop.is_set()


def restore(agent: Agent[Any], content: Mapping[str, Any], distribution: TaskDistribution, config: TrainConfig) -> None:
    """Give ``agent`` the state that :func:`train` saved.

    Args:
        agent: is changed in place.
        content: of the checkpoint.
        distribution: the tasks that the run is trained on.
        config: the run's settings.

    Raises:
        CheckpointError: if another agent, one with other settings or another seed, or one for other tasks was saved,
            or if something else than :func:`train` saved it.
    """
    missing = [name for name in ("agent", "spec", "env_steps", "scores") if name not in content]
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {', '.join(missing)} and holds {', '.join(sorted(content)) or 'nothing'}: another "
            "version of metarl, or another program, saved it. The run's manifest.json names the version."
        )
    for name, kind in (("agent", dict), ("spec", dict), ("env_steps", int), ("scores", list)):
        typed(content, name, kind, "the checkpoint")
    origin = typed(content, "origin", dict, "the checkpoint") if "origin" in content else None
    require_same_origin(origin, agent, distribution, config)
    if content["spec"] != dataclasses.asdict(agent.spec):
        raise CheckpointError(
            f"the checkpoint was trained on tasks with {content['spec']}, but they have "
            f"{dataclasses.asdict(agent.spec)} now: did their definition change? Put it back, or start a new run."
        )
    try:
        agent.load_state_dict(content["agent"])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit this agent: it was saved by another one, or with other settings. {error}"
        ) from error


@dataclass(frozen=True)
class _Loaded:
    """Where training stands."""

    iteration: int
    env_steps: int
    scores: list[float]
    resumed: bool


def _load(
    agent: Agent[Any], run: RunFolder, checkpoint: Path | None, distribution: TaskDistribution, config: TrainConfig
) -> _Loaded:
    if checkpoint is None and not run.checkpoints.iterations():
        return _Loaded(0, 0, [], False)
    iteration, content = run.checkpoints.load(checkpoint) if checkpoint else run.checkpoints.load_latest()
    restore(agent, content, distribution, config)
    return _Loaded(iteration, content["env_steps"], content["scores"], True)


def _iterate(
    agent: Agent[Any], distribution: TaskDistribution, collector: Collector, config: TrainConfig, iteration: int
) -> tuple[dict[str, float], int]:
    """One meta-update; returns its metrics and the environment steps that it cost."""
    tasks = distribution.sample_meta_batch(config.meta_batch_size, numpy_stream(config.seed, "tasks", iteration))
    trial = run_trial(agent, collector, tasks, agent.num_adaptations, derive(config.seed, "trial", iteration))
    collected = _trial_metrics(trial)
    # A sum of rewards that overflows is told as that, and not as what an update makes of it.
    _check_metrics(collected)
    started = time.perf_counter()
    learned = agent.meta_update(trial)
    metrics = {
        **{f"agent/{name}": value for name, value in learned.items()},
        **collected,
        "seconds/collect": trial.collect_seconds,
        "seconds/adapt": trial.adapt_seconds,
        "seconds/meta_update": time.perf_counter() - started,
    }
    return metrics, trial.num_env_steps


def _trial_metrics(trial: Trial) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for shot, rollout in enumerate(trial.rollouts):
        metrics[f"train/return_{shot}"] = float(rollout.returns.mean())
        if trial.reports_success:
            metrics[f"train/success_{shot}"] = float(rollout.success.float().mean())
    metrics["train/invalid_episodes"] = float(trial.num_invalid)
    return metrics


def _monitor(agent: Agent[Any], distribution: TaskDistribution, config: TrainConfig) -> dict[str, float]:
    """Returns, and success where it is reported, on held-out tasks.

    They are the same ones every time, and other ones than ``metarl evaluate`` uses.
    """
    evaluation = evaluate(agent, distribution, num_tasks=config.eval_tasks, seed=derive(config.seed, "monitor"))
    metrics = {f"test/return_{shot}": evaluation.interval(shot)[0] for shot in range(evaluation.returns.shape[1])}
    return metrics | {f"test/success_{shot}": share for shot, share in enumerate(evaluation.mean_success or [])}


def _check_metrics(metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"the metric {name!r} is {value}.")


def _check_parameters(agent: Agent[Any]) -> None:
    tensors = agent.named_tensors()
    if not tensors:
        return
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
    if not finite.all():
        name = next(name for name, good in zip(tensors, finite.tolist(), strict=True) if not good)
        raise NonFiniteError(f"the parameter {name!r} is not finite after the meta-update.")


@contextlib.contextmanager
def _graceful_stop() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C, or another of ``_STOPPING``, sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    # nohup has SIGHUP ignored, and None is a handler that Python did not set, such as faulthandler's.
    kept = {number for number in _STOPPING if signal.getsignal(number) is None}
    kept |= {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    old = {number: signal.signal(number, handle) for number in _STOPPING if number not in kept}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
