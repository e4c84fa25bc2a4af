"""The notebook runs from top to bottom, as its cells stand there, and is committed without outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def _cells(notebook: Path) -> list[dict[str, Any]]:
    content = json.loads(notebook.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    cells: list[dict[str, Any]] = content["cells"]
    return cells


def test_there_is_a_notebook() -> None:
    assert [path.name for path in NOTEBOOKS] == ["adaptation.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs_and_listed(notebook: Path) -> None:
    cells = _cells(notebook)
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    for cell in cells:
        assert cell["cell_type"] in ("markdown", "code")
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None, cell["id"]
    assert f"[{notebook.name}]({notebook.name})" in (ROOT / "examples/README.md").read_text()


def test_the_notebook_trains_adapts_and_draws(tmp_path: Path) -> None:
    """In a process of its own, one cell after the other in one namespace, as a kernel runs them."""
    code = ["".join(cell["source"]) for cell in _cells(NOTEBOOKS[0]) if cell["cell_type"] == "code"]
    script = tmp_path / "cells.json"
    script.write_text(json.dumps(code))
    run = (
        "import json, sys\n"
        "names = {'__name__': '__main__'}\n"
        "for number, code in enumerate(json.load(open(sys.argv[1]))):\n"
        "    exec(compile(code, f'cell {number}', 'exec'), names)\n"
        "figures = names['plt'].get_fignums()\n"
        "print('figures', len(figures), 'shots', len(names['curve']), 'iteration', names['trained'].iteration)\n"
    )
    environment = {**os.environ, "MPLBACKEND": "Agg", "MUJOCO_GL": "disable"}
    done = subprocess.run(
        [sys.executable, "-c", run, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\n1 adaptations so far; returns \[(\d+\.0, ){9}\d+\.0\]\n", done.stdout), done.stdout
    assert re.search(r"figures \d+ shots 4 iteration 6\n", done.stdout), done.stdout
    assert (tmp_path / "learning.png").stat().st_size > 10_000
    assert len((tmp_path / "runs/poles/metrics.jsonl").read_text().splitlines()) == 6
