"""The outer loop of every kind of meta-training: iterate, log, save, and never lose work."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import reprlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from metarl.distributed import Group, current, require_same, require_same_state
from metarl.errors import CheckpointError, ConfigError, NonFiniteError, WorkerError, raised
from metarl.runs.components import Components
from metarl.runs.crowding import warn_if_crowded
from metarl.runs.encoding import decode, to_text
from metarl.runs.files import typed
from metarl.runs.folder import RunFolder, git_state
from metarl.runs.logger import Logger
from metarl.version import __version__

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
"""What terminals, containers and job schedulers send before they kill; SIGXCPU: the limit of CPU time is near."""

_COMPARED = ("num_iterations", "eval_every", "checkpoint_every", "keep_checkpoints")
"""Settings of a schedule in which ranks must agree."""

_RECORDED = (*_COMPARED, "device", "eval_tasks")
"""Those that may change when a run goes on, and then stand in its config."""

SCORE_WINDOW = 10
"""Iterations over which a score in training is averaged to tell the best checkpoint.

Candidates are checkpoints that are due; in a run of fewer iterations it is the last.
"""


@dataclass(frozen=True)
class Progress:
    """What the loop tells callbacks and its listener after every iteration.

    Attributes:
        iteration: iterations done.
        num_iterations: iterations in all.
        metrics: this iteration's metrics by name. Callbacks may add to them what is to be logged; by what training
            itself measured the best checkpoint is chosen.
        run: where checkpoints and logs go.
        trained: what is trained, an agent or a few-shot learner.
    """

    iteration: int
    num_iterations: int
    metrics: dict[str, float]
    run: RunFolder
    trained: Components


class Callback(Protocol):
    """What happens after every iteration besides; metarl's own are in :mod:`metarl.callbacks`."""

    def on_iteration(self, progress: Progress) -> bool | None:
        """Look at an iteration before it is logged.

        All ranks of a group (:mod:`metarl.distributed`) call this.

        Returns:
            True to end training here: the run is saved, and can be resumed. One rank is enough. None or False to go
            on; anything else is refused.
        """


class Schedule(Protocol):
    """How long to train, and when to do what; see :class:`metarl.config.TrainConfig`."""

    @property
    def device(self) -> str:
        """Where networks run."""

    @property
    def num_iterations(self) -> int: ...  # noqa: D102
    @property
    def eval_every(self) -> int: ...  # noqa: D102
    @property
    def eval_tasks(self) -> int:
        """Held-out tasks in an evaluation."""

    @property
    def checkpoint_every(self) -> int: ...  # noqa: D102
    @property
    def keep_checkpoints(self) -> int: ...  # noqa: D102


class Work(Protocol):
    """What one kind of training does in the loop."""

    @property
    def components(self) -> Components:
        """What is trained."""

    @property
    def counter(self) -> str:
        """Name of what iterations cost; :meth:`iterate` gives it for one, logs and checkpoints hold the sum."""

    def start(self, run: RunFolder) -> None:
        """Before anything else is written; a script's run gets its config here."""

    def iterate(self, iteration: int) -> tuple[dict[str, float], int]:
        """One meta-update, as a function of what is trained and of the iteration's number alone.

        Returns:
            Its metrics by name, and what it cost.
        """

    def monitor(self) -> dict[str, float]:
        """Metrics on held-out tasks."""

    @property
    def score_window(self) -> int:
        """How many scores are averaged: :data:`SCORE_WINDOW` of training, which are noisy; 1 of held-out tasks."""

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """What tells the best checkpoint; more is better.

        From metrics of training in every iteration, or from those of held-out tasks that no final score is taken on,
        which only iterations with a :meth:`monitor` have: None in the others.
        """

    def content(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds besides the loop's own: the state of what is trained, and whose it is."""

    def restore(self, content: Mapping[str, Any]) -> bool:
        """Load what :meth:`content` gave; whether scores from before can be compared with those to come.

        Raises:
            CheckpointError: if it is of something else.
        """


def run_loop(
    work: Work,
    schedule: Schedule,
    run: RunFolder,
    *,
    checkpoint: Path | None = None,
    listener: Callable[[Progress], None] = lambda _: None,
    callbacks: Sequence[Callback] = (),
) -> bool:
    """Train from the newest checkpoint of ``run`` if it has one.

    Iteration ``i`` is a function of the checkpoint before it and of (seed, i) alone, hence a run that was killed and
    resumed ends with the same bits as one that was not.

    All ranks of a group (:mod:`metarl.distributed`) call this; rank 0 alone reads and writes files.

    Args:
        work: what to do.
        schedule: how long, and when to evaluate and to save.
        run: where checkpoints and logs go; locked while training.
        checkpoint: resume from this file instead of the newest; what came after it is kept in the run's folder
            ``abandoned``.
        listener: called after every iteration; what it raises ends training, with a checkpoint.
        callbacks: called in this order in every iteration, which is not saved if one raises.

    Returns:
        Whether training ended by itself, by its number of iterations or by a callback; False after Ctrl-C (or SIGTERM,
        SIGHUP, SIGUSR1, SIGXCPU), which ends the run after the iteration in hand, with a checkpoint.

    Raises:
        NonFiniteError: if a metric or a parameter is NaN or infinite, or an iteration says so, naming iteration,
            tensor and last good checkpoint. Nothing of that iteration is saved, nor of one in which anything else
            fails; those before it are.
        CheckpointError: if the run is in use, a checkpoint is damaged or of another run, or the disk is full.
        ConfigError: if the ranks have different settings or code.
        WorkerError: if another rank has ended, or one's parameters are not those of the others any more.
    """
    run.checkpoints.keep_last = schedule.keep_checkpoints
    group = current()
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.lock())
        _require_same_run(group, work, schedule)
        warn_if_crowded()
        state = _load(work, run, checkpoint)
        logger: Logger | None = None
        scores = deque(state.scores, maxlen=work.score_window)
        cost, iteration, saved = state.cost, state.iteration, state.iteration

        def is_due() -> bool:
            return iteration % schedule.checkpoint_every == 0 or iteration == schedule.num_iterations

        def save(state: Mapping[str, Any]) -> None:
            nonlocal saved
            saved = iteration
            if not group.is_first:
                return
            if logger is not None:
                logger.sync()
            content = {**work.content(state), work.counter: cost, "scores": list(scores)}
            # A mean of few is the highest by luck, and where a run is interrupted must not tell which one is the best.
            is_whole = len(scores) == work.score_window and (is_due() or work.score_window == 1)
            is_scored = is_whole or (iteration == schedule.num_iterations and len(scores) > 0)
            run.checkpoints.save(iteration, content, score=sum(scores) / len(scores) if is_scored else None)

        if group.is_first:
            work.start(run)
            run.record_schedule({name: getattr(schedule, name) for name in _RECORDED})
            if checkpoint is not None:
                run.set_aside(state.iteration)
                if not state.comparable:
                    run.checkpoints.retire_best()
                # Drops later checkpoints before the log drops later entries: killed from here on, both still agree.
                save(work.components.state_dict())
            elif state.resumed:
                run.checkpoints.settle()
                if not state.comparable:
                    run.checkpoints.retire_best()
            if state.resumed:
                run.note_resume(work.components.device)
            logger = stack.enter_context(Logger(run, resume_from=state.iteration if state.resumed else None))
        stop = stack.enter_context(graceful_stop())

        def stopping() -> bool:
            """Whether any rank was asked to stop: all end after the same iteration."""
            return any(group.gather(stop.is_set()))

        if not state.resumed:
            save(work.components.state_dict())
        ended = False
        while iteration < schedule.num_iterations and not stopping() and not ended:
            before = copy.deepcopy(work.components.state_dict())
            unsaved = work.components.unsaved_buffers() if iteration == state.iteration else {}
            try:
                metrics, added = work.iterate(iteration)
                _require_saved(unsaved, work.components)
                _check_parameters(work.components, "the meta-update")
                if (iteration + 1) % schedule.eval_every == 0 or iteration + 1 == schedule.num_iterations:
                    metrics |= work.monitor()
                metrics[work.counter] = float(cost + added)
                score = work.score(metrics)
                progress = Progress(iteration + 1, schedule.num_iterations, metrics, run, work.components)
                if callbacks:
                    told = [_asks_to_end(callback, progress) for callback in callbacks]  # All see every iteration.
                    ended = any(group.gather(any(told)))
                    _check_parameters(work.components, "the callbacks")
                check_metrics(metrics)
                if logger is not None:
                    logger.log(iteration, metrics)
            except (Exception, SystemExit) as error:
                # The iteration may have failed half way through an update: what is saved is what it began with.
                if saved != iteration:
                    try:
                        save(before)
                    except CheckpointError as second:
                        # Of a full disk the file tells that met it first.
                        raise (error if isinstance(error, CheckpointError) else second) from None
                note = f"The {iteration} iterations that were finished before it are saved in {run.path}."
                if isinstance(error, SystemExit):
                    raise WorkerError(f"{raised('the code of tasks or agent left Python', error)}\n{note}") from error
                if not isinstance(error, NonFiniteError):
                    error.add_note(note)
                    raise
                raise NonFiniteError(
                    f"iteration {iteration}: {error} Training stopped before anything of this iteration was saved; "
                    f"the last good checkpoint is {run.checkpoints.latest() if group.is_first else 'that of rank 0'}."
                ) from error
            cost += added
            if score is None:
                scores.clear()  # A score of held-out tasks is that of its iteration alone.
            else:
                scores.append(score)
            iteration += 1
            if group.world_size > 1 and (is_due() or iteration == state.iteration + 1):
                tensors: dict[str, Tensor] = {}
                to_text(work.components.state_dict(), tensors)
                require_same_state(group, tensors, f"after {iteration} iterations")
            if is_due() or (score is not None and work.score_window == 1):
                save(work.components.state_dict())
            if not group.is_first:
                continue
            try:
                listener(progress)
            except (Exception, SystemExit):
                if saved != iteration:
                    save(work.components.state_dict())
                raise
        # Only here is it certain that no more iterations follow: the signal may come at any line of the loop.
        if saved != iteration:
            save(work.components.state_dict())
        # Other ranks must not look for the last checkpoint before it is there: this waits for all.
        return not stopping()


@dataclass(frozen=True)
class _Loaded:
    """Where training stands."""

    iteration: int
    cost: int
    scores: list[float]
    resumed: bool
    comparable: bool = True


def _load(work: Work, run: RunFolder, checkpoint: Path | None) -> _Loaded:
    """Rank 0 reads; all ranks then hold the same parameters, buffers and optimisers, those of a new run too."""
    group = current()
    found = None
    if group.is_first and (checkpoint is not None or run.checkpoints.iterations()):
        found = run.checkpoints.load(checkpoint) if checkpoint else run.checkpoints.load_latest()
    resumed = group.broadcast(found is not None)
    if group.world_size > 1:
        begun = (0, {**work.content(work.components.state_dict()), work.counter: 0, "scores": []})
        found = _broadcast(group, *(found or begun))
    if found is None:
        return _Loaded(0, 0, [], False)
    iteration, content = found
    comparable = work.restore(content)
    scores = content["scores"] if comparable else []
    return _Loaded(iteration, content[work.counter], scores, resumed, comparable)


def _broadcast(group: Group, iteration: int, content: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """What rank 0 gives, as it would come out of a checkpoint: on the CPU."""
    tensors: dict[str, Tensor] = {}
    text = to_text({"iteration": iteration, "content": content}, tensors)
    text, tensors = group.broadcast((text, tensors))
    whole = decode(json.loads(text), tensors)
    return whole["iteration"], whole["content"]


def _require_same_run(group: Group, work: Work, schedule: Schedule) -> None:
    """Refuse ranks that were started with different settings or code.

    Raises:
        ConfigError: naming what differs.
    """
    if group.world_size == 1:
        return
    require_same(
        group,
        {
            "version of metarl": __version__,
            "version of torch": torch.__version__,
            "checkout of metarl": git_state(),
            **work.content({}),
            "schedule": {name: getattr(schedule, name) for name in _COMPARED},
        },
    )


def require_content(content: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Refuse the content of a checkpoint that lacks something.

    Args:
        content: of the checkpoint.
        kinds: what it must hold, by name.

    Raises:
        CheckpointError: naming what is missing or of another kind.
    """
    if missing := [name for name in kinds if name not in content]:
        raise CheckpointError(
            f"the checkpoint lacks {', '.join(missing)} and holds {', '.join(sorted(content)) or 'nothing'}: another "
            "version of metarl, or another program, saved it. The run's manifest.json names the version."
        )
    for name, kind in kinds.items():
        typed(content, name, kind, "the checkpoint")


def require_same_run(different: Sequence[str]) -> None:
    """Refuse a checkpoint whose origin differs.

    Args:
        different: what is there and what is here, a sentence without its end each; none is no difference.

    Raises:
        CheckpointError: if there is any.
    """
    if different:
        raise CheckpointError(
            f"the checkpoint is of another run: {'; '.join(different)}. Take a checkpoint of this run; if its "
            "config.json was changed or has lost fields, put them back."
        )


def load_state(components: Components, state: Mapping[str, Any], what: str, *, modules_only: bool = False) -> None:
    """Load a checkpoint's state into what is trained, called ``what`` in messages.

    Args:
        components: what is trained.
        state: of all its components.
        what: what it is called.
        modules_only: the state is of modules alone.

    Raises:
        CheckpointError: if it does not fit.
    """
    try:
        load = components.load_module_state_dict if modules_only else components.load_state_dict
        load(state)
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit this {what}: it was saved by another one, or with other settings. {error}"
        ) from error


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Refuse metrics that are not finite.

    Raises:
        NonFiniteError: for the first of them.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"the metric {name!r} is {value}.")


def _asks_to_end(callback: Callback, progress: Progress) -> bool:
    """What a callback says of an iteration.

    Raises:
        ConfigError: for anything that is no answer, such as the coroutine of an ``async def``, which nobody awaits.
    """
    answer: object = callback.on_iteration(progress)
    if not isinstance(answer, bool | np.bool_ | None):
        raise ConfigError(
            f"{type(callback).__name__}.on_iteration returned {reprlib.repr(answer)}, expected True to end training, "
            "or False or None to go on."
        )
    return bool(answer)


def _require_saved(before: Mapping[str, Tensor], components: Components) -> None:
    """Refuse buffers that an iteration has changed and no checkpoint holds; a cache that has grown is none of these.

    Raises:
        ConfigError: naming them.
    """
    after = components.unsaved_buffers() if before else {}
    changed = [
        name
        for name, value in before.items()
        if name in after and value.shape == after[name].shape and not torch.equal(value, after[name])
    ]
    if changed:
        raise ConfigError(
            f"training changes the buffer {', '.join(changed)}, which no checkpoint holds: a run that goes on, and an "
            "evaluation, would have it as it was made. Register it with persistent=True."
        )


def _check_parameters(components: Components, after: str) -> None:
    # An infinite second moment is followed by parameters that hardly move, and stay finite.
    tensors = components.named_tensors() | {
        f"{name}.{key} of {index}": value
        for name, part in components.components().items()
        if isinstance(part, Optimizer)
        for index, state in enumerate(part.state.values())
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        return
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
    if not finite.all():
        name = next(name for name, good in zip(tensors, finite.tolist(), strict=True) if not good)
        raise NonFiniteError(f"the parameter {name!r} is not finite after {after}.")


@contextlib.contextmanager
def graceful_stop() -> Iterator[threading.Event]:
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
