"""Agents of the user's own, settings from files, and runs that scripts made: the command line takes them all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.command_line import metarl, refused

from metarl import TrainConfig, make
from metarl.agents import AGENTS, GradientAgent, MAMLTRPOConfig
from metarl.experiments import Setup
from metarl.networks.mlp import MLPPolicy
from metarl.origin import find_names
from metarl.runs.logger import read_metrics

_SMALL = ["--num-iterations", "2", "--meta-batch-size", "3", "--eval-tasks", "3", "--checkpoint-every", "1"]

_AGENTS = """
import dataclasses
from typing import ClassVar

import torch
from metarl import Action, Agent, AgentConfig


class Arm(Agent):
    def __init__(self, config, spec, device, seed):
        super().__init__(spec, device, num_adaptations=1, rollouts_per_task=config.rollouts_per_task)
        self.config = config
        self.weights = torch.nn.Linear(1, config.width)

    def components(self):
        return {"weights": self.weights}

    def begin(self, num_tasks):
        return torch.full((num_tasks,), -1)

    def act(self, state, timestep, deterministic=False):
        shape = timestep.valid.shape
        guess = torch.randint(self.spec.action_dim, shape, generator=self.generator)
        known = state[:, None].expand(shape)
        return Action(torch.where(known < 0, guess, known), torch.zeros(shape)), state

    def adapt(self, state, rollout):
        pulled = rollout.actions[..., None] == torch.arange(self.spec.action_dim)
        return ((rollout.rewards[..., None] * pulled).sum((1, 2)) / pulled.sum((1, 2)).clamp(min=1)).argmax(-1)

    def meta_update(self, trial):
        return {}


@dataclasses.dataclass(frozen=True)
class ArmConfig(AgentConfig):
    \"\"\"Plays the best arm.\"\"\"

    when: ClassVar[str] = "arms differ"
    adapts_by: ClassVar[str] = "episode"

    rollouts_per_task: int = 5
    \"\"\"Episodes of each task.\"\"\"
    width: int = 2
    \"\"\"Weights that it has.\"\"\"

    @property
    def num_adaptations(self):
        return 1

    def build(self, spec, device, seed):
        return Arm(self, spec, device, seed)


@dataclasses.dataclass(frozen=True)
class Told(ArmConfig):
    told_task: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Clashing(ArmConfig):
    seed: int = 3
"""

_SCRIPT = """
import dataclasses
import torch
from metarl import RunFolder, TrainConfig, make, train
{imports}

{tasks}

if __name__ == "__main__":
    tasks = {chosen}
    agent = {agent}.build(tasks.spec, torch.device("cpu"), 1)
    {then}
    config = TrainConfig(num_iterations=2, meta_batch_size=3, eval_tasks=3)
    train(agent, tasks, config, RunFolder.create("runs", "mine"))
"""
_OWN = 'short = dataclasses.replace(make("bandit"), id="my/short", horizon=5)'
_RUN = Path("runs/mine")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def mine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of agents in the current folder, whose name is new for every test, since modules stay imported."""
    name = f"agents_{abs(hash(request.node.nodeid))}"
    Path(f"{name}.py").write_text(_AGENTS)
    return name


def _script(
    name: str, agent: str, imports: str = "", tasks: str = "", chosen: str = 'make("bandit")', then: str = ""
) -> None:
    """Run a script that trains, in a process of its own."""
    text = _SCRIPT.format(agent=agent, imports=imports, tasks=tasks, chosen=chosen, then=then or "pass")
    Path(f"{name}.py").write_text(text)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, f"{name}.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def _assert_taken_by_every_command(run: Path, capsys: pytest.CaptureFixture[str], done: int = 2) -> None:
    assert metarl(f"evaluate {run} --num-tasks 3 --trust-tasks") == 0
    assert metarl(f"plot {run}") == 0
    assert metarl(f"train --resume {run} --num-iterations {done + 1} --trust-tasks") == 0
    assert [row["iteration"] for row in read_metrics(run / "metrics.jsonl")] == list(range(done + 1))
    assert "cannot be rendered" in refused(f"render {run} --trust-tasks", capsys)  # Bandits have no looks.


# Agents of the user's own -------------------------------------------------------------------------------------------


def test_an_agent_of_the_user_s_own_is_trained_and_taken_by_every_command(
    mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metarl(["train", f"{mine}:ArmConfig", "bandit", *_SMALL, "--rollouts-per-task", "4"]) == 0
    assert "in episode:" in capsys.readouterr().out
    (run,) = Path("runs").iterdir()
    assert run.name == f"{mine}-ArmConfig-bandit-seed1"
    config = json.loads((run / "config.json").read_text())
    assert config["agent"] == f"{mine}:ArmConfig" and config[f"{mine}:ArmConfig"] == {
        "rollouts_per_task": 4,
        "width": 2,
    }
    _assert_taken_by_every_command(run, capsys)
    for path in run.rglob("*"):
        assert ":" not in path.name


def test_an_agent_that_is_told_its_task_sees_it(mine: str) -> None:
    assert metarl(["train", f"{mine}:Told", "bandit", *_SMALL]) == 0
    assert metarl(f"evaluate runs/{mine}-Told-bandit-seed1 --num-tasks 3") == 0


def test_help_shows_the_settings_of_the_user_s_own_agent(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert metarl(f"train {mine}:ArmConfig bandit --help") == 0
    printed = capsys.readouterr().out
    assert "--width INT" in printed and "Weights that it has." in printed


def test_bad_agents_of_the_user_s_own_are_named(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (f"train {mine}:Arm bandit", "expected a concrete subclass of AgentConfig, found the class Arm"),
        (f"train {mine}:ArmConfg bandit", f"What {mine} has of that kind: ArmConfig, Told, Clashing"),
        ("train absent:Config bandit", "cannot import the module 'absent' of 'absent:Config'"),
        (f"train {mine}:Clashing bandit", "Clashing.seed would be the flag --seed, which metarl train has already"),
        (f"train {mine}:ArmConfig bandit --width 0.5", "--width"),
    ):
        assert message in refused(words, capsys), words


# Settings from files ------------------------------------------------------------------------------------------------


def test_what_print_config_prints_is_taken_by_config_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "rl2", "bandit", *_SMALL, "--hidden-size", "4", "--num-epochs", "1", "--learning-rate", "1e-05"]
    assert metarl([*words, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert not Path("runs").exists()
    for name in ("mine.yaml", "mine.json"):
        Path(name).write_text(printed)
        assert metarl(f"train --config {name} --print-config") == 0
        assert capsys.readouterr().out == printed
    assert metarl("train --config mine.yaml --seed 5") == 0
    capsys.readouterr()
    config = json.loads(Path("runs/rl2-bandit-seed5/config.json").read_text())
    expected = json.loads(printed)
    expected["train"]["seed"] = 5
    assert config == expected
    # A run's own config.json is such a file.
    assert metarl("train --config runs/rl2-bandit-seed5/config.json --print-config") == 0
    assert json.loads(capsys.readouterr().out) == expected


def test_a_file_may_hold_a_part_and_flags_win(capsys: pytest.CaptureFixture[str]) -> None:
    Path("part.yaml").write_text("tasks: cartpole-goal\nsettings:\n  inner_lr: 2e-1\n  discount: 0.9\n")
    assert metarl("train --agent maml-trpo --config part.yaml --discount 0.8 --print-config") == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["agent"], content["tasks"]) == ("maml-trpo", "cartpole-goal")
    settings = content["maml-trpo"]
    assert (settings["inner_lr"], settings["discount"], settings["extra_step_factor"]) == (0.2, 0.8, 0.25)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train rl2 bandit --config absent.yaml", "cannot read the config absent.yaml: No such file or directory"),
        ("train rl2 bandit --config file.yaml", "agent is 'maml-trpo' in file.yaml, got 'rl2' as well"),
        ("train maml-trpo cartpole --config file.yaml", "tasks is 'bandit' in file.yaml, got 'cartpole' as well"),
        ("train --config bad.yaml", "unknown key in bad.yaml 'trian'. Did you mean 'train'?"),
        ("train --config part.yaml", "agent and tasks missing, and part.yaml does not say"),
        ("train rl2 bandit --config twice.yaml", "the config twice.yaml has 'train' twice in one mapping"),
        ("train rl2 bandit --config twice.json", "the config twice.json has 'seed' twice in one mapping"),
        ("train --agent rl2", "tasks missing."),
        ("train rl2 bandit --agent rl2", "agent and tasks are 'rl2 bandit' already; leave out --agent and --tasks"),
        ("train --resume x --config part.yaml", "--config part.yaml is for new runs"),
        ("train rl2 bandits --print-config", "unknown task distribution 'bandits'"),
        ("train rl2 bandit --config", "Missing value for argument '--config'"),
    ],
)
def test_bad_files_and_flags_are_named(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file.yaml").write_text("agent: maml-trpo\ntasks: bandit\n")
    Path("bad.yaml").write_text("trian: {}\n")
    Path("part.yaml").write_text("train: {seed: 3}\n")
    Path("twice.yaml").write_text("train: {seed: 3}\nsettings: {}\ntrain: {num_iterations: 5}\n")
    Path("twice.json").write_text('{"train": {"seed": 3, "seed": 4}}')
    assert message in refused(words, capsys)
    assert not Path("runs").exists()


# Runs that scripts made ---------------------------------------------------------------------------------------------


def test_a_script_s_run_is_taken_by_every_command(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = f"script_{mine}"
    _script(script, f"{mine}.ArmConfig(width=3)", f"import {mine}", _OWN, "short")
    config = json.loads((_RUN / "config.json").read_text())
    assert (config["agent"], config["tasks"]) == (f"{mine}:ArmConfig", f"{script}:short")
    assert config[f"{mine}:ArmConfig"]["width"] == 3
    _assert_taken_by_every_command(_RUN, capsys)


def test_a_script_s_run_of_metarl_s_own_agent_and_tasks_is_as_the_command_line_s(
    mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _script(f"script_{mine}", "RL2Config(hidden_size=4, num_epochs=1)", "from metarl.agents import RL2Config")
    config = json.loads((_RUN / "config.json").read_text())
    assert (config["agent"], config["tasks"]) == ("rl2", "bandit") and "not_found" not in config
    _assert_taken_by_every_command(_RUN, capsys)
    assert metarl(f"train --config {_RUN}/config.json --seed 2") == 0


def test_what_a_script_s_run_cannot_name_is_asked_for(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Tasks that have a name only below `if __name__ == "__main__":` are not there when the script is imported.
    chosen = _OWN.split("= ", 1)[1]
    _script(f"script_{mine}", f"{mine}.ArmConfig(width=3)", f"import {mine}", chosen=chosen, then="agent.config = None")
    before = (_RUN / "config.json").read_bytes()
    assert metarl(f"plot {_RUN}") == 0
    for command in ("evaluate", "render", "train --resume"):
        text = refused(f"{command} {_RUN}", capsys)
        assert "does not name the agent: its class, Arm, carries no config to build it from" in text
        assert "Name it with --agent module:MyConfig" in text
        text = refused(f"{command} {_RUN} --agent {mine}:ArmConfig", capsys)
        assert "does not name the tasks: the distribution 'my/short' is not one of metarl's own" in text
        assert "Name them with --tasks module:pendulums" in text
    Path(f"tasks_{mine}.py").write_text(f"import dataclasses\nfrom metarl import make\n{_OWN}\n")
    given = f"--agent {mine}:ArmConfig --tasks tasks_{mine}:short"
    # Its settings were recorded nowhere: those of the default do not fit what was saved, and the run stays as it was.
    assert "does not fit this agent" in refused(f"train --resume {_RUN} {given} --num-iterations 3", capsys)
    assert (_RUN / "config.json").read_bytes() == before
    assert metarl(f"train --resume {_RUN} {given} --num-iterations 3 --width 3") == 0
    _assert_taken_by_every_command(_RUN, capsys, done=3)
    assert "the run's agent is" in refused(f"evaluate {_RUN} --agent rl2", capsys)
    assert "the run's tasks are" in refused(f"train --resume {_RUN} --tasks bandit", capsys)


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ("agent.weights = torch.nn.Sequential(agent.weights)", "weights is a Linear there and a Sequential here"),
        ("agent.num_eval_adaptations = 9", r"num_eval_adaptations is \d there and 9 here"),
        ("agent.weights = torch.nn.Linear(7, 2)", "its parameters do not fit: "),
        ("agent.begin = lambda num_tasks: torch.full((num_tasks,), 1)", "with the same parameters it acts otherwise"),
    ],
)
def test_an_agent_that_its_config_would_not_build_is_not_recorded_as_if_it_would(
    mine: str, capsys: pytest.CaptureFixture[str], then: str, told: str
) -> None:
    _script(f"script_{mine}", f"{mine}.ArmConfig()", f"import {mine}", then=then)
    text = refused(f"evaluate {_RUN}", capsys)
    assert re.search(f"builds another agent: {told}", text), text


def test_an_agent_with_another_network_than_its_config_s_has_no_name() -> None:
    """What it would be opened as has parameters of the same shapes, and another activation."""
    tasks, config = make("navigation-2d"), MAMLTRPOConfig(hidden_sizes=(4,))
    for activation, named in (("tanh", "maml-trpo"), ("relu", None)):
        policy = MLPPolicy(tasks.spec, (4,), activation)
        agent = GradientAgent(config, tasks.spec, torch.device("cpu"), 1, policy=policy)
        found = find_names(agent, tasks, TrainConfig())
        assert found["agent"] == named
    assert "with the same parameters it acts otherwise" in found["not_found"]["agent"]


@pytest.mark.parametrize("tasks", ["bandit", "navigation-2d"])
@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_of_metarl_s_own_has_its_name(name: str, tasks: str) -> None:
    setup = Setup(name, tasks, TrainConfig(device="cpu"), AGENTS[name]())
    agent = setup.build()
    with torch.no_grad():
        for tensor in agent.named_tensors().values():
            if tensor.is_floating_point():
                tensor += 0.1
    found = find_names(agent, setup.distribution, setup.train_config)
    assert found["agent"] == name, found["not_found"]


def test_a_run_whose_module_is_gone_says_so(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    _script(f"script_{mine}", f"{mine}.ArmConfig()", f"import {mine}")
    Path(f"{mine}.py").unlink()
    shutil.rmtree("__pycache__", ignore_errors=True)
    assert f"cannot import the module '{mine}'" in refused(f"evaluate {_RUN}", capsys)


# What is safe to open -----------------------------------------------------------------------------------------------

_PAYLOAD = """
from pathlib import Path
import dataclasses
from metarl import make
Path("exploded").touch()
tasks = dataclasses.replace(make("bandit"), id="mine")
"""
_COMMANDS = ("evaluate", "render", "train --resume")


def _rewrite(run: Path, **parts: object) -> None:
    content = json.loads((run / "config.json").read_text())
    if "agent" in parts:
        content[str(parts["agent"])] = content.pop(content["agent"])
    (run / "config.json").write_text(json.dumps(content | parts))


@pytest.fixture
def shared() -> Path:
    """A run that somebody else made; the folder could be called as a package is."""
    assert metarl(["train", "rl2", "bandit", *_SMALL, "--hidden-size", "4", "--num-epochs", "1"]) == 0
    return Path("runs/rl2-bandit-seed1").rename("shared_run")


@pytest.mark.parametrize("part", ["agent", "tasks"])
@pytest.mark.parametrize("trusting", ["", "--trust-tasks", "named"])
@pytest.mark.parametrize("inside", ["payload", "deep.er.payload", "linked"])
def test_nothing_inside_a_run_folder_is_ever_imported(
    shared: Path, part: str, trusting: str, inside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"shared_run.{inside}:tasks"
    module = (shared / inside.replace(".", "/")).with_suffix(".py")
    module.parent.mkdir(parents=True, exist_ok=True)
    if inside == "linked":
        Path("elsewhere.py").write_text(_PAYLOAD)
        module.symlink_to("../elsewhere.py")
    else:
        module.write_text(_PAYLOAD)
        (module.parent / "__init__.py").write_text(_PAYLOAD)
    _rewrite(shared, **{part: name})
    option = f"--{part} {name}" if trusting == "named" else trusting
    for command in _COMMANDS:
        assert f"lies inside the run folder {shared.absolute()}" in refused(f"{command} {shared} {option}", capsys)
    assert metarl(f"plot {shared}") == 0
    assert not Path("exploded").exists()


def test_a_module_in_a_run_folder_that_is_the_working_directory_is_refused(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shared)
    Path("payload_here.py").write_text(_PAYLOAD)
    _rewrite(Path(), tasks="payload_here:tasks")
    assert "lies inside the run folder" in refused("evaluate . --trust-tasks", capsys)
    assert "lies inside the run folder" in refused("evaluate . --tasks payload_here:tasks", capsys)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("part", ["agent", "tasks"])
def test_a_module_that_only_the_run_names_is_imported_on_request_alone(
    shared: Path, part: str, mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"beside_{part}"
    Path(f"{module}.py").write_text(_PAYLOAD)
    _rewrite(shared, **{part: f"{module}:tasks"})
    for command in (*(f"{command} {shared}" for command in _COMMANDS), f"train --config {shared}/config.json"):
        text = refused(command, capsys)
        assert f"names the {part} '{module}:tasks'" in text and f"{module}.py) runs its code" in text
        assert f"add --{part} {module}:tasks, or --trust-tasks" in text
    assert not Path("exploded").exists()
    metarl(f"evaluate {shared} --trust-tasks")  # Neither is what the run was trained with, but both are imported.
    assert Path("exploded").exists()


def test_a_module_whose_other_tasks_are_named_is_trusted(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"tasks_{mine}"
    Path(f"{name}.py").write_text(f"import dataclasses\nfrom metarl import make\n{_OWN}\nother = short\n")
    assert metarl(["train", f"{mine}:ArmConfig", f"{name}:short", *_SMALL]) == 0
    (run,) = Path("runs").iterdir()
    for module in (mine, name):
        sys.modules.pop(module)
    own = f"--agent {mine}:ArmConfig"
    assert "the run's tasks are" in refused(f"train --resume {run} {own} --tasks {name}:other", capsys)
    assert name not in sys.modules
    assert metarl(f"evaluate {run} {own} --tasks {name}:other --num-tasks 3") == 0


def test_a_task_that_json_cannot_give_is_refused_with_one_that_is_drawn(
    mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = "@dataclasses.dataclass(frozen=True)\nclass Shelf:\n    place: int\n"
    sample = "sample=lambda rng: Shelf(int(rng.integers(9)))"
    name = f"shelves_{mine}"
    Path(f"{name}.py").write_text(
        f"import dataclasses\nfrom metarl import make\n{fields}\n{_OWN}\n"
        f"shelves = dataclasses.replace(short, {sample})\n"
    )
    assert metarl(["train", "rl2", "bandit", *_SMALL]) == 0
    (run,) = Path("runs").iterdir()
    text = refused(["evaluate", str(run), "--tasks", f"{name}:shelves", "--task", '{"place": 3}'], capsys)
    assert "a task of my/short is a Shelf, such as Shelf(place=" in text and "JSON has no word for" in text


def test_a_damaged_checkpoint_of_a_users_own_parts_comes_with_a_command_that_works(
    mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metarl(["train", f"{mine}:ArmConfig", "bandit", *_SMALL]) == 0
    (run,) = Path("runs").iterdir()
    newest = sorted((run / "checkpoints").glob("iteration-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    sys.modules.pop(mine)
    text = refused(f"evaluate {run} --trust-tasks", capsys)
    (command,) = re.findall(r"resume from it with: metarl (train .*?safetensors)", text)
    sys.modules.pop(mine)
    assert metarl(command) == 0


def test_a_run_that_goes_on_stays_where_it_is(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert metarl(["train", "rl2", "bandit", *_SMALL]) == 0
    (run,) = Path("runs").iterdir()
    text = refused(f"train --resume {run} --runs elsewhere --num-iterations 3", capsys)
    assert "--runs elsewhere is for new runs; this one goes on in " in text


def test_what_training_prints_says_that_the_run_needs_modules(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert metarl(["train", f"{mine}:ArmConfig", "bandit", *_SMALL]) == 0
    run = f"runs/{mine}-ArmConfig-bandit-seed1"
    assert f"metarl evaluate {run} --trust-tasks --num-tasks" in capsys.readouterr().out
