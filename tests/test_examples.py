"""Every example runs as it stands; what is not installed is skipped."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pages import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {
    "minigrid_tasks": "minigrid",
    "minigrid_hidden_goal": "minigrid",
    "highway_tasks": "highway_env",
    "robotics_tasks": "gymnasium_robotics",
}
SLOW = {*NEEDS, "sweep"}
PRINTS = {
    "deploy": r"return before adaptation \d+\.\d, after it \d+\.\d\naction: [01]\n",
    "own_environment": r"maml-trpo \[\(-\d.*\nrl2 \[\(-\d",
    "adapt_any_module": r"adaptation: 0\.[789]\d+ at first, 0\.[123]\d+ at the end",
    "sweep": r"chance that 0\.5 beats 0\.1 on a task: [01]\.\d\d",
}
"""What some of them print, as expressions; the others leave a run."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else []) for path in EXAMPLES],
)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    for path in EXAMPLES:
        shutil.copy(path, tmp_path)
    ran = subprocess.run(
        [sys.executable, f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "MUJOCO_GL": "disable"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    if name in PRINTS:
        assert re.search(PRINTS[name], ran.stdout), ran.stdout
    else:
        assert list((tmp_path / "runs").glob("*/metrics.jsonl"))


def test_examples_are_short_and_listed() -> None:
    listed = (ROOT / "examples/README.md").read_text()
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 60, path.name
        assert f"[{path.name}]({path.name})" in listed
