"""The tree keeps its shape: complete wheels, and imports that only go down the floors."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from metarl.runs.published import published_names

ROOT = Path(__file__).resolve().parents[1]

TOP_FOLDERS = {"metarl": "metarl", "envs": "metarl.envs", "agents": "metarl.agents", "benchmarks": "metarl.benchmarks"}
"""Folders of the repository by the package they install as."""

FLOORS = (
    "types errors seeding statistics digest plugins distributed version",
    "functional networks runs config",
    "adaptation agent vector plotting",
    "tasks agents fewshot",
    "rollouts envs",
    "evaluation rendering deployment origin",
    "trainer callbacks",
    "testing",
    "experiments",
    "cli benchmarks __init__ __main__",
)
"""Rooms of metarl, folders and the files beside them, from the ground up. A room sees all lower floors.

The rooms of the ground floor see each other too, and so do those of the top.
"""

ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def _room(module: str) -> str:
    parts = module.split(".")
    room = parts[1] if len(parts) > 1 else "__init__"
    assert room in ROOMS, f"{module} has no floor: add {room!r} to FLOORS in tests/test_project.py."
    return room


def _allowed(room: str, other: str) -> bool:
    open_floor = ROOMS[room] == ROOMS[other] and ROOMS[room] in (0, len(FLOORS) - 1)
    return other == room or open_floor or ROOMS[other] < ROOMS[room]


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
    return [
        f"{module}, line {line}: {room} must not import {target} ({_room(target)})."
        for line, target in _imports(source, modules)
        if not _allowed(room, _room(target))
    ]


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
        ("metarl.tasks.registry", "import metarl.envs", "metarl.envs"),
        ("metarl.envs", "from metarl.rollouts.collector import Collector", "metarl.rollouts.collector"),
        ("metarl.trainer", "from metarl.testing import check_agent", "metarl.testing"),
        ("metarl.evaluation.evaluator", "from metarl.cli import main", "metarl.cli"),
        ("metarl.experiments.experiment", "import metarl.benchmarks.cells as cells", "metarl.benchmarks.cells"),
    ],
)
def test_the_floor_checker_finds_a_forbidden_import(module: str, source: str, forbidden: str) -> None:
    (message,) = _violations(module, source, set(_modules()))
    assert module in message
    assert f"must not import {forbidden} " in message


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("metarl.trainer", "import torch\nfrom metarl.rollouts.trial import run_trial\nfrom metarl.agent import Agent"),
        ("metarl.agents.maml", "from metarl.agents import rl2\nfrom metarl.functional.returns import gae"),
        ("metarl.envs.metaworld.vector_env", "from metarl.vector.workers import WorkerPool"),
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


def test_the_library_itself_is_rooms_and_few_files() -> None:
    assert len(list((ROOT / "metarl").glob("*.py"))) <= 13


TORCH_FREE = ("metarl.vector", "metarl.envs.metaworld.worker")
"""What worker processes import: they need no torch, and would pay for loading it, each of them."""


def test_what_workers_import_cannot_reach_torch() -> None:
    modules = [name for name in _modules() if name.startswith(TORCH_FREE)]
    assert len(modules) >= 12
    # A module that is None in sys.modules cannot be imported, however deep below.
    code = "import importlib, sys\nsys.modules['torch'] = None\nfor name in sys.argv[1:]: importlib.import_module(name)"
    result = subprocess.run(
        [sys.executable, "-c", code, *modules],
        env={**os.environ, "MUJOCO_GL": "disable"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_test_of_torch_finds_it() -> None:
    code = "import sys\nsys.modules['torch'] = None\nimport metarl.rollouts.collector"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "import of torch halted" in result.stderr


SLOW_TO_LOAD = ("matplotlib", "scipy.stats", "mujoco", "metaworld", "gymnasium.envs.mujoco", "torch.onnx", "ray")
"""What few commands need, each of which takes half a second or more to load."""


def test_a_command_loads_nothing_large_that_few_commands_need() -> None:
    code = "import sys\nimport metarl.cli.entry\nprint(*(name for name in sys.argv[1:] if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code, *SLOW_TO_LOAD], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


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
    models = {f"metarl/{path.relative_to(ROOT)}" for path in (ROOT / "benchmarks/models").glob("*/**/*.*")}
    assert sum(name.endswith("/model.json") for name in models) == len(published_names())
    assert packed == {*expected, *models, "metarl/py.typed", "metarl/benchmarks/papers.csv"}
