"""Meta-training of few-shot learners, in the outer loop of all kinds of training."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from metarl.config import TrainConfig, fixed_settings, from_dict
from metarl.distributed import current, require_ready
from metarl.errors import CheckpointError, ConfigError
from metarl.fewshot.evaluation import evaluate
from metarl.fewshot.learner import Learner
from metarl.fewshot.objective import score_name
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.types import EpisodeConfig
from metarl.plugins import refuse_while_importing
from metarl.runs.files import typed
from metarl.runs.folder import RunFolder
from metarl.runs.outer_loop import SCORE_WINDOW, Progress, load_state, require_content, require_same_run, run_loop
from metarl.seeding import derive, numpy_stream


def train(
    learner: Learner[Any],
    tasks: FewShotTasks,
    episode: EpisodeConfig,
    config: TrainConfig,
    run: RunFolder,
    *,
    checkpoint: Path | None = None,
    listener: Callable[[Progress], None] = lambda _: None,
) -> bool:
    """Meta-train ``learner``, from the newest checkpoint of ``run`` if it has one.

    Inside of :func:`metarl.distributed.join` the ranks share out the tasks of every batch, and rank 0 alone writes.

    Args:
        learner: is changed in place.
        tasks: trained on its train split, monitored on its validation split if it has one. The best checkpoint is then
            that of the best validation score, among the iterations that are monitored (``eval_every``), each of which
            leaves a checkpoint; without a validation split, that of the best training score over ten iterations.
        episode: size of the tasks that the learner is scored on.
        config: settings of the outer loop; ``meta_batch_size`` tasks make an update.
        run: where checkpoints and logs go; locked while training.
        checkpoint: resume from this file instead of the newest.
        listener: called after every iteration.

    Returns:
        See :func:`metarl.runs.outer_loop.run_loop`; it says what is raised, too.

    Raises:
        ConfigError: for tasks that are not there or not of this size; if the command line is importing the script that
            trains.
    """
    refuse_while_importing("trains")
    _require_ready(learner, config)
    check_sizes(learner, tasks, episode)
    require_eval_tasks(config, tasks)
    return run_loop(_Work(learner, tasks, episode, config), config, run, checkpoint=checkpoint, listener=listener)


def check_sizes(learner: Learner[Any], tasks: FewShotTasks, episode: EpisodeConfig) -> None:
    """Refuse sizes that training, its monitoring or the test of its result has no tasks of.

    Raises:
        ConfigError: saying what came, what there is, and what to do.
    """
    for split in ("validation", "test") if "validation" in tasks.splits else ("test",):
        tasks.check(split, episode)
    training = learner.training_episode(episode)
    try:
        tasks.check("train", training)
    except ConfigError as error:
        if training == episode:
            raise
        raise ConfigError(
            f"the learner trains on tasks of a size of its own (ways {training.ways}, shots {training.shots}, queries "
            f"{training.queries}), which {tasks.id} cannot have: {error} Settings whose names begin with train_ decide "
            "that size; or take another learner."
        ) from error


def require_eval_tasks(config: TrainConfig, tasks: FewShotTasks) -> None:
    """Refuse a single task to monitor training on: scores are means over tasks with intervals.

    Raises:
        ConfigError: saying what came and what to do.
    """
    if "validation" in tasks.splits and config.eval_tasks < 2:
        raise ConfigError(
            f"eval_tasks must be 2 or more, got {config.eval_tasks}: training is monitored by a mean over tasks of the "
            "validation split, with an interval. To monitor less often, raise eval_every."
        )


def _require_ready(learner: Learner[Any], config: TrainConfig) -> None:
    """Refuse what more than one rank would learn wrongly.

    Raises:
        ConfigError: see :func:`metarl.distributed.require_ready`; for layers that do not tell tasks apart.
    """
    require_ready(f"the learner {type(learner).__name__}", learner.data_parallel, config.meta_batch_size)
    if current().world_size == 1:
        return
    modules = [part for part in learner.components().values() if isinstance(part, nn.Module)]
    for part in (part for module in modules for part in module.modules()):
        if isinstance(part, _ACROSS_TASKS) and getattr(part, "p", 1.0) > 0:
            raise ConfigError(
                f"the network has a {type(part).__name__}, which draws or averages over the tasks of one process: "
                "more than one rank would not learn what one does. Start one process without torchrun, or use "
                "metarl.networks.task_norm.TaskNorm in the place of batch normalisation and no dropout."
            )


_ACROSS_TASKS = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
"""Layers whose effect on a task depends on those beside it."""


def restore(
    learner: Learner[Any], content: Mapping[str, Any], tasks: FewShotTasks, episode: EpisodeConfig, config: TrainConfig
) -> bool:
    """Give ``learner`` the state that :func:`train` saved.

    Args:
        learner: is changed in place.
        content: of the checkpoint.
        tasks: that the run is trained on.
        episode: their size.
        config: the run's settings.

    Returns:
        Whether the data are still those of the scores that were saved; others are told of.

    Raises:
        CheckpointError: if another learner, one with other settings or another seed, or one for other tasks was saved,
            or if something else than :func:`train` saved it; if the data has other classes than the run was trained on.
    """
    require_content(content, {"learner": dict, "origin": dict, "tasks": int, "scores": list})
    saved, here = content["origin"], _origin(learner, tasks, episode, config)
    typed(saved, "settings", dict, "the checkpoint's origin")
    if saved.get("learner") == here["learner"]:
        # Settings that a later version has added.
        saved = {**saved, "settings": dataclasses.asdict(from_dict(type(learner.config), saved["settings"]))}
    known = saved.get("digests") or {}
    # What tells the data needs no name: that of a folder of images is the folder's, which may have been moved.
    apart = {*_PARTS, "digests"} | ({"tasks"} if "classes" in known and "classes" in tasks.digests else set())
    different = [
        f"{name} is {then.get(name)!r} there and {now[name]!r} here"
        for then, now in ((saved, here), *((saved.get(part) or {}, here[part]) for part in _PARTS))
        for name in now
        if name not in apart and then.get(name) != now[name]
    ]
    require_same_run(different)
    changed = changed_data(content, tasks)
    if "classes" in changed:
        raise CheckpointError(
            f"the data of {tasks.id} is not what the run was trained on: it has other classes, or other numbers of "
            "examples. Put back the data as it was, or say where it lies now (--data), or start a new run."
        )
    if "draws" in changed:
        warnings.warn(
            f"the function of {tasks.id} draws other tasks than those that the run was trained on: it was changed, or "
            "it draws from something else than its rng, or another version of a library draws otherwise.",
            stacklevel=2,
        )
    elif changed:
        warnings.warn(
            f"the examples of {tasks.id} differ from those that the run was trained on, though its classes are the "
            "same ones: files were changed, or another version of a library decodes or draws them.",
            stacklevel=2,
        )
    load_state(learner, content["learner"], "learner")
    return not changed


def changed_data(content: Mapping[str, Any], tasks: FewShotTasks) -> set[str]:
    """Which of the tasks' digests are not those of the run that saved a checkpoint's ``content``."""
    known = content["origin"].get("digests") or {}
    return {name for name, digest in tasks.digests.items() if name in known and known[name] != digest}


_PARTS = ("settings", "episode", "train")
"""What is compared field by field."""


def _origin(learner: Learner[Any], tasks: FewShotTasks, episode: EpisodeConfig, config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint says of the run that it belongs to."""
    return {
        "learner": type(learner.config).__qualname__,
        "settings": dataclasses.asdict(learner.config),
        "tasks": tasks.id,
        "episode": dataclasses.asdict(episode),
        "train": fixed_settings(config),
        "digests": dict(tasks.digests),
    }


class _Work:
    """Meta-training of a learner, for :func:`metarl.runs.outer_loop.run_loop`."""

    counter = "tasks"

    def __init__(self, learner: Learner[Any], tasks: FewShotTasks, episode: EpisodeConfig, config: TrainConfig) -> None:
        self.components = learner
        self.tasks, self.episode, self.config = tasks, episode, config
        self.training_episode = learner.training_episode(episode)
        self.name = score_name(learner.spec.kind)
        self.is_monitored = "validation" in tasks.splits
        self.score_window = 1 if self.is_monitored else SCORE_WINDOW

    def start(self, run: RunFolder) -> None:
        """A script's run gets a config; it can be resumed by the script alone."""
        if not (run.path / "config.json").exists():
            origin = _origin(self.components, self.tasks, self.episode, self.config)
            run.write_manifest(self.config.seed, self.components.device)
            del origin["digests"]  # Checkpoints hold them.
            run.write_config({**origin, "train": dataclasses.asdict(self.config)})  # Last, as it makes a run.

    def iterate(self, iteration: int) -> tuple[dict[str, float], int]:
        """One meta-update."""
        learner, config = self.components, self.config
        started = time.perf_counter()
        rng = numpy_stream(config.seed, "tasks", iteration)
        # Every rank draws all tasks, from the one stream.
        share = current().share(config.meta_batch_size)
        batch = self.tasks.sample("train", config.meta_batch_size, self.training_episode, rng)[share].to(learner.device)
        sampled = time.perf_counter()
        learner.seed(derive(config.seed, "learner", iteration))
        learned = learner.meta_update(batch)
        score = f"train/{self.name}_{learner.num_adaptations}"
        metrics = {score: learned[self.name]}
        metrics |= {f"train/{name}": value for name, value in learned.items() if name != self.name}
        metrics["seconds/sample"] = sampled - started
        metrics["seconds/meta_update"] = time.perf_counter() - sampled
        return metrics, config.meta_batch_size

    def monitor(self) -> dict[str, float]:
        """Scores before adaptation and after it, on tasks of the validation split, the same ones every time.

        Nothing if there is no such split: test classes are not looked at in training.
        """
        if not self.is_monitored:
            return {}
        learner, config = self.components, self.config
        seed = derive(config.seed, "monitor")
        found = evaluate(learner, self.tasks, self.episode, num_tasks=config.eval_tasks, seed=seed, split="validation")
        ends = {found.steps[index]: found.intervals[index][0] for index in (0, -1)}
        return {f"validation/{self.name}_{step}": mean for step, mean in ends.items()}

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """Accuracy, or the error's negative, on validation tasks; in training where there are none."""
        learner = self.components
        split, steps = (
            ("validation", learner.num_eval_adaptations) if self.is_monitored else ("train", learner.num_adaptations)
        )
        value = metrics.get(f"{split}/{self.name}_{steps}")
        return value if value is None or self.name == "accuracy" else -value

    def content(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The learner's state and its origin."""
        return {"learner": state, "origin": _origin(self.components, self.tasks, self.episode, self.config)}

    def restore(self, content: Mapping[str, Any]) -> bool:
        """See :func:`restore`."""
        return restore(self.components, content, self.tasks, self.episode, self.config)
