"""One function leads from names, preset, file and settings to a configured experiment; each wins over those before."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metarl.agents import MAMLTRPOConfig, RL2Config
from metarl.config import TrainConfig
from metarl.errors import ConfigError
from metarl.experiments import Experiment, Setup, resolve
from metarl.experiments.presets import steps_per_iteration
from metarl.runs.config_file import read_config_file
from metarl.runs.logger import read_metrics
from metarl.tasks.registry import make


def _file(folder: Path, content: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def test_what_comes_later_wins(tmp_path: Path) -> None:
    file = _file(tmp_path, "train: {eval_every: 7, eval_tasks: 9}\nmaml-trpo: {inner_lr: 0.3, discount: 0.5}")
    setup = resolve("maml-trpo", "cartpole-goal", file=file, train={"eval_tasks": 8}, settings={"discount": 0.6})
    train, agent = setup.train_config, setup.agent_config
    assert isinstance(agent, MAMLTRPOConfig)
    assert train.checkpoint_every == TrainConfig().checkpoint_every  # default
    assert train.num_iterations == 60 and agent.extra_step_factor == 0.25  # preset
    assert train.eval_every == 7 and agent.inner_lr == 0.3  # file
    assert train.eval_tasks == 8 and agent.discount == 0.6  # single settings


@pytest.mark.parametrize("name", ["mine.json", "mine.yaml", "mine"])
def test_a_run_s_config_is_read_whatever_its_file_is_called(tmp_path: Path, name: str) -> None:
    setup = resolve("rl2", "cartpole", train={"seed": 4}, settings={"learning_rate": 1e-5, "encoder_sizes": (3, 4)})
    file = _file(tmp_path, json.dumps(setup.to_json(), indent=2), name)
    assert resolve(file=file) == resolve("rl2", file=file) == resolve("rl2", "cartpole", file=file) == setup


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("10", 10),
        ("0", 0),
        ("-7", -7),
        ("+1_000", 1000),
        ("0x1F", 31),
        ("1.50", 1.5),
        ("010.5", 10.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("-2.E5", -2e5),
        ("1_0.5e+1", 105.0),
        ("010", "010"),
        ("008", "008"),
        ("-012", "-012"),
        ("1:40", "1:40"),
        ("1:40.5", "1:40.5"),
        ("0b11", "0b11"),
        ("0o17", "0o17"),
        ("1e", "1e"),
        ("yes", True),
    ],
)
def test_a_number_of_a_yaml_file_is_the_one_that_stands_there_or_none(tmp_path: Path, written: str, meant: Any) -> None:
    (read,) = read_config_file(_file(tmp_path, f"a: {written}")).values()
    assert (type(read), read) == (type(meant), meant)


@pytest.mark.parametrize("number", ["010", "1:40"])
def test_what_yaml_takes_for_another_number_is_refused(tmp_path: Path, number: str) -> None:
    file = _file(tmp_path, f"agent: rl2\ntasks: bandit\ntrain: {{num_iterations: {number}}}")
    with pytest.raises(ConfigError, match=f'TrainConfig.num_iterations must be of the type int, got "{number}"'):
        resolve(file=file)


def test_yaml_is_read_as_people_write_it(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        "agent: maml-trpo\ntasks: bandit\n"
        "train:\n  seed: 3  # a comment\n"
        "settings:\n  inner_lr: 1e-3\n  max_kl: 1\n  hidden_sizes: [8, 8]\n  cg_damping: 5E-06\n",
    )
    assert resolve(file=file) == Setup(
        "maml-trpo",
        "bandit",
        TrainConfig(seed=3),
        MAMLTRPOConfig(inner_lr=0.001, max_kl=1.0, hidden_sizes=(8, 8), cg_damping=5e-6),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"must hold a mapping with agent, tasks, train, \.\.\., got nothing"),
        ("[1]", "must hold a mapping .*, got list"),
        ("a: [", r"mine\.yaml is neither JSON nor YAML: while parsing .* line 1"),
        ("!!python/object/apply:os.getcwd []", "is neither JSON nor YAML: could not determine a constructor"),
        ("trian: {}", r"unknown key in .*mine\.yaml 'trian'\. Did you mean 'train'\? Valid choices: agent, maml-trpo,"),
        ("rl2: {}", r"unknown key in .*mine\.yaml 'rl2'"),
        ("train: {sead: 3}", r"unknown field of TrainConfig 'sead'\. Did you mean 'seed'\?"),
        ("settings: {iner_lr: 3}", r"unknown field of MAMLTRPOConfig 'iner_lr'\. Did you mean 'inner_lr'\?"),
        ("train: {seed: 1.5}", r"TrainConfig\.seed must be of the type int, got 1\.5"),
        ("settings: {inner_lr: fast}", r'MAMLTRPOConfig\.inner_lr must be of the type float, got "fast"'),
        ("settings: {inner_lr: -1}", r"MAMLTRPOConfig\.inner_lr must be a finite number above 0, got -1"),
        ("train: {1: 2}", "unknown field of TrainConfig '1'"),
        ("settings: {inner_lr: 2020-01-01}", r'MAMLTRPOConfig\.inner_lr must be of the type float, got "2020-01-01"'),
        ("train: 5", r"train in .*mine\.yaml must be an object of settings, got 5"),
        ("settings: [1]", r"settings in .*mine\.yaml must be an object of settings, got \[1\]"),
        ("settings: {}\nmaml-trpo: {}", "the agent's settings twice, as 'maml-trpo' and as 'settings'"),
        ("agent: rl2", r"agent is 'rl2' in .*mine\.yaml, got 'maml-trpo' as well\. Leave one of them out"),
        ("tasks: cartpole", r"tasks is 'cartpole' in .*mine\.yaml, got 'bandit' as well"),
        ("agent: rl3", "unknown agent 'rl3'"),
        ("agent: 5", r"agent in .*mine\.yaml must be a name, got 5"),
        ("tasks:", r"tasks in .*mine\.yaml must be a name, got None"),
    ],
)
def test_a_file_that_cannot_be_taken_says_why(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("maml-trpo", "bandit", file=_file(tmp_path, content))


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "absent.yaml", r"cannot read the config .*absent\.yaml: No such file or directory"),
        (tmp_path, "cannot read the config .*: Is a directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve("rl2", "bandit", file=path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot read the config .*binary: it is no text"):
        resolve("rl2", "bandit", file=tmp_path / "binary")
    with pytest.raises(ConfigError, match=r"cut\.json is neither JSON nor YAML: Expecting .* line 1"):
        resolve("rl2", "bandit", file=_file(tmp_path, '{"train": ', "cut.json"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs an agent and tasks; agent and tasks missing"),
        ({"agent": "rl2"}, r"tasks missing\."),
        ({"tasks": "bandit"}, r"agent missing\."),
    ],
)
def test_an_experiment_without_agent_or_tasks_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(**given)
    with pytest.raises(ConfigError, match=r"missing, and .*mine\.yaml does not say"):
        resolve(**given, file=_file(tmp_path, "train: {seed: 2}"))


def test_a_script_hands_in_a_config_and_a_distribution() -> None:
    setup = resolve(RL2Config(hidden_size=4), make("bandit"), train={"seed": 2})
    # The config brings all its settings; what is not given of the outer loop is the preset's.
    assert setup == Setup(
        "rl2", "bandit", resolve("rl2", "bandit", train={"seed": 2}).train_config, RL2Config(hidden_size=4)
    )
    assert resolve(setup.agent_config, "bandit", settings={"hidden_size": 5}).agent_config == RL2Config(hidden_size=5)


def test_what_has_no_name_is_refused_with_what_to_do_instead() -> None:
    @dataclass(frozen=True)
    class Hidden(RL2Config):
        """A class that another process cannot import, as those of a notebook."""

    unnamed = dataclasses.replace(make("bandit"), id="mine/bandit")
    for agent, tasks, what in (
        ("rl2", unnamed, "the distribution 'mine/bandit' is not"),
        (Hidden(), "bandit", "Hidden is not"),
    ):
        with pytest.raises(ConfigError, match=f"{what} .*%%writefile my_tasks.py.*import.*metarl.train\\(agent"):
            resolve(agent, tasks)


def test_an_experiment_of_a_script_trains_and_loads(tmp_path: Path) -> None:
    small = {"num_iterations": 2, "meta_batch_size": 3, "eval_tasks": 2, "device": "cpu"}
    setup = resolve("rl2", "bandit", train=small, settings={"hidden_size": 4, "num_epochs": 1})
    experiment = Experiment.start(setup, tmp_path)
    assert experiment.run.path == tmp_path / "rl2-bandit-seed1"
    assert experiment.train()
    agent, iteration = experiment.load()
    assert iteration == 2 and agent.config == setup.agent_config
    assert len(read_metrics(experiment.run.metrics)) == 2


@pytest.mark.parametrize(
    ("agent", "tasks", "train", "settings", "message"),
    [
        ("rl2", "bandits", {}, {}, "unknown task distribution 'bandits'"),
        ("rl2", "Pendulum-v1", {}, {}, "'Pendulum-v1' is the id of one Gymnasium environment, not a distribution of"),
        ("rl2", "reach-v3", {}, {}, "unknown task distribution 'reach-v3'. Did you mean 'ml1/reach-v3'?"),
        ("maml-trpo", "ml10", {"meta_batch_size": 7}, {"hidden_sizes": (4,)}, "meta_batch_size|meta-batch"),
    ],
)
def test_what_cannot_work_fails_before_there_is_a_folder(
    tmp_path: Path, agent: str, tasks: str, train: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.start(resolve(agent, tasks, train=train, settings=settings), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("agent", "settings", "episodes"),
    [
        ("maml-trpo", {"rollouts_per_task": 4, "num_inner_steps": 2}, 4 * 3),
        ("rl2", {"episodes_per_trial": 5}, 5),
        ("pretrained", {"rollouts_per_task": 4}, 4),
        ("random", {"rollouts_per_task": 3}, 3),
    ],
)
def test_the_steps_of_an_iteration_are_what_training_counts(
    agent: str, settings: dict[str, Any], episodes: int, tmp_path: Path
) -> None:
    small = {"num_iterations": 1, "meta_batch_size": 3, "eval_tasks": 2, "device": "cpu"}
    setup = resolve(agent, "bandit", train=small, settings=settings)
    assert setup.steps_per_iteration == steps_per_iteration(setup.agent_config, 3, 10) == 3 * episodes * 10
    experiment = Experiment.start(setup, tmp_path)
    experiment.train()
    assert read_metrics(experiment.run.metrics)[-1]["env_steps"] == setup.steps_per_iteration
