"""How names, a preset, a file and single settings become a few-shot experiment, and its run folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metarl.config import TrainConfig, choose_device, fixed_settings, from_dict, require_kept
from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.backbone import without_idle
from metarl.fewshot.evaluation import EVALUATION_BATCH
from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.learners import load_learner
from metarl.fewshot.memory import batch_shares, network_share
from metarl.fewshot.presets import PRESETS, preset_of
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.tasks.registry import load_tasks
from metarl.fewshot.trainer import check_sizes, require_eval_tasks, restore, train
from metarl.fewshot.types import EpisodeConfig, FewShotSpec, Kind
from metarl.plugins import require_trust
from metarl.runs.config_file import read_config_file
from metarl.runs.folder import RunFolder
from metarl.runs.memory import available_bytes, require_available
from metarl.runs.outer_loop import Progress


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
        batch = self.tasks.sample("test", 2, self.episode, np.random.default_rng(0)).to(learner.device)
        learner.predict(learner.adapt(learner.begin(2), batch.support), batch.query.x)

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

    def on(self, device: Literal["auto", "cpu", "cuda"]) -> Setup:
        """The same with its networks on ``device``."""
        return dataclasses.replace(self, train_config=dataclasses.replace(self.train_config, device=device))


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
    parts = _read(content, given.file or "the config", given)
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
    chosen = preset_of(name, task_name, episode) if given.preset is None else PRESETS[given.preset]
    # A preset may be that of other tasks, whose inputs take another network.
    preset = without_idle(from_dict(kind, chosen.learner), _tasks(task_name, data).spec(episode))
    setup = Setup(name, task_name, data, episode, from_dict(TrainConfig, chosen.train), preset)
    for train_fields, fields in ((parts.train, parts.settings), (train or {}, settings or {})):
        setup = setup.given(
            from_dict(TrainConfig, train_fields, setup.train_config), from_dict(kind, fields, setup.learner_config)
        )
    return setup


@dataclass(frozen=True)
class Experiment:
    """A setup and its run folder.

    Attributes:
        setup: learner, tasks and settings.
        run: where it is kept.
    """

    setup: Setup
    run: RunFolder

    def __post_init__(self) -> None:
        self.run.checkpoints.resume_command = "metarl fewshot train"

    @classmethod
    def start(cls, setup: Setup, root: Path | str = "runs", name: str | None = None) -> Experiment:
        """A new experiment in a folder of its own, made only if the setup can work.

        Args:
            setup: see :func:`resolve`.
            root: folder of all runs.
            name: name of the run's folder; default: made from learner, tasks, their size and seed.

        Raises:
            ConfigError: see :meth:`Setup.check`; if the folder cannot be written.
        """
        root = Path(root).absolute()  # Code of the user's own may change the working directory.
        setup.check()
        if (begun := RunFolder.of_launch(root)) is not None:
            return cls.open(begun.path, learner=setup.name, tasks=setup.task_name, data=setup.data)
        size = f"{setup.episode.ways}way-{setup.episode.shots}shot"
        default = f"{setup.name}-{setup.task_name}-{size}-seed{setup.train_config.seed}"
        run = RunFolder.create(root, name or default)
        run.write_manifest(setup.train_config.seed, choose_device(setup.train_config.device))
        run.write_config(setup.to_json())  # Last, as it makes a run.
        return cls(setup, run)

    @classmethod
    def begin(cls, setup: Setup, root: Path | str, name: str) -> Experiment:
        """The experiment in ``root/name``: new, or begun earlier and to go on as far as ``setup`` says.

        Raises:
            ConfigError: see :meth:`start`; if it was begun with other tasks, or with settings that cannot change.
        """
        path = Path(root) / name
        if not (path / "config.json").is_file():
            return cls.start(setup, root, name)
        this = cls.open(path, learner=setup.name, tasks=setup.task_name, data=setup.data, trust=True)
        for what in ("name", "task_name", "episode"):
            if (before := getattr(this.setup, what)) != (now := getattr(setup, what)):
                raise ConfigError(f"{path} was begun with {before}, and now {now} is asked for; take another folder.")
        return this.reconfigured(setup.train_config, setup.learner_config)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        learner: str | None = None,
        tasks: str | None = None,
        data: str | None = None,
        trust: bool = False,
    ) -> Experiment:
        """The experiment of an existing run.

        Args:
            path: the run's folder.
            learner: the run's learner again, which allows its module to be imported.
            tasks: the same for its tasks.
            data: where the data lies now, if not where the run found it.
            trust: import the modules that its config.json names, which runs their code.

        Raises:
            ConfigError: if there is no run, one of reinforcement learning, or one whose config.json does not say what
                it needs to; for a module that may not be imported, saying what to do; if its data is gone.
        """
        given = str(Path(data).expanduser().absolute()) if data else None  # Before code of the user's own is imported.
        run = RunFolder.open(path)
        content = run.read_config()
        where = run.path / "config.json"
        if "agent" in content and "learner" not in content:
            raise ConfigError(f"{path} is a run of reinforcement learning: metarl evaluate {path}, not metarl fewshot.")
        for part, named in (("learner", learner), ("tasks", tasks)):
            if (own := content.get(part)) is None:
                raise ConfigError(f"{where} does not name the {part}: it is not that of a few-shot run.")
            if named not in (None, own):
                raise ConfigError(f"the run's {part} is {own!r}, got --{part} {named!r}. Leave it out.")
        parts = _read(content, where, Given(learner, tasks, trust=trust), run.path)
        assert parts.name is not None and parts.task_name is not None
        for section, kind, values in (
            ("train", TrainConfig, parts.train),
            ("episode", EpisodeConfig, parts.episode),
            (parts.name, load_learner(parts.name), parts.settings),
        ):
            if lost := [field.name for field in dataclasses.fields(kind) if field.name not in values]:
                raise ConfigError(
                    f"{section} in {where} lacks {', '.join(lost)}; put back what the run was started with."
                )
        if given is None and parts.data is not None and not Path(parts.data).is_dir():
            raise ConfigError(
                f"the run was trained on data in {parts.data}, and there is no such folder now. Say where it lies with "
                "--data FOLDER, or put it back."
            )
        setup = Setup(
            parts.name,
            parts.task_name,
            given or parts.data,
            from_dict(EpisodeConfig, parts.episode),
            from_dict(TrainConfig, parts.train),
            from_dict(load_learner(parts.name), parts.settings),
        )
        return cls(setup, run)

    def reconfigured(
        self, train_config: TrainConfig, learner_config: LearnerConfig, checkpoint: Path | None = None
    ) -> Experiment:
        """This experiment with new settings of the outer loop, which are written into its folder.

        Args:
            train_config: only what says how long it trains, what it keeps and where it runs may differ.
            learner_config: the settings that the run has.
            checkpoint: that it will go on from; default: the newest, if there is one.

        Raises:
            ConfigError: for a change that a checkpoint cannot follow, and for fewer iterations than are done.
            CheckpointError: if the run is in use, or the checkpoint is that of another one.
        """
        setup = self.setup
        before = dataclasses.asdict(setup.learner_config) | fixed_settings(setup.train_config)
        after = dataclasses.asdict(learner_config) | fixed_settings(train_config)
        require_kept(before, after, self.run.path, "learner's")
        choose_device(train_config.device)
        require_eval_tasks(train_config, setup.tasks)
        store = self.run.checkpoints
        done = store.load(checkpoint)[0] if checkpoint is not None else max(store.iterations(), default=0)
        if done > train_config.num_iterations:
            raise ConfigError(
                f"{self.run.path} has done {done} iterations already, more than --num-iterations "
                f"{train_config.num_iterations}. Ask for more, or go back with --checkpoint."
            )
        changed = Experiment(dataclasses.replace(setup, train_config=train_config), self.run)
        if checkpoint is not None or self.run.checkpoints.iterations():
            changed.load(checkpoint)  # What cannot go on must leave the folder as it was.
        with self.run.lock():
            self.run.write_config(changed.setup.to_json())
        return changed

    def on(self, device: Literal["auto", "cpu", "cuda"]) -> Experiment:
        """The same experiment, its networks on ``device``."""
        return Experiment(self.setup.on(device), self.run)

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint of the best score: see :func:`metarl.fewshot.trainer.train`.

        Raises:
            ConfigError: if there is none yet.
        """
        path = self.run.checkpoints.best_path
        if not path.is_file():
            raise ConfigError(
                f"{self.run.path} has no best checkpoint yet: its learner is scored every "
                f"{self.setup.train_config.eval_every} iterations (eval_every), and first then. Leave out --best to "
                "take the newest checkpoint."
            )
        return path

    def load(self, checkpoint: Path | None = None, *, spec: FewShotSpec | None = None) -> tuple[Learner[Any], int]:
        """The trained learner of a checkpoint, and the iterations behind it.

        Args:
            checkpoint: default: the newest.
            spec: shapes of the tasks that it is wanted for, if not those that it was trained for.

        Raises:
            CheckpointError: for a checkpoint that is damaged, or of another run.
            ConfigError: for shapes that its network does not fit.
        """
        setup, store = self.setup, self.run.checkpoints
        learner = setup.build()
        iteration, content = store.load(checkpoint) if checkpoint else store.load_latest()
        restore(learner, content, setup.tasks, setup.episode, setup.train_config)
        if spec in (None, learner.spec):
            return learner, iteration
        assert spec is not None
        other = setup.learner_config.build(spec, learner.device, setup.train_config.seed)
        try:
            other.load_state_dict(learner.state_dict())
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{setup.name} was trained for {learner.spec.num_outputs} classes and {learner.spec.num_support} "
                f"labelled examples, and its network does not fit {spec.num_outputs} and {spec.num_support}. Train it "
                "with other --ways and --shots, or take a learner that compares examples, such as protonet."
            ) from error
        return other, iteration

    def train(self, listener: Callable[[Progress], None] = lambda _: None, checkpoint: Path | None = None) -> bool:
        """Train, or go on training; returns whether all iterations were done."""
        setup = self.setup
        return train(
            setup.build(),
            setup.tasks,
            setup.episode,
            setup.train_config,
            self.run,
            checkpoint=checkpoint,
            listener=listener,
        )


@dataclass(frozen=True)
class _Parts:
    """What a file says; None and empty where it says nothing."""

    name: str | None
    task_name: str | None
    data: str | None
    episode: Mapping[str, Any]
    train: Mapping[str, Any]
    settings: Mapping[str, Any]


def _read(content: Mapping[str, Any], where: Path | str, given: Given, folder: Path | None = None) -> _Parts:
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
            require_trust(value, part, where, trusted=given.trust or value in named, folder=folder)
    known = ["learner", "tasks", "data", "episode", "train", *([own] if own else [])]
    for key in content:
        if key == name != own:
            raise ConfigError(
                f"{where} holds the settings of {name}, and the learner that is asked for is {own}. Leave out the "
                f"learner's name, or take a file without {name!r}."
            )
        if key not in known:
            raise unknown_name(f"key in {where}", str(key), known)
    return _Parts(name, task_name, word("data"), section("episode"), section("train"), settings)
