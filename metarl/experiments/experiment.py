"""From names to runs: build an agent for its tasks, and train it in a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metarl.agent import Agent, AgentConfig
from metarl.agents import AGENTS, PretrainedConfig
from metarl.config import TrainConfig, choose_device, from_dict
from metarl.errors import ConfigError
from metarl.experiments.presets import from_json, to_json
from metarl.runs.folder import RunFolder
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.oracle import reveal_task
from metarl.tasks.registry import load_distribution
from metarl.trainer import Progress, restore, train

Listener = Callable[[Progress], None]


@dataclass(frozen=True)
class Experiment:
    """An agent, its tasks and its run folder.

    Attributes:
        name: of the agent.
        task_name: id or ``module:attribute`` of the distribution.
        train_config: settings of the outer loop.
        agent_config: settings of the agent.
        run: where it is kept.
    """

    name: str
    task_name: str
    train_config: TrainConfig
    agent_config: AgentConfig
    run: RunFolder

    @classmethod
    def create(
        cls, name: str, task_name: str, train_config: TrainConfig, agent_config: AgentConfig, run: RunFolder
    ) -> Experiment:
        """A new experiment; writes config and manifest into the new folder ``run``."""
        run.write_config(to_json(name, task_name, train_config, agent_config))
        run.write_manifest(train_config.seed, choose_device(train_config.device))
        return cls(name, task_name, train_config, agent_config, run)

    @classmethod
    def open(cls, path: Path) -> Experiment:
        """The experiment of an existing run."""
        run = RunFolder.open(path)
        return cls(*from_json(run.read_config()), run)

    def reconfigured(self, train_config: TrainConfig, agent_config: AgentConfig) -> Experiment:
        """This experiment with new settings of the outer loop, which are written into its folder.

        Raises:
            ConfigError: for a change that a checkpoint cannot follow: an optimiser, for one, brings its own step size.
            CheckpointError: if the run is in use.
        """
        before = dataclasses.asdict(self.agent_config) | {"seed": self.train_config.seed}
        after = dataclasses.asdict(agent_config) | {"seed": train_config.seed}
        for name, value in before.items():
            if after[name] != value:
                raise ConfigError(
                    f"a run that is resumed keeps its seed and its agent's settings: {name} is {value!r} in "
                    f"{self.run.path}, got {after[name]!r}. Leave it out, or start a new run."
                )
        choose_device(train_config.device)
        with self.run.lock():
            self.run.write_config(to_json(self.name, self.task_name, train_config, agent_config))
        return dataclasses.replace(self, train_config=train_config)

    def on(self, device: Literal["auto", "cpu", "cuda"]) -> Experiment:
        """The same experiment, its networks on ``device``."""
        return dataclasses.replace(self, train_config=dataclasses.replace(self.train_config, device=device))

    @property
    def pretrained_path(self) -> Path:
        """Where the run of the reference lies, if there is one."""
        return self.run.path / "pretrained"

    def trained_reference(self) -> Experiment | None:
        """The reference's experiment; None if there is none, or none that has begun to train."""
        path = self.pretrained_path
        if not (path / "config.json").is_file() or not RunFolder(path).checkpoints.iterations():
            return None
        return Experiment.open(path)

    @property
    def distribution(self) -> TaskDistribution:
        """The tasks, as this experiment's agent sees them."""
        return self.seen(load_distribution(self.task_name))

    def seen(self, distribution: TaskDistribution) -> TaskDistribution:
        """A distribution as this experiment's agent sees it: an oracle sees the task as well."""
        return reveal_task(distribution) if AGENTS[self.name].told_task else distribution

    def build(self) -> Agent[Any]:
        """A fresh agent, with the parameters that its seed gives it."""
        device = choose_device(self.train_config.device)
        return self.agent_config.build(self.distribution.spec, device, self.train_config.seed)

    def load(self, checkpoint: Path | None = None) -> tuple[Agent[Any], int]:
        """The trained agent of a checkpoint (default: the newest), and the iterations behind it."""
        agent = self.build()
        store = self.run.checkpoints
        iteration, content = store.load(checkpoint) if checkpoint else store.load_latest()
        restore(agent, content)
        return agent, iteration

    def train(self, listener: Listener, checkpoint: Path | None = None) -> bool:
        """Train, or go on training; returns whether all iterations were done."""
        return train(
            self.build(), self.distribution, self.train_config, self.run, checkpoint=checkpoint, listener=listener
        )


def reference_config(agent: str, config: AgentConfig) -> PretrainedConfig:
    """Settings of the one policy for all tasks that stands beside ``agent``.

    Raises:
        ConfigError: for an agent that is not built on MAML's settings, whose network could not be matched.
    """
    known = {field.name for field in dataclasses.fields(PretrainedConfig)}
    if not known <= {field.name for field in dataclasses.fields(config)}:
        raise ConfigError(f"a pretrained reference needs a MAML agent beside it, got {agent!r}.")
    return from_dict(PretrainedConfig, {name: getattr(config, name) for name in known})


def pretrained_reference(experiment: Experiment) -> Experiment:
    """One policy without adaptation, trained over the same tasks for as many episodes, in a folder inside the run's.

    Raises:
        ConfigError: see :func:`reference_config`.
    """
    reference = reference_config(experiment.name, experiment.agent_config)
    rollouts = experiment.build().num_adaptations + 1
    train_config = dataclasses.replace(
        experiment.train_config, num_iterations=experiment.train_config.num_iterations * rollouts
    )
    path = experiment.pretrained_path
    if (path / "config.json").is_file():
        return dataclasses.replace(Experiment.open(path), train_config=train_config)
    path.mkdir(exist_ok=True)
    return Experiment.create("pretrained", experiment.task_name, train_config, reference, RunFolder(path))
