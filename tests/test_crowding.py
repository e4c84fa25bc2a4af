"""Tests that a machine without cores to spare is told of, and one with them is not."""

from __future__ import annotations

import itertools
import os
import time
import warnings
from pathlib import Path

import pytest
import torch

from metarl.experiments import Experiment, resolve
from metarl.runs import crowding
from metarl.runs.folder import RunFolder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Two cores, and torch with two threads; ``/proc/stat`` is a file that :func:`keep_busy` writes."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(crowding, "_TIMES", tmp_path / "stat")
    return monkeypatch


def keep_busy(machine: pytest.MonkeyPatch, share: float) -> None:
    """Let this share of all ticks be busy in every sleep."""
    busy, sleeps = round(40 * share), itertools.count()

    def sleep(seconds: float) -> None:
        number = next(sleeps)
        crowding._TIMES.write_text(f"cpu  {1000 + number * busy} 0 200 {5000 + number * (40 - busy)} 50 0 0 0 0 0\n")

    sleep(0.0)
    machine.setattr(time, "sleep", sleep)


def test_one_busy_core_of_two_is_told_with_its_remedy(machine: pytest.MonkeyPatch) -> None:
    keep_busy(machine, 0.5)
    with pytest.warns(RuntimeWarning, match=r"1\.0 of 2 cores busy.*2 threads.*OMP_NUM_THREADS=1"):
        crowding.warn_if_crowded()


@pytest.mark.parametrize("why", ["idle", "one thread", "threads that do not spin", "another system", "another file"])
def test_nothing_is_said_without_need(machine: pytest.MonkeyPatch, why: str) -> None:
    keep_busy(machine, 0.1 if why == "idle" else 1.0)
    if why == "one thread":
        machine.setattr(torch, "get_num_threads", lambda: 1)
    elif why == "threads that do not spin":
        machine.setenv("OMP_WAIT_POLICY", "PASSIVE")
    elif why == "another system":
        machine.setattr(crowding, "_TIMES", Path("/nonexistent"))
    elif why == "another file":
        machine.setattr(time, "sleep", lambda seconds: crowding._TIMES.write_text("intr 1 2 3 4 5 6\n"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crowding.warn_if_crowded()


def test_training_tells_of_it_where_it_begins(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keep_busy(machine, 0.5)
    setup = resolve("pretrained", "bandit", train={"num_iterations": 1, "meta_batch_size": 2, "eval_tasks": 2})
    with pytest.warns(RuntimeWarning, match="of 2 cores busy"):
        Experiment.create(setup, RunFolder.create(tmp_path, "run")).train()


def test_the_real_machine_tells_a_number_of_cores_if_any() -> None:
    busy = crowding._busy_cores(4)
    assert (busy is None) == (not crowding._TIMES.exists())
    assert busy is None or 0.0 <= busy <= 4.0
