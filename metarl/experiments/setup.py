"""How names, a preset, a file and single settings become a configured experiment: the one way for everybody.

The command line, the benchmarks and scripts all call :func:`resolve`; what comes later wins: the agent's defaults, the
preset of agent and tasks, the file, the settings that are given one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metarl.agent import Agent, AgentConfig
from metarl.agents.registry import agent_name, load_agent
from metarl.config import TrainConfig, choose_device, from_dict, missing_settings, run_config, warn_of_defaults
from metarl.errors import ConfigError, unknown_name
from metarl.experiments.memory import require_memory
from metarl.experiments.presets import PRESETS, Preset, steps_per_iteration
from metarl.plugins import names_module_of, require_trust
from metarl.runs.config_file import read_config_file
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.oracle import reveal_task
from metarl.tasks.registry import distribution_name, load_distribution


@dataclass(frozen=True)
class Setup:
    """An agent, tasks and all their settings: an experiment before it has a folder.

    Attributes:
        name: the agent's name, or ``module:attribute`` of its config class.
        task_name: id or ``module:attribute`` of the distribution.
        train_config: settings of the outer loop.
        agent_config: settings of the agent.
    """

    name: str
    task_name: str
    train_config: TrainConfig
    agent_config: AgentConfig

    @property
    def distribution(self) -> TaskDistribution:
        """The tasks, as the agent sees them."""
        return self.seen(load_distribution(self.task_name))

    def seen(self, distribution: TaskDistribution) -> TaskDistribution:
        """A distribution as the agent sees it: an oracle sees the task as well."""
        return reveal_task(distribution) if self.agent_config.told_task else distribution

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one meta-update, adaptation included, if no episode ends early."""
        horizon = load_distribution(self.task_name).spec.horizon
        return steps_per_iteration(self.agent_config, self.train_config.meta_batch_size, horizon)

    def build(self) -> Agent[Any]:
        """A fresh agent, with the parameters that its seed gives it."""
        device = choose_device(self.train_config.device)
        return self.agent_config.build(self.distribution.spec, device, self.train_config.seed)

    def check(self) -> None:
        """Try what training begins with: what cannot work must fail before there is a run folder.

        Raises:
            ConfigError: for tasks that are not there, a device that this machine lacks, settings that do not fit the
                tasks or this machine's memory, or a meta-batch that cannot be drawn.
        """
        self.check_memory()
        self.build()
        rng = np.random.default_rng(0)
        load_distribution(self.task_name).sample_meta_batch(self.train_config.meta_batch_size, rng)

    def check_memory(self) -> None:
        """Refuse settings that ask for more memory than is free now.

        Raises:
            ConfigError: see :func:`require_memory`; for a device that this machine lacks.
        """
        spec, device = self.distribution.spec, choose_device(self.train_config.device)
        for setting in ("meta_batch_size", "eval_tasks"):
            require_memory(self.agent_config, spec, getattr(self.train_config, setting), device, setting)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a run's ``config.json``."""
        return run_config(self.name, self.task_name, self.train_config, self.agent_config)

    @classmethod
    def from_json(
        cls,
        content: Mapping[str, Any],
        *,
        agent: str | None = None,
        tasks: str | None = None,
        trust: bool = False,
        folder: Path | None = None,
    ) -> Setup:
        """The setup of a run, from its ``config.json``; settings of its agent that it lacks are told, and get defaults.

        Args:
            content: the file's content.
            agent: stands in for the agent of a script's run that could not be named; the module of the run's agent
                may be imported if this names it.
            tasks: the same for its tasks.
            trust: import the modules that ``content`` names, which runs their code.
            folder: the run's folder; modules inside it are refused.

        Raises:
            ConfigError: if something is missing, unknown or of another kind; for another ``agent`` than the run's; for
                a module that may not be imported, see :func:`metarl.plugins.require_trust`.
        """
        needed = {"agent", "tasks", "train", *([content["agent"]] if isinstance(content.get("agent"), str) else [])}
        if "learner" in content and "agent" not in content:
            raise ConfigError("this is the run of a few-shot learner: metarl fewshot has the commands for it.")
        if missing := needed - content.keys():
            raise ConfigError(f"config.json lacks {', '.join(sorted(missing))}; it is not that of a run.")
        where = "config.json" if folder is None else folder / "config.json"
        given = _Given({agent, tasks}, trust, folder)
        parts = _read_parts(content, where, agent, given)
        for part, name, instead, example in (
            ("agent", parts.agent, agent, "MyConfig"),
            ("tasks", parts.tasks, tasks, "pendulums"),
        ):
            if name is None and instead is None:
                raise ConfigError(
                    f"the run was made by a script, and its config.json does not name the {part}: "
                    f"{parts.not_found[part]}. "
                    f"Name {'it' if part == 'agent' else 'them'} with --{part} module:{example}."
                )
        if agent is not None and parts.agent is not None and agent != parts.agent:
            raise ConfigError(f"the run's agent is {parts.agent!r}, got --agent {agent!r}. Leave it out.")
        name, task_name = parts.agent or str(agent), parts.tasks or str(tasks)
        if lost := missing_settings(TrainConfig, parts.train):
            raise ConfigError(f"train in {where} lacks {', '.join(lost)}; put back what the run was started with.")
        kind = load_agent(name)
        if folder is not None and content.keys() & {name, "settings"}:
            warn_of_defaults(kind, parts.settings, name, where)
        return cls(name, task_name, from_dict(TrainConfig, parts.train), from_dict(kind, parts.settings))


def resolve(
    agent: str | AgentConfig | None = None,
    tasks: str | TaskDistribution | None = None,
    *,
    preset: str | None = None,
    file: Path | str | None = None,
    train: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Setup:
    """A configured experiment; what comes later wins: defaults, preset, file, single settings.

    Args:
        agent: a name in :data:`metarl.agents.AGENTS`, ``module:attribute``, or a config with all its settings, which
            a preset then leaves alone; default: that of the file.
        tasks: a distribution, its id, or ``module:attribute``; default: those of the file.
        preset: take this preset instead of that of agent and tasks, e.g. ``"maml-trpo:navigation-2d"`` for tasks of
            one's own.
        file: the config.json of a run, or a YAML or JSON file of the same keys, any of which may be missing; the
            agent's settings stand under its name, or under ``settings``.
        train: fields of :class:`TrainConfig`.
        settings: fields of the agent's config.
        trust: import the modules that the file names, which runs their code; those that ``agent`` and ``tasks`` name
            are imported anyway.

    Raises:
        ConfigError: for an agent's config or a distribution that no module holds, since a run is found again by their
            names; for a module that may not be imported; for a file that cannot be read; for an unknown agent, preset,
            key or field; for a value of another kind; for agent or tasks that are missing, or that the file
            gives otherwise.
    """
    own = agent if isinstance(agent, AgentConfig) else None
    try:
        name = agent_name(agent) if isinstance(agent, AgentConfig) else agent
        task_name = distribution_name(tasks) if isinstance(tasks, TaskDistribution) else tasks
    except ConfigError as error:
        # Whoever works in a notebook or an interactive session meets this first.
        raise ConfigError(
            f"{error}. Put it into a file in this folder, e.g. my_tasks.py (in a notebook by a cell that begins with "
            "%%writefile my_tasks.py), and import it from there; or train without names: metarl.train(agent, "
            "distribution, config, metarl.RunFolder.create('runs', NAME))."
        ) from None
    parts = _Parts()
    if file is not None:
        parts = _read_parts(read_config_file(Path(file)), file, name, _Given({name, task_name}, trust))
        name, task_name = _agree("agent", name, parts.agent, file), _agree("tasks", task_name, parts.tasks, file)
    if name is None or task_name is None:
        lacking = " and ".join(part for part, given in (("agent", name), ("tasks", task_name)) if given is None)
        where = "" if file is None else f", and {file} does not say"
        raise ConfigError(f"an experiment needs an agent and tasks; {lacking} missing{where}.")
    kind = load_agent(name) if own is None else type(own)
    chosen = _preset(name, task_name, preset)
    train_config = from_dict(TrainConfig, chosen.train)
    agent_config = from_dict(kind, chosen.agent) if own is None else own
    for train_fields, agent_fields in ((parts.train, parts.settings), (train or {}, settings or {})):
        train_config = from_dict(TrainConfig, train_fields, train_config)
        agent_config = from_dict(kind, agent_fields, agent_config)
    return Setup(name, task_name, train_config, agent_config)


def _preset(agent: str, tasks: str, preset: str | None) -> Preset:
    choices = [name for name in PRESETS if name.split(":")[0] == agent]
    if preset is not None and preset not in choices:
        raise unknown_name(f"preset of {agent}", preset, choices)
    return PRESETS.get(preset or f"{agent}:{tasks}", Preset("the agent's defaults"))


def _agree(part: str, given: str | None, in_file: str | None, file: Path | str) -> str | None:
    if given is not None and in_file is not None and given != in_file:
        raise ConfigError(f"{part} is {in_file!r} in {file}, got {given!r} as well. Leave one of them out.")
    return given if in_file is None else in_file


@dataclass(frozen=True)
class _Parts:
    """What a file says; None and empty where it says nothing."""

    agent: str | None = None
    tasks: str | None = None
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    not_found: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class _Given:
    """What the user said of the modules that a file names.

    Attributes:
        names: agent and tasks that the user named.
        trust: whether all of the file's modules may be imported.
        folder: of the run that the file belongs to.
    """

    names: Collection[str | None]
    trust: bool
    folder: Path | None = None

    def check(self, name: str, part: str, where: Path | str) -> None:
        """Refuse a module that may not be imported."""
        require_trust(name, part, where, trusted=self.trust or names_module_of(name, self.names), folder=self.folder)


def _read_parts(content: Mapping[str, Any], where: Path | str, agent: str | None, given: _Given) -> _Parts:
    """The parts of a config file's content; ``agent`` is its agent, should it name none."""

    def section(key: str) -> Mapping[str, Any]:
        if not isinstance(content.get(key, {}), Mapping):
            raise ConfigError(f"{key} in {where} must be an object of settings, got {content[key]!r}.")
        return {str(name): value for name, value in content.get(key, {}).items()}

    not_found = section("not_found")
    for key in ("agent", "tasks"):
        if not isinstance(content.get(key, ""), str) and not (content[key] is None and key in not_found):
            raise ConfigError(f"{key} in {where} must be a name, got {content[key]!r}.")
    for key in ("agent", "tasks"):
        if name := content.get(key):
            given.check(name, key, where)
    agent = content.get("agent") or agent
    if agent is not None:
        given.check(agent, "agent", where)
        load_agent(agent)
    known = ["agent", "tasks", "train", "settings", *([agent] if agent else [])]
    for key in content:
        if key not in [*known, "not_found"]:
            raise unknown_name(f"key in {where}", str(key), known)
    if agent in content and "settings" in content:
        raise ConfigError(
            f"{where} gives the agent's settings twice, as {agent!r} and as 'settings'; keep one of them."
        )
    return _Parts(
        content.get("agent"),
        content.get("tasks"),
        section("train"),
        section(agent if agent is not None and agent in content else "settings"),
        not_found,
    )
