"""Cells on a Ray cluster: the same bits as in one process, also where a node dies."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from helpers.cells import at_work, require_saved, scores, wait_for_lines
from helpers.jobs import speak
from helpers.ranks import free_port
from ray.cluster_utils import Cluster
from rich.console import Console

from metarl.benchmarks.engines import Engine, Job, run_jobs
from metarl.errors import ConfigError, WorkerError
from metarl.runs.folder import RunFolder

SMALL = {"include_dashboard": False, "object_store_memory": 80_000_000}


def test_an_address_without_a_cluster_is_told(tmp_path: Path) -> None:
    job = Job("one", speak, (tmp_path, "one"))
    with pytest.raises(ConfigError, match=r"no Ray cluster can be had at nonsense: .*Invalid address format"):
        run_jobs([job], Engine("ray", address="nonsense"), (tmp_path,), Console())


@pytest.mark.slow
@pytest.mark.parametrize("listens", [True, False])
def test_an_address_that_does_not_answer_is_told_within_a_minute(tmp_path: Path, listens: bool) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(50)
        address = f"127.0.0.1:{other.getsockname()[1] if listens else free_port()}"
        started = time.monotonic()
        with pytest.raises(ConfigError, match=f"no Ray cluster answered at {address} within 40 seconds"):
            run_jobs([Job("one", speak, (tmp_path, "one"))], Engine("ray", address=address), (tmp_path,), Console())
    assert time.monotonic() - started < 60


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_is_killed_costs_time_alone(tmp_path: Path) -> None:
    """Of two nodes with room for one cell each, one is killed while both are at work."""
    alone = scores(tmp_path / "alone", Engine(), num_cells=3, num_iterations=400)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **SMALL})
    doomed = cluster.add_node(num_cpus=1, object_store_memory=SMALL["object_store_memory"])
    try:
        ray.init(cluster.address)
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(scores, tmp_path / "ray", Engine("ray"), num_cells=3, num_iterations=400)
            wait_for_lines(tmp_path / "ray" / "runs", 12)
            cluster.remove_node(doomed, allow_graceful=False)
            assert found.result() == alone
    finally:
        ray.shutdown()
        cluster.shutdown()
    starts = [len(list(run.tensorboard.iterdir())) for run in RunFolder.find(tmp_path / "ray" / "runs")]
    assert sorted(starts) == [1, 1, 2]  # One was begun twice.


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_ends_all_cells_after_their_iteration(tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -m metarl.benchmarks.adaptation --tasks bandit --agents rl2 --seeds 1 2 3 "
        "--num-iterations 100000 --num-tasks 3 --results results --runs runs --engine ray"
    )
    with at_work(tmp_path, command.split()) as process:
        os.killpg(process.pid, signal.SIGINT)
        printed = process.communicate(timeout=200)[0]
    assert "Stopped; everything is saved. The same command goes on from here." in printed
    require_saved(tmp_path)


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    """A Ray of this machine with two CPUs, which this process has joined: after all tests that join others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        ray.init("local", num_cpus=2, **SMALL)
        yield
        ray.shutdown()


@pytest.mark.timeout(300)
def test_cells_have_the_same_bits_as_in_one_process(tmp_path: Path, two_cpus: None) -> None:
    on_ray = scores(tmp_path / "ray", Engine("ray"))
    assert len(on_ray) == 2
    assert on_ray == scores(tmp_path / "alone", Engine())
    assert not list(tmp_path.rglob(".cells-*"))


@pytest.mark.timeout(300)
def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path: Path, two_cpus: None) -> None:
    jobs = [Job(word, speak, (tmp_path, word)) for word in ("raise", "one")]
    with pytest.raises(WorkerError, match=r"(?s)1 of 2 cells failed.*  raise: ValueError: the milk has turned"):
        run_jobs(jobs, Engine("ray"), (tmp_path,), Console())
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_cell_that_fits_on_no_node_is_refused(tmp_path: Path, two_cpus: None) -> None:
    job = Job("one", speak, (tmp_path, "one"))
    for engine, asked in ((Engine("ray", cpus_per_run=3), "3 CPUs"), (Engine("ray", gpus_per_run=0.5), "0.5 GPUs")):
        with pytest.raises(ConfigError, match=rf"{re.escape(asked)}, and no node .* the largest has 2 CPUs"):
            run_jobs([job], engine, (tmp_path,), Console())


@pytest.mark.timeout(300)
def test_a_node_that_does_not_share_the_folder_says_so(
    tmp_path: Path, two_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", lambda *_: None)  # So that the file is not there, as on another disk.
    with pytest.raises(WorkerError, match=rf"node .* does not see {tmp_path} .* --runs and --results"):
        run_jobs([Job("one", speak, (tmp_path, "one"))], Engine("ray"), (tmp_path,), Console())
    assert not (tmp_path / "one").exists()
