"""Small cells of benchmarks, for engines."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metarl.benchmarks.cells import Cell, run_cells
from metarl.benchmarks.engines import Engine
from metarl.runs.checkpoint import state_digest
from metarl.runs.folder import RunFolder


def scores(folder: Path, engine: Engine, num_cells: int = 2, num_iterations: int = 3) -> dict[str, Any]:
    """What small cells score, and digests of their last checkpoints, by the cell's name."""
    train = {"num_iterations": num_iterations, "meta_batch_size": 2, "eval_every": 100, "device": "cpu"}
    train["checkpoint_every"] = 5
    cells = [
        Cell("rl2", "bandit", seed, train, {"hidden_size": 4, "num_epochs": 1}, "small")
        for seed in range(1, num_cells + 1)
    ]
    found = run_cells(cells, folder / "results", folder / "runs", 3, engine=engine)
    return {
        cell.name: (
            {name: score[name] for name in ("returns", "env_steps", "curve", "config")},
            state_digest(RunFolder(folder / "runs" / cell.name).checkpoints.load_latest()[1]["agent"]),
        )
        for cell, score in found.items()
    }


@contextlib.contextmanager
def at_work(folder: Path, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A command that runs cells in ``folder``, once two of them have done an iteration."""
    process = subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        wait_for_lines(folder / "runs", 1)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_lines(runs: Path, num_lines: int, patience: float = 200) -> None:
    """Wait until two runs have logged so many iterations."""
    deadline = time.monotonic() + patience
    while sum(len(path.read_text().splitlines()) >= num_lines for path in runs.glob("*/metrics.jsonl")) < 2:
        assert time.monotonic() < deadline, f"no two runs in {runs} have {num_lines} iterations"
        time.sleep(0.05)


def require_saved(folder: Path) -> None:
    """The last iteration of each of two runs is in its checkpoint, and in its log."""
    runs = RunFolder.find(folder / "runs")
    assert len(runs) == 2
    for run in runs:
        iteration, _ = run.checkpoints.load_latest()
        assert 0 < iteration == len(run.metrics.read_text().splitlines())
