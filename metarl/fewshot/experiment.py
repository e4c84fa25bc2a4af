"""A few-shot experiment and its run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarl.config import (
    Device,
    TrainConfig,
    choose_device,
    fixed_settings,
    from_dict,
    missing_settings,
    require_kept,
    warn_of_defaults,
)
from metarl.errors import ConfigError
from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.learners import load_learner
from metarl.fewshot.setup import Given, Setup, read_parts, require_learning
from metarl.fewshot.trainer import changed_data, require_eval_tasks, restore, train
from metarl.fewshot.types import EpisodeConfig, FewShotSpec
from metarl.runs.folder import RunFolder
from metarl.runs.logger import iteration_seconds, read_metrics
from metarl.runs.outer_loop import Progress


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
        setup, store = self.setup, self.run.checkpoints
        store.resume_command = "metarl fewshot train"
        own = ":" in setup.name + setup.task_name + setup.learner_config.backbone
        store.resume_options = " --trust-tasks" if own else ""

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
        size = f"{setup.episode.ways}way-{setup.episode.shots}shot"
        default = f"{setup.name}-{setup.task_name}-{size}-seed{setup.train_config.seed}"
        run, begun = RunFolder.begin(root, name or default, setup.to_json())
        if not begun:
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
        if this.run.checkpoints.iterations() and changed_data(this.run.checkpoints.load_latest()[1], setup.tasks):
            raise ConfigError(
                f"{path} was trained on other data than what {setup.task_name} has now"
                f"{f' in {setup.data}' if setup.data else ''}; take another folder, or move that one away."
            )
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
        parts = read_parts(content, where, Given(learner, tasks, trust=trust), run.path)
        assert parts.name is not None and parts.task_name is not None
        for section, kind, values in (
            ("train", TrainConfig, parts.train),
            ("episode", EpisodeConfig, parts.episode),
        ):
            if lost := missing_settings(kind, values):
                raise ConfigError(
                    f"{section} in {where} lacks {', '.join(lost)}; put back what the run was started with."
                )
        warn_of_defaults(load_learner(parts.name), parts.settings, parts.name, where)
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
        # By scores on other tasks no best checkpoint can be chosen.
        before, after = (
            dataclasses.asdict(learning) | fixed_settings(outer) | {"eval_tasks": outer.eval_tasks}
            for learning, outer in ((setup.learner_config, setup.train_config), (learner_config, train_config))
        )
        require_eval_tasks(train_config, setup.tasks)
        require_kept(before, after, self.run.path, "learner's")
        choose_device(train_config.device)
        require_learning(train_config, setup.learner_config)
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

    def on(self, device: Device) -> Experiment:
        """The same experiment, its networks on ``device``."""
        return Experiment(self.setup.on(device), self.run)

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint of the best score: see :func:`metarl.fewshot.trainer.train`.

        Raises:
            ConfigError: if there is none yet.
        """
        every = self.setup.train_config.eval_every
        return self.run.checkpoints.chosen_best(
            f"its learner is scored every {every} iterations (eval_every), and first then"
        )

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

    @property
    def training_seconds(self) -> float:
        """Seconds of all meta-updates so far and of drawing their tasks, over all starts of the run."""
        return sum(map(iteration_seconds, read_metrics(self.run.metrics)))

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
