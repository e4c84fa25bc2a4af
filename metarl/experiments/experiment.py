"""An experiment: a setup in a run folder, to be trained, resumed and loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarl.agent import Agent, AgentConfig
from metarl.agents import PretrainedConfig
from metarl.config import Device, TrainConfig, choose_device, fixed_settings, from_dict, require_kept
from metarl.errors import ConfigError, require_kind
from metarl.experiments.setup import Setup
from metarl.plugins import require_trust
from metarl.rollouts.host_actor import ActOn
from metarl.runs.folder import REFERENCE, RunFolder
from metarl.runs.outer_loop import SCORE_WINDOW, Callback, Progress
from metarl.trainer import restore, train

Listener = Callable[[Progress], None]


@dataclass(frozen=True)
class Experiment(Setup):
    """A setup and its run folder.

    Attributes:
        run: where it is kept.
    """

    run: RunFolder

    def __post_init__(self) -> None:
        self.run.checkpoints.resume_options = " --trust-tasks" if ":" in self.name + self.task_name else ""

    @classmethod
    def create(cls, setup: Setup, run: RunFolder) -> Experiment:
        """A new experiment; writes manifest and config into the new folder ``run``."""
        run.write_manifest(setup.train_config.seed, choose_device(setup.train_config.device))
        # Last, since it makes the folder a run: one that goes on after a kill lacks nothing.
        run.write_config(setup.to_json())
        return cls.of(setup, run)

    @classmethod
    def of(cls, setup: Setup, run: RunFolder) -> Experiment:
        """A setup in a run folder; writes nothing."""
        return cls(setup.name, setup.task_name, setup.train_config, setup.agent_config, run)

    @classmethod
    def start(
        cls, setup: Setup, root: Path | str = "runs", name: str | None = None, *, reference: bool = False
    ) -> Experiment:
        """A new experiment in a folder of its own, made only if the setup can work.

        After torchrun has restarted its processes, the experiment that the same call began before.

        Args:
            setup: see :func:`metarl.experiments.resolve`.
            root: folder of all runs.
            name: name of the run's folder; default: made from agent, tasks and seed.
            reference: it has a reference, see :func:`pretrained_reference`, which stands beside it from the start.

        Raises:
            ConfigError: see :meth:`Setup.check` and :func:`reference_config`; if the folder cannot be written.
        """
        root = Path(root).absolute()  # An environment may change the working directory.
        setup.check()
        default = f"{setup.name}-{setup.task_name}-seed{setup.train_config.seed}"
        run, begun = RunFolder.begin(root, name or default, setup.to_json())
        if begun:
            return cls.of(setup, run)
        if reference:
            pretrained_reference(cls.of(setup, run))
        return cls.create(setup, run)

    @classmethod
    def open(
        cls, path: Path | str, *, agent: str | None = None, tasks: str | None = None, trust: bool = False
    ) -> Experiment:
        """The experiment of an existing run.

        A run may come from somebody else: a module that its config.json names is imported only if ``agent`` or
        ``tasks`` names it too, or with ``trust``; a module inside the run's folder never.

        Args:
            path: the run's folder, or ``model:NAME`` for a published model.
            agent: stands in for the agent of a script's run whose config.json could not name it.
            tasks: stands in for the tasks of such a run.
            trust: import the modules that its config.json names, which runs their code.

        Raises:
            ConfigError: if there is no run, or its config.json does not say what it needs to; for a module that may
                not be imported, saying what to do.
        """
        run = RunFolder.open(path)
        for part, name in (("agent", agent), ("tasks", tasks)):
            if name is not None:
                require_kind(part, name, str, "a run's parts are named, by an id or module:attribute")
                require_trust(name, part, "the command", trusted=True, folder=run.path)
        setup = Setup.from_json(run.read_config(), agent=agent, tasks=tasks, trust=trust, folder=run.path)
        return cls.of(setup, run)

    def reconfigured(
        self, train_config: TrainConfig, agent_config: AgentConfig, checkpoint: Path | None = None
    ) -> Experiment:
        """This experiment with new settings of the outer loop, which are written into its folder.

        Args:
            train_config: only what says how long it trains, what it keeps and where it runs may differ.
            agent_config: the settings that the run has.
            checkpoint: that it will go on from; default: the newest, if there is one.

        Raises:
            ConfigError: for a change that a checkpoint cannot follow: an optimiser, for one, brings its own step size;
                for a device that this machine lacks, or more memory than it has.
            CheckpointError: if the run is in use, or the checkpoint is that of another one.
        """
        content = self.run.read_config()
        # A script's run may have recorded no settings of its agent: then they are those that are given now.
        recorded = content.keys() & {self.name, "settings"}
        before = (dataclasses.asdict(self.agent_config) if recorded else {}) | fixed_settings(self.train_config)
        after = dataclasses.asdict(agent_config) | fixed_settings(train_config)
        require_kept(before, after, self.run.path, "agent's")
        changed = dataclasses.replace(self, train_config=train_config, agent_config=agent_config)
        changed.check_memory()
        if checkpoint is not None or self.run.checkpoints.iterations():
            changed.load(checkpoint, resume=True)  # What cannot go on must leave the folder as it was.
        with self.run.lock():
            self.run.write_config(changed.to_json())
        return changed

    def on(self, device: Device) -> Experiment:
        """The same experiment, its networks on ``device``."""
        return dataclasses.replace(self, train_config=dataclasses.replace(self.train_config, device=device))

    @property
    def pretrained_path(self) -> Path:
        """Where the run of the reference lies, if there is one."""
        return self.run.path / REFERENCE

    def trained_reference(self) -> Experiment | None:
        """The reference's experiment; None if there is none, or none that has begun to train."""
        path = self.pretrained_path
        if not (path / "config.json").is_file() or not RunFolder(path).checkpoints.iterations():
            return None
        return Experiment.open(path, tasks=self.task_name)

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the best training return, see :data:`metarl.runs.outer_loop.SCORE_WINDOW`.

        Raises:
            ConfigError: if there is none yet.
        """
        return self.run.checkpoints.chosen_best(
            f"it is chosen by the training return of {SCORE_WINDOW} iterations, when a checkpoint is due "
            f"(checkpoint_every = {self.train_config.checkpoint_every}) and at the end"
        )

    def load(self, checkpoint: Path | None = None, *, resume: bool = False) -> tuple[Agent[Any], int]:
        """The trained agent of a checkpoint, and the iterations behind it.

        Args:
            checkpoint: the file; default: the newest.
            resume: training is to go on from it, which it cannot from a published model.
        """
        agent = self.build()
        store = self.run.checkpoints
        iteration, content = store.load(checkpoint) if checkpoint else store.load_latest()
        restore(agent, content, self.distribution, self.train_config, resume=resume)
        return agent, iteration

    def train(
        self,
        listener: Listener = lambda _: None,
        checkpoint: Path | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        act_on: ActOn = "device",
    ) -> bool:
        """Train, or go on training; returns whether it ended by itself.

        Args:
            listener: called after every iteration.
            checkpoint: resume from this file instead of the newest.
            callbacks: called in every iteration, and may end training, e.g. those of :mod:`metarl.callbacks`.
            act_on: where the agent acts, see :func:`metarl.trainer.train`.
        """
        return train(
            self.build(),
            self.distribution,
            self.train_config,
            self.run,
            checkpoint=checkpoint,
            listener=listener,
            callbacks=callbacks,
            act_on=act_on,
        )


def reference_config(agent: str, config: AgentConfig) -> PretrainedConfig:
    """Settings of the one policy for all tasks that stands beside ``agent``, by gradient descent whatever its rule is.

    Raises:
        ConfigError: for an agent that is not built on MAML's settings, whose network could not be matched.
    """
    known = {field.name for field in dataclasses.fields(PretrainedConfig)}
    if not known <= {field.name for field in dataclasses.fields(config)}:
        raise ConfigError(f"a pretrained reference needs a MAML agent beside it, got {agent!r}.")
    # Gradient descent is the one rule that needs no training.
    return from_dict(PretrainedConfig, {name: getattr(config, name) for name in known - {"inner_rule"}})


def pretrained_reference(experiment: Experiment) -> Experiment:
    """One policy without adaptation, trained over the same tasks for as many episodes, in a folder inside the run's.

    Raises:
        ConfigError: see :func:`reference_config`.
    """
    reference = reference_config(experiment.name, experiment.agent_config)
    rollouts = experiment.agent_config.num_adaptations + 1
    train_config = dataclasses.replace(
        experiment.train_config, num_iterations=experiment.train_config.num_iterations * rollouts
    )
    path = experiment.pretrained_path
    if (path / "config.json").is_file():
        return dataclasses.replace(Experiment.open(path, tasks=experiment.task_name), train_config=train_config)
    path.mkdir(exist_ok=True)
    setup = Setup("pretrained", experiment.task_name, train_config, reference)
    return Experiment.create(setup, RunFolder(path))
