"""Cells of benchmarks run the same in one process and in several; one that fails takes no other with it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.cells import at_work, require_saved, scores
from helpers.jobs import speak
from rich.console import Console

from metarl.benchmarks import adaptation
from metarl.benchmarks.engines import Engine, Job, run_jobs
from metarl.errors import ConfigError, WorkerError


@pytest.mark.timeout(300)
def test_cells_have_the_same_bits_in_one_process_and_in_two(tmp_path: Path) -> None:
    alone = scores(tmp_path / "alone", Engine())
    assert len(alone) == 2
    assert scores(tmp_path / "two", Engine(jobs=2)) == alone


def told(folder: Path, engine: Engine, *words: str) -> tuple[str, bool | WorkerError]:
    """What is printed of jobs, and how they end."""
    result: bool | WorkerError
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=150, file=nowhere)
        try:
            result = run_jobs([Job(word, speak, (folder, word)) for word in words], engine, (folder,), console)
        except WorkerError as error:
            result = error
    return console.export_text(), result


@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", [("raise", "one", "refuse", "two"), ("raise", "die", "one")])
def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path: Path, words: tuple[str, ...]) -> None:
    printed, result = told(tmp_path, Engine(jobs=2 if "die" in words else 1), *words)
    assert {path.name for path in tmp_path.iterdir()} == {*words} - {"raise", "refuse", "die"}
    assert isinstance(result, WorkerError)
    assert str(result).startswith(f"2 of {len(words)} cells failed; the same command tries them again:")
    assert "raise failed: Traceback" in printed and "in speak" in printed
    assert "raise: ValueError: the milk has turned" in str(result)
    if "die" in words:
        assert "die: its process was killed, or left Python: exit code -9" in str(result)
    else:
        assert "refuse failed: there is no milk." in printed


def test_a_cell_that_is_stopped_stops_the_table(tmp_path: Path) -> None:
    printed, result = told(tmp_path, Engine(), "one", "stop", "two")
    assert result is False
    assert not (tmp_path / "two").exists()
    assert "Stopped; everything is saved. The same command goes on from here." in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "--jobs must be 1 or more, got 0"),
        ({"cpus_per_run": 0}, "--cpus-per-run must be 1 or more, got 0"),
        ({"engine": "ray", "gpus_per_run": -1}, "--gpus-per-run must be 0 or more, got -1"),
        ({"engine": "ray", "jobs": 2}, "--jobs 2 is for --engine local"),
        ({"address": "auto"}, "--address and --gpus-per-run are for --engine ray"),
        ({"engine": "ray", "address": "ray://a:1"}, "--address must be auto or HOST:PORT, got 'ray://a:1'"),
    ],
)
def test_engines_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(**options)


def test_a_command_with_such_options_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["adaptation", "--tasks", "bandit", "--jobs", "0"])
    with pytest.raises(SystemExit, match="2"):
        adaptation.main()
    assert "--jobs must be 1 or more, got 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(300)
def test_ctrl_c_ends_all_cells_after_their_iteration(tmp_path: Path) -> None:
    """The terminal sends it to every process of the command."""
    command = (
        f"{sys.executable} -m metarl.benchmarks.adaptation --tasks bandit --agents rl2 --seeds 1 2 "
        "--num-iterations 100000 --num-tasks 3 --results results --runs runs --jobs 2"
    )
    with at_work(tmp_path, command.split()) as process:
        os.killpg(process.pid, signal.SIGINT)
        printed = process.communicate(timeout=100)[0]
    assert "Stopped; everything is saved. The same command goes on from here." in printed
    assert "Traceback" not in printed
    require_saved(tmp_path)
