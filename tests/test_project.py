"""The tree keeps its shape: complete wheels, and imports that only go down the floors."""

from __future__ import annotations

import ast
import configparser
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

TOP_FOLDERS = {"metarl": "metarl", "envs": "metarl.envs", "agents": "metarl.agents", "benchmarks": "metarl.benchmarks"}
"""Folders of the repository by the package they install as."""

ROOMS = {
    "base": (1, "types errors seeding"),
    "functional": (2, "functional"),
    "networks": (2, "networks"),
    "adaptation": (3, "adaptation"),
    "fewshot": (4, "fewshot"),
    "tasks": (4, "agent array_env buffers digest gym_env opengl reveal tasks workers"),
    "core": (
        5,
        "agent_check checkpoint collector config evaluator logger plotting replay run_folder testing trainer trial "
        "video",
    ),
    "envs": (5, "envs"),
    "agents": (5, "agents"),
    "top": (
        6,
        "__init__ __main__ benchmarks cli evaluate_command official official_scores presets render_command report "
        "session train_command",
    ),
}
"""Floor and members (modules or packages of metarl) by room. A module sees its own room and all lower floors."""

FEWSHOT_SEES = {"base", "networks", "adaptation", "fewshot"}


def _room(module: str) -> str:
    parts = module.split(".")
    member = parts[1] if len(parts) > 1 else "__init__"
    for room, (_, members) in ROOMS.items():
        if member in members.split():
            return room
    raise AssertionError(f"{module} has no floor: add {member!r} to ROOMS in tests/test_project.py.")


def _modules() -> dict[str, Path]:
    """Every module of the repository by its import name; a package by its ``__init__.py``."""
    modules = {}
    for folder, package in TOP_FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join([package, *inside]).removesuffix(".__init__")] = path
    return modules


def _imports(source: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of every import of a metarl module, also those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"line {node.lineno}: relative import; import by the full name.")
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in full]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "metarl":
                yield node.lineno, name


def _violations(module: str, source: str, modules: set[str]) -> list[str]:
    room = _room(module)
    found = []
    for line, target in _imports(source, modules):
        other = _room(target)
        lower = ROOMS[other][0] < ROOMS[room][0]
        allowed = other in FEWSHOT_SEES if room == "fewshot" else lower or other == room
        if not allowed:
            found.append(f"{module}, line {line}: {room} must not import {target} ({other}).")
    return found


def test_every_module_imports_only_from_lower_floors() -> None:
    modules = _modules()
    found = [line for name, path in modules.items() for line in _violations(name, path.read_text(), set(modules))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "forbidden"),
    [
        ("metarl.types", "import metarl.tasks", "metarl.tasks"),
        ("metarl.functional.returns", "from metarl.networks.mlp import MLP", "metarl.networks.mlp"),
        ("metarl.adaptation.inner_loop", "from metarl import agent", "metarl.agent"),
        ("metarl.agents.maml", "def f():\n    from metarl.envs import bandits", "metarl.envs.bandits"),
        ("metarl.agents.maml", "from metarl import Agent", "metarl"),
        ("metarl.envs", "from metarl.collector import Collector", "metarl.collector"),
        ("metarl.trainer", "import metarl.agents.maml as maml", "metarl.agents.maml"),
        ("metarl.evaluator", "from metarl.cli import main", "metarl.cli"),
        ("metarl.fewshot.learner", "from metarl.functional.returns import gae", "metarl.functional.returns"),
        ("metarl.fewshot.learner", "from metarl.tasks import make", "metarl.tasks"),
    ],
)
def test_the_floor_checker_finds_a_forbidden_import(module: str, source: str, forbidden: str) -> None:
    (message,) = _violations(module, source, {*_modules(), "metarl.agent", "metarl.envs.bandits"})
    assert module in message
    assert f"must not import {forbidden} " in message


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("metarl.trainer", "import torch\nfrom metarl.trial import run_trial\nfrom metarl.agent import Agent"),
        ("metarl.agents.maml", "from metarl.agents import rl2\nfrom metarl.functional.returns import gae"),
        ("metarl.fewshot.learner", "from metarl.networks import MLP\nfrom metarl.errors import ConfigError"),
        ("metarl.benchmarks.speed", "from metarl import envs\nfrom metarl.agents import maml"),
    ],
)
def test_the_floor_checker_accepts_imports_from_below(module: str, source: str) -> None:
    assert _violations(module, source, set(_modules())) == []


def test_the_floor_checker_refuses_relative_imports_and_unknown_modules() -> None:
    with pytest.raises(AssertionError, match="relative import"):
        _violations("metarl.types", "from . import errors", set())
    with pytest.raises(AssertionError, match=r"metarl\.novelty has no floor"):
        _violations("metarl.novelty", "", set())


def test_setup_cfg_lists_every_package_folder() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    assert listed == {name for name, path in _modules().items() if path.name == "__init__.py"}
    for name, path in _modules().items():
        parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
        assert parent in listed, f"{path.relative_to(ROOT)} lies in a folder without __init__.py."


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    # From a copy: building leaves files behind, and stale ones in build/ would slip into the wheel.
    source = tmp_path / "source"
    for folder in TOP_FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "metarl = metarl.cli:main" in archive.read(entry_points).decode()
    expected = {
        name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        for name, path in _modules().items()
    }
    assert packed == {*expected, "metarl/py.typed"}
