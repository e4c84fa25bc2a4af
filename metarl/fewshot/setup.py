"""How names, a preset, a file and single settings become a few-shot experiment."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.config import Device, TrainConfig, choose_device, from_dict
from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.backbone import without_idle
from metarl.fewshot.evaluation import EVALUATION_BATCH
from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.learners import load_learner
from metarl.fewshot.memory import batch_shares, network_share
from metarl.fewshot.presets import PRESETS, preset_of
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.tasks.registry import load_tasks
from metarl.fewshot.trainer import check_sizes, require_eval_tasks
from metarl.fewshot.types import EpisodeConfig, Kind, TaskBatch
from metarl.plugins import names_module_of, require_trust
from metarl.runs.config_file import read_config_file
from metarl.runs.memory import available_bytes, require_available


@dataclass(frozen=True)
class Setup:
    """A learner, tasks and all their settings: an experiment before it has a folder.

    Attributes:
        name: the learner's name, or ``module:attribute`` of its config class.
        task_name: name of the family, or ``module:attribute``.
        data: folder that the family is read from, if it is.
        episode: size of the tasks.
        train_config: settings of the outer loop.
        learner_config: settings of the learner.
    """

    name: str
    task_name: str
    data: str | None
    episode: EpisodeConfig
    train_config: TrainConfig
    learner_config: LearnerConfig

    @property
    def tasks(self) -> FewShotTasks:
        """The family; data is read once."""
        return _tasks(self.task_name, self.data)

    @property
    def kind(self) -> Kind:
        """What is predicted."""
        return self.tasks.spec(self.episode).kind

    @property
    def size(self) -> str:
        """How large its tasks are, in words."""
        episode = self.episode
        return f"{episode.ways}-way {episode.shots}-shot" if self.kind == "classification" else f"{episode.shots}-shot"

    def build(self) -> Learner[Any]:
        """A fresh learner, with the parameters that its seed gives it."""
        device = choose_device(self.train_config.device)
        return self.learner_config.build(self.tasks.spec(self.episode), device, self.train_config.seed)

    def check(self) -> None:
        """Try what training begins with: what cannot work must fail before there is a run folder.

        Raises:
            ConfigError: for tasks that are not there or not of this size, a device that this machine lacks, or settings
                that do not fit the tasks or this machine's memory.
        """
        require_eval_tasks(self.train_config, self.tasks)
        require_learning(self.train_config, self.learner_config)
        device, spec = choose_device(self.train_config.device), self.tasks.spec(self.episode)
        network = network_share(self.learner_config, spec)
        require_available([network], available_bytes(device), device)
        learner = self.build()
        check_sizes(learner, self.tasks, self.episode)
        for episode, tasks, learns in (
            (learner.training_episode(self.episode), ("meta_batch_size", self.train_config.meta_batch_size), True),
            (self.episode, ("tasks of an evaluation at a time", EVALUATION_BATCH), False),
        ):
            shares = batch_shares(self.learner_config, spec, episode, tasks, learns=learns)
            require_available([network, *shares], available_bytes(device), device)
        self._require_minibatch(learner)
        batch = self.tasks.sample("test", 2, self.episode, np.random.default_rng(0)).to(learner.device)
        _require_functions(learner, batch)

    def _require_minibatch(self, learner: Learner[Any]) -> None:
        """Refuse a minibatch, other than the learner's usual one, that is always the whole support set."""
        usual = getattr(type(self.learner_config), "inner_batch_size", 0)
        size = getattr(self.learner_config, "inner_batch_size", usual)
        if size in (0, usual):
            return
        episodes = (learner.training_episode(self.episode), self.episode)
        most = max(self.tasks.spec(episode).num_support or size + 1 for episode in episodes)
        if size >= most:
            raise ConfigError(
                f"inner_batch_size = {size} does nothing here: support sets have {most} examples. Leave it out to take "
                "all of them, or give fewer."
            )

    def to_json(self) -> dict[str, Any]:
        """As it stands in a run's ``config.json``."""
        return {
            "learner": self.name,
            "tasks": self.task_name,
            "data": self.data,
            "episode": dataclasses.asdict(self.episode),
            "train": dataclasses.asdict(self.train_config),
            self.name: dataclasses.asdict(self.learner_config),
        }

    def given(self, train_config: TrainConfig, learner_config: LearnerConfig) -> Setup:
        """The same with settings of the user's, who may have chosen a network that the other settings do not suit."""
        known = without_idle(learner_config, self.tasks.spec(self.episode), self.learner_config)
        return dataclasses.replace(self, train_config=train_config, learner_config=known)

    def on(self, device: Device) -> Setup:
        """The same with its networks on ``device``."""
        return dataclasses.replace(self, train_config=dataclasses.replace(self.train_config, device=device))


def _require_functions(learner: Learner[Any], batch: TaskBatch) -> None:
    """Refuse what predicts otherwise when it is asked again, or for a task by itself: its scores would mean nothing.

    Raises:
        ConfigError: saying which, and what may be the cause.
    """

    def predicted(part: TaskBatch) -> Tensor:
        learner.seed(0)
        state = learner.adapt(learner.begin(part.num_tasks), part.support)
        return learner.predict(state, part.query.x)

    first, again, alone = (
        outputs.nan_to_num() for outputs in (predicted(batch), predicted(batch), predicted(batch[:1]))
    )
    # A batch of another size may be rounded otherwise, on a GPU the same one may: by no more than this.
    tolerance = (0.1 if learner.config.precision == "bfloat16" else 0.01) * float(first.abs().max())
    if not torch.allclose(first, again, rtol=0.0, atol=0.0 if learner.device.type == "cpu" else tolerance):
        raise ConfigError(
            f"the same two tasks were predicted otherwise the second time by the learner {type(learner).__name__}: it, "
            "or its network, remembers what it was given, or draws at random. In evaluation mode outputs must be a "
            "function of inputs, parameters and buffers alone."
        )
    if not torch.allclose(first[:1], alone, rtol=0.0, atol=tolerance):
        raise ConfigError(
            f"what is predicted of a task depends on the task beside it with the learner {type(learner).__name__}: its "
            "network mixes the examples that it is given at once. Let it treat each example by itself, or normalise by "
            "metarl.networks.task_norm.TaskNorm, which is given one task's at a time."
        )


def require_learning(train_config: TrainConfig, learner_config: LearnerConfig) -> None:
    """Refuse iterations in which nothing would be learned, see :attr:`LearnerConfig.last_iteration`."""
    last, asked = learner_config.last_iteration, train_config.num_iterations
    if last is not None and asked > last:
        raise ConfigError(
            f"num_iterations = {asked}, but the step of the outer loop has come down to nothing after {last}, and "
            f"further ones would change nothing. Train at most {last} iterations, or begin a new run with "
            f"--anneal-iterations {asked}."
        )


_tasks = functools.lru_cache(maxsize=4)(load_tasks)


@dataclass(frozen=True)
class Given:
    """What the user says of a new experiment; None leaves a choice to the file, the preset or the defaults.

    Attributes:
        learner: name of the learner.
        tasks: name of the family.
        data: folder that it is read from.
        ways: classes in a task.
        shots: labelled examples of each class.
        queries: examples of each class to be predicted.
        preset: the preset to start from, e.g. ``"maml:omniglot"``.
        file: a config file of the keys of a run's config.json, any of which may be missing.
        trust: whether modules that the file names may be imported, which runs their code.
    """

    learner: str | None = None
    tasks: str | None = None
    data: str | None = None
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None
    preset: str | None = None
    file: Path | None = None
    trust: bool = False


def resolve(
    given: Given, *, train: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
) -> Setup:
    """A configured experiment; what comes later wins: defaults, preset, file, single settings.

    A setting that does nothing with the network that was chosen later is put back to its default; one that is given
    though it does nothing stays, and is refused when the learner is built.

    Args:
        given: what it is.
        train: fields of :class:`TrainConfig`.
        settings: fields of the learner's config.

    Raises:
        ConfigError: for a module that may not be imported; a file that cannot be read; an unknown learner, family,
            preset, key or field; a value of another kind; a learner or tasks that are missing.
    """
    content = {} if given.file is None else read_config_file(given.file)
    parts = read_parts(content, given.file or "the config", given)
    name, task_name = given.learner or parts.name, given.tasks or parts.task_name
    if name is None or task_name is None:
        lacking = " and ".join(part for part, value in (("learner", name), ("tasks", task_name)) if value is None)
        raise ConfigError(f"a few-shot experiment needs a learner and tasks; {lacking} missing.")
    data = given.data or parts.data
    if data and Path(data).expanduser().is_dir():
        data = str(Path(data).expanduser().absolute())  # A run is resumed from any folder.
    kind = load_learner(name)
    sizes = {size: getattr(given, size) for size in ("ways", "shots", "queries") if getattr(given, size) is not None}
    default = _tasks(task_name, data).default_episode
    episode = from_dict(EpisodeConfig, {**dataclasses.asdict(default), **parts.episode, **sizes})
    if given.preset is not None and given.preset not in PRESETS:
        raise unknown_name("preset", given.preset, PRESETS)
    chosen = preset_of(name, task_name, episode) if given.preset is None else PRESETS[given.preset].of_size(episode)
    # A preset may be that of other tasks, whose inputs take another network.
    preset = without_idle(from_dict(kind, chosen.learner), _tasks(task_name, data).spec(episode))
    setup = Setup(name, task_name, data, episode, from_dict(TrainConfig, chosen.train), preset)
    for train_fields, fields in ((parts.train, parts.settings), (train or {}, settings or {})):
        setup = setup.given(
            from_dict(TrainConfig, train_fields, setup.train_config), from_dict(kind, fields, setup.learner_config)
        )
    return setup


@dataclass(frozen=True)
class Parts:
    """What a file says; None and empty where it says nothing."""

    name: str | None
    task_name: str | None
    data: str | None
    episode: Mapping[str, Any]
    train: Mapping[str, Any]
    settings: Mapping[str, Any]


def read_parts(content: Mapping[str, Any], where: Path | str, given: Given, folder: Path | None = None) -> Parts:
    """The parts of a config file's content, whose modules may be imported as far as ``given`` says."""

    def word(key: str) -> str | None:
        value = content.get(key)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{key} in {where} must be a name, got {value!r}.")
        return value

    def section(key: str) -> Mapping[str, Any]:
        value = content.get(key, {})
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} in {where} must be an object of settings, got {value!r}.")
        return {str(name): setting for name, setting in value.items()}

    name, task_name = word("learner"), word("tasks")
    own = given.learner or name
    settings = section(own) if own is not None else {}
    named = {given.learner, given.tasks}
    backbone = settings.get("backbone")
    for part, value in (("learner", name), ("tasks", task_name), ("backbone", backbone)):
        if isinstance(value, str):
            require_trust(value, part, where, trusted=given.trust or names_module_of(value, named), folder=folder)
    known = ["learner", "tasks", "data", "episode", "train", *([own] if own else [])]
    for key in content:
        if key == name != own:
            raise ConfigError(
                f"{where} holds the settings of {name}, and the learner that is asked for is {own}. Leave out the "
                f"learner's name, or take a file without {name!r}."
            )
        if key not in known:
            raise unknown_name(f"key in {where}", str(key), known)
    return Parts(name, task_name, word("data"), section("episode"), section("train"), settings)
