"""Every preset runs, and every setting has one flag and a sentence of help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.agent import AgentConfig
from metarl.agents import AGENTS
from metarl.agents.common.gradient_agent import GradientConfig
from metarl.cli.train import Source, TrainOptions
from metarl.config import TrainConfig
from metarl.errors import ConfigError
from metarl.experiments import Experiment, Setup, resolve
from metarl.experiments.presets import PRESETS, steps_per_iteration
from metarl.runs.logger import read_metrics
from metarl.tasks.registry import registered
from metarl.types import Spec

_SMALL = {"rollouts_per_task": 2, "hidden_sizes": (4,), "hidden_size": 8, "cg_iterations": 2, "num_epochs": 1}
META_WORLD = Spec(obs_dim=39, action_dim=4, discrete=False, horizon=500)
_LONGEST = 1000
"""Steps; families with longer episodes are only built."""


def _small(config: AgentConfig) -> AgentConfig:
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in _SMALL.items() if name in names})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_as_it_is_and_trains_when_small(tmp_path: Path, name: str) -> None:
    agent, tasks, *variant = name.split(":")
    assert agent in AGENTS
    meta_world = tasks.startswith("ml")  # Asking for its spec would start a simulation, here a hundred times.
    assert tasks in registered()
    spec = META_WORLD if meta_world else registered()[tasks].spec
    asked = name if variant else None  # Without a variant it is what is taken without a word.
    setup = resolve(agent, tasks, preset=asked)
    train_config, agent_config = setup.train_config, setup.agent_config
    assert dataclasses.replace(setup, task_name="another") == resolve(agent, "another", preset=name)
    for field, value in PRESETS[name].train.items():
        assert getattr(train_config, field) == value
    for field, value in PRESETS[name].agent.items():
        assert getattr(agent_config, field) == value
    agent_config.build(spec, torch.device("cpu"), 1)
    if meta_world or tasks.startswith("locomotion/") or spec.horizon > _LONGEST:  # bodies are slow to step
        return
    small = {"device": "cpu", "num_iterations": 1, "meta_batch_size": 2, "eval_tasks": 2}
    setup = dataclasses.replace(resolve(agent, tasks, preset=asked, train=small), agent_config=_small(agent_config))
    experiment = Experiment.start(setup, tmp_path, "run")
    assert experiment.train(lambda _: None)
    assert len(read_metrics(experiment.run.metrics)) == 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_lists_only_what_differs_and_says_where_it_comes_from(name: str) -> None:
    preset = PRESETS[name]
    defaults: tuple[Any, Any] = (TrainConfig(), AGENTS[name.split(":")[0]]())
    for default, changes in zip(defaults, (preset.train, preset.agent), strict=True):
        assert [field for field, value in changes.items() if getattr(default, field) == value] == []
    assert preset.source


@pytest.mark.parametrize("tasks", ["ml1/reach-v3", "ml10", "ml25", "ml45"])
def test_every_gradient_agent_has_maml_s_policy_and_budget_on_meta_world(tasks: str) -> None:
    """None falls back on small networks and 20 episodes without a word; the oracle cannot be told these tasks."""
    gradient = [name for name, kind in AGENTS.items() if issubclass(kind, GradientConfig) and not kind.told_task]
    assert len(gradient) == 10
    maml = resolve("maml-trpo", tasks)
    steps = steps_per_iteration(maml.agent_config, maml.train_config.meta_batch_size, 500)
    budget = steps * maml.train_config.num_iterations
    for name in gradient:
        setup = resolve(name, tasks)
        config = setup.agent_config
        assert isinstance(config, GradientConfig)
        assert (config.hidden_sizes, config.activation, config.rollouts_per_task) == ((512, 512), "tanh", 10)
        assert setup.train_config.meta_batch_size == maml.train_config.meta_batch_size
        each = steps_per_iteration(config, setup.train_config.meta_batch_size, 500)
        assert abs(setup.train_config.num_iterations * each - budget) < max(each, steps), name


def test_maml_s_rollouts_are_doubled_where_the_paper_doubles_them() -> None:
    for tasks, rollouts in (("ant-direction", 40), ("ant-direction-maml", 40), ("ant-velocity", 20)):
        config = resolve("maml-trpo", f"locomotion/{tasks}").agent_config
        assert config.rollouts_per_task == rollouts


def _undocumented(kind: type[Any]) -> list[str]:
    """Fields, also inherited ones, without a string below them."""
    missing = []
    for owner in kind.__mro__[:-1]:
        if not dataclasses.is_dataclass(owner):
            continue
        (body,) = (node.body for node in ast.parse(inspect.getsource(owner)).body if isinstance(node, ast.ClassDef))
        for node, below in zip(body, [*body[1:], ast.Pass()], strict=True):
            documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if (
                isinstance(node, ast.AnnAssign)
                and not documented
                and not ast.unparse(node.annotation).startswith("ClassVar")
            ):
                missing.append(ast.unparse(node.target))
    return missing


@pytest.mark.parametrize("kind", [TrainConfig, *AGENTS.values()])
def test_every_field_is_documented(kind: type[Any]) -> None:
    assert _undocumented(kind) == []
    assert kind.__doc__


@pytest.mark.parametrize("agent", AGENTS)
def test_no_setting_of_an_agent_hides_one_of_the_outer_loop(agent: str) -> None:
    """Flags carry no prefix, and so do the options of the command itself."""
    kinds = (TrainConfig, Source, TrainOptions, AGENTS[agent])
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names))


def test_a_variant_is_taken_where_it_is_asked_for() -> None:
    assert resolve("rl2", "bandit").agent_config.memory == "gru"  # type: ignore[attr-defined]
    asked = resolve("rl2", "bandit", preset="rl2:bandit:transformer").agent_config
    assert asked.memory == "transformer"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"unknown preset of rl2 'rl2:bandit:transformers'\. Did you mean"):
        resolve("rl2", "bandit", preset="rl2:bandit:transformers")


def test_unknown_names_are_refused_with_the_nearest_match() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown agent 'maml-trop'\. Did you mean 'maml-trpo'\? Valid choices: .*rl2"
    ):
        resolve("maml-trop", "bandit")
    with pytest.raises(ConfigError, match=r"unknown preset of rl2 'rl2:bandits'\. Did you mean 'rl2:bandit'\?"):
        resolve("rl2", "bandit", preset="rl2:bandits")
    with pytest.raises(ConfigError, match="unknown preset of rl2 'maml-trpo:navigation-2d'"):
        resolve("rl2", "bandit", preset="maml-trpo:navigation-2d")


def test_tasks_without_a_preset_get_the_defaults() -> None:
    for agent, kind in AGENTS.items():
        assert resolve(agent, "mine:tasks") == Setup(agent, "mine:tasks", TrainConfig(), kind())


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_s_config_comes_back(agent: str) -> None:
    expected = Setup(agent, "bandit", TrainConfig(seed=9), AGENTS[agent]())
    assert Setup.from_json(json.loads(json.dumps(expected.to_json()))) == expected


def test_a_config_that_lacks_a_part_is_refused() -> None:
    whole = Setup("rl2", "bandit", TrainConfig(), AGENTS["rl2"]()).to_json()
    for part in whole:
        with pytest.raises(ConfigError, match="lacks "):
            Setup.from_json({name: value for name, value in whole.items() if name != part})
    with pytest.raises(ConfigError, match="unknown agent 'rl3'"):
        Setup.from_json({**whole, "agent": "rl3", "rl3": {}})


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("agent", ["rl2"], r"agent in config\.json must be a name, got \['rl2'\]"),
        ("tasks", None, r"tasks in config\.json must be a name, got None"),
        ("train", 5, r"train in config\.json must be an object of settings, got 5"),
        ("rl2", "fast", r"rl2 in config\.json must be an object of settings, got 'fast'"),
        ("rl2", {"discount": "high"}, r'RL2Config\.discount must be of the type float, got "high"'),
    ],
)
def test_a_config_with_a_part_of_another_kind_is_refused(part: str, value: object, expected: str) -> None:
    whole = Setup("rl2", "bandit", TrainConfig(), AGENTS["rl2"]()).to_json()
    with pytest.raises(ConfigError, match=expected):
        Setup.from_json({**whole, part: value})
