"""Names of the form module:attribute lead to an object, and from an object back to its name."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from metarl.agent import AgentConfig
from metarl.agents import AGENTS, MAMLTRPOConfig, RL2Config
from metarl.agents.registry import agent_name, load_agent
from metarl.errors import ConfigError
from metarl.plugins import find_attribute, load_attribute
from metarl.tasks.registry import distribution_name, load_distribution, make, registered

MINE = dataclasses.replace(make("bandit"), sample=lambda rng: 0)
"""Not metarl's bandit, though it has its id."""


@dataclass(frozen=True)
class Mine(RL2Config):
    """An agent of the user's own."""

    my_weight: float = 0.5
    """A setting."""


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_every_agent_and_every_distribution_is_found_by_its_own_name() -> None:
    for name, kind in AGENTS.items():
        assert load_agent(name) is kind and agent_name(kind()) == name
    for name, distribution in registered().items():
        assert load_distribution(name) is distribution and distribution_name(distribution) == name


def test_an_object_of_the_user_s_own_is_found_by_module_and_attribute() -> None:
    assert load_agent(f"{__name__}:Mine") is Mine and agent_name(Mine()) == f"{__name__}:Mine"
    assert distribution_name(MINE) == f"{__name__}:MINE"
    assert load_distribution(f"{__name__}:MINE") is MINE


def test_an_unknown_id_is_told_what_it_may_have_meant() -> None:
    """A module without an attribute, also as the name of its file, or an environment of Gymnasium."""
    Path("pendulums_of_mine.py").write_text("raise RuntimeError('imported')")
    for name in ("pendulums_of_mine", "pendulums_of_mine.py"):
        with pytest.raises(
            ConfigError, match=r"a module pendulums_of_mine: .* are called pendulums_of_mine:attribute\.$"
        ):
            load_distribution(name)
    with pytest.raises(ConfigError, match=r"Pendulum-v1 is a single environment of Gymnasium; .*gymnasium_tasks"):
        load_distribution("Pendulum-v1")
    with pytest.raises(ConfigError, match=r"Tasks of your own: module:attribute, e\.g\. my_tasks:pendulums\.$"):
        load_distribution("pendulums/of-mine")


def test_what_no_module_holds_has_no_name() -> None:
    @dataclass(frozen=True)
    class Hidden(MAMLTRPOConfig):
        """A class inside a function."""

    with pytest.raises(ConfigError, match=r"the class .*Hidden is not held by a module"):
        agent_name(Hidden())
    with pytest.raises(ConfigError, match=r"'bandit' is not one of metarl's own, and no module .* holds it"):
        distribution_name(dataclasses.replace(MINE, horizon=3))
    assert find_attribute(object()) is None


def test_a_class_that_is_no_config_of_an_agent_is_refused_with_those_that_are() -> None:
    for attribute, got in (("Path", "the class Path"), ("MINE", "TaskDistribution"), ("absent", "nothing")):
        with pytest.raises(ConfigError, match=f"expected a concrete subclass of AgentConfig, found {got}") as error:
            load_agent(f"{__name__}:{attribute}")
        assert "MAMLTRPOConfig, RL2Config, Mine" in str(error.value)
    with pytest.raises(ConfigError, match="found the class AgentConfig"):
        load_agent(f"{AgentConfig.__module__}:AgentConfig")
    with pytest.raises(ConfigError, match=r"unknown agent 'rl3'.*Agents of your own: module:attribute"):
        load_agent("rl3")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@dataclass(frozen=True)\nclass Mine(RL2Config):\n    x: int = field(kw_only=True)", "have none: x"),
        ("class Mine(RL2Config):\n    x: int = 3", r"need the decorator @dataclasses\.dataclass\(frozen=True\)"),
    ],
)
def test_a_config_whose_fields_cannot_be_set_is_refused(
    body: str, message: str, request: pytest.FixtureRequest
) -> None:
    module = f"mine_{abs(hash(request.node.name))}"
    head = "from dataclasses import dataclass, field\nfrom metarl.agents import RL2Config\n"
    Path(f"{module}.py").write_text(head + body)
    with pytest.raises(ConfigError, match=message):
        load_agent(f"{module}:Mine")


_SCRIPT = """
import sys
from metarl.plugins import find_attribute, load_attribute

class Thing: pass
thing = Thing()
print(find_attribute(thing))
print(load_attribute("script:thing", "Thing", lambda value: isinstance(value, Thing)) is thing)
print("ran")
"""


def _run(script: Path, folder: Path, module: bool = False) -> list[str]:
    command = [sys.executable, *(["-m", script.stem] if module else [str(script)])]
    result = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_a_script_is_called_by_the_name_by_which_it_can_be_imported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    for module in (False, True):
        assert _run(script, tmp_path, module) == ["script:thing", "True", "ran"]


def test_what_a_script_holds_only_when_it_is_started_has_no_name(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    bound = "from sys import path as found\nfor looped in [[1]]: pass\ndef f():\n    late = 1\nclass C: late = 2\n"
    script.write_text(
        f"from metarl.plugins import find_attribute\n{bound}if __name__ == '__main__':\n    late = [2]\n"
        "    print(*map(find_attribute, (late, looped, f, C)))\n"
    )
    assert _run(script, tmp_path) == ["None", "script:looped", "script:f", "script:C"]


def test_a_script_outside_the_working_directory_has_no_name(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.split("print(load")[0])
    (tmp_path / "elsewhere").mkdir()
    assert _run(script, tmp_path / "elsewhere") == ["None"]


def test_a_script_that_trains_when_it_is_imported_is_told_what_to_do() -> None:
    Path("trains_at_once.py").write_text(
        "from metarl import RunFolder, make\nbandit = make('bandit')\nRunFolder.create('runs', 'x')\n"
    )
    with pytest.raises(
        ConfigError, match=r"makes a run folder while it is imported\. Move that part below `if __name__"
    ):
        load_distribution("trains_at_once:bandit")
    assert not Path("runs").exists()


def test_a_module_is_imported_once() -> None:
    Path("counted.py").write_text("thing = []\n")
    first = load_attribute("counted:thing", "list", lambda value: isinstance(value, list))
    assert load_attribute("counted:thing", "list", lambda value: isinstance(value, list)) is first
