"""``torchrun -m metarl train``: killed ranks, restarts and bad input, in processes as a user starts them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.ranks import environment, free_port

from metarl.runs.checkpoint import state_digest
from metarl.runs.folder import RunFolder
from metarl.runs.logger import read_metrics

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SMALL = {
    "meta-batch-size": 3,
    "rollouts-per-task": 2,
    "hidden-sizes": 4,
    "cg-iterations": 2,
    "eval-tasks": 2,
    "device": "cpu",
}
"""An iteration is a fraction of a second; of three tasks one rank has two."""

FLAGS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]

TRAIN = ["-m", "metarl", "train", "maml-trpo", "tabular-mdp", *FLAGS, "--eval-every", "4", "--checkpoint-every", "2"]


def train(folder: Path, *options: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "--max-restarts", str(restarts), *TRAIN, *options]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finished(process: subprocess.Popen[str], timeout: float = 200) -> str:
    """What the process printed; it and its children are ended if that takes too long."""
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def the_run(folder: Path) -> RunFolder:
    (found,) = RunFolder.find(folder / "runs")
    return found


def outcome(folder: Path) -> tuple[int, str, list[dict[str, float]]]:
    """Iterations, digest of the last checkpoint, and metrics without times."""
    run = the_run(folder)
    iteration, content = run.checkpoints.load_latest()
    content = {name: value for name, value in content.items() if name != "origin"}
    metrics = [
        {name: value for name, value in line.items() if not name.startswith(("seconds/", "wall_time"))}
        for line in read_metrics(run.metrics)
    ]
    return iteration, state_digest(content), metrics


def rank_processes(launcher: int) -> list[int]:
    """The ranks of a torchrun that is at work."""
    path = Path(f"/proc/{launcher}/task/{launcher}/children")
    found = []
    for child in path.read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0") if Path(f"/proc/{child}").exists() else []
        if b"metarl" in words:
            found.append(int(child))
    return found


def kill_a_rank(launcher: int, run_metrics: Path, lines: int, which: int, patience: float = 120) -> None:
    """SIGKILL, once so many iterations are logged."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if run_metrics.exists() and len(run_metrics.read_text().splitlines()) >= lines:
            ranks = rank_processes(launcher)
            if len(ranks) == 2:  # Else torchrun is about to start them.
                os.kill(ranks[which], signal.SIGKILL)
                return
        time.sleep(0.01)
    raise AssertionError(f"{run_metrics} has no {lines} lines after {patience} s")


def wait_for_lines(metrics: Path, lines: int, patience: float = 120) -> None:
    """Wait until so many iterations are logged."""
    deadline = time.monotonic() + patience
    while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
        assert time.monotonic() < deadline, f"{metrics} has no {lines} lines after {patience} s"
        time.sleep(0.05)


def disturbed(folder: Path, kills: Sequence[tuple[int, int]], num_iterations: int) -> str:
    folder.mkdir()
    process = train(folder, "--num-iterations", str(num_iterations), restarts=len(kills))
    try:
        for lines, which in kills:
            kill_a_rank(process.pid, folder / "runs/maml-trpo-tabular-mdp-seed1/metrics.jsonl", lines, which)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return finished(process)


@pytest.mark.timeout(600)
def test_a_rank_that_is_killed_costs_time_alone(tmp_path: Path) -> None:
    """The other rank ends, torchrun starts both anew, and they go on from the last checkpoint to the same bits."""
    (tmp_path / "whole").mkdir()
    printed = finished(train(tmp_path / "whole", "--num-iterations", "12"))
    assert outcome(tmp_path / "whole")[0] == 12, printed
    printed = disturbed(tmp_path / "killed", [(5, 1)], 12)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole"), printed
    assert json.loads((the_run(tmp_path / "killed").path / "manifest.json").read_text())["ranks"] == 2


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ranks_killed_at_random_moments_cost_time_alone(tmp_path: Path) -> None:
    random.seed(7)
    (tmp_path / "whole").mkdir()
    finished(train(tmp_path / "whole", "--num-iterations", "40"))
    kills = [(lines, random.randrange(2)) for lines in sorted(random.sample(range(1, 40), 10))]
    printed = disturbed(tmp_path / "killed", kills, 40)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole"), printed


FAILING = """
import sys
import gymnasium as gym
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution

class Sour(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    def __init__(self, task):
        self.task = task
    def reset(self, seed=None, options=None):
        return self.observation_space.low, {}
    def step(self, action):
        if self.task["last"]:
            raise RuntimeError("the milk has turned")
        return self.observation_space.low, 0.0, False, False, {}

number = 0
def sample(rng):
    return {"last": False, "x": rng.uniform()}
def meta_batch(count, rng):
    return [{"last": place == count - 1, "x": 0.0} for place in range(count)]

sour = TaskDistribution(id="sour", horizon=3, sample=sample, meta_batch=meta_batch, make_env=Sour)
"""


@pytest.mark.timeout(300)
def test_an_environment_that_raises_on_one_rank_ends_the_others_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "sour.py").write_text(FAILING)
    started = time.monotonic()
    command = [*TORCHRUN, "-m", "metarl", "train", "maml-trpo", "sour:sour", *FLAGS]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    printed = finished(process)
    assert time.monotonic() - started < 90  # Both loads of torch included.
    assert process.returncode != 0
    assert "the milk has turned" in printed
    first = printed.index("RuntimeError: the milk has turned")
    assert "rank 0 of 2 waited in" not in printed[:first]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_that_hangs_ends_the_run_within_the_time_that_ranks_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a frozen machine does: the rank neither answers nor ends."""
    monkeypatch.setenv("METARL_RANK_TIMEOUT", "5")
    process = train(tmp_path, "--num-iterations", "5000")
    metrics = tmp_path / "runs/maml-trpo-tabular-mdp-seed1/metrics.jsonl"
    try:
        wait_for_lines(metrics, 3)
        frozen = rank_processes(process.pid)[1]
        os.kill(frozen, signal.SIGSTOP)
        started = time.monotonic()
        printed = finished(process)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert time.monotonic() - started < 60
    assert "another rank did not come within 5 seconds: it hangs, or its machine is gone" in printed
    assert "METARL_RANK_TIMEOUT" in printed
    assert not Path(f"/proc/{frozen}").exists()
    iteration, _, lines = outcome(tmp_path)
    assert iteration == len(lines) >= 3


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_ranks_step_meta_world(tmp_path: Path) -> None:
    command = [
        *TORCHRUN,
        "-m",
        "metarl",
        "train",
        "rl2",
        "ml1/reach-v3",
        "--meta-batch-size",
        "3",
        "--hidden-size",
        "4",
    ]
    command += [
        "--num-iterations",
        "2",
        "--episodes-per-trial",
        "1",
        "--rollouts-per-task",
        "1",
        "--eval-tasks",
        "2",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    printed = finished(process, 350)
    assert process.returncode == 0, printed
    iteration, _, lines = outcome(tmp_path)
    assert iteration == 2 and [line["env_steps"] for line in lines] == [1500.0, 3000.0]


@pytest.mark.timeout(300)
def test_more_ranks_than_tasks_are_refused_once(tmp_path: Path) -> None:
    printed = finished(train(tmp_path, "--meta-batch-size", "1"))
    assert printed.count("error: 2 ranks share out the tasks of a meta-batch, and there are 1") == 1


def alone(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A rank that is started by hand."""
    command = [sys.executable, *TRAIN]
    env = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=200)


def test_what_cannot_meet_is_told(tmp_path: Path) -> None:
    lacking = alone(tmp_path, WORLD_SIZE="2", RANK="0")
    assert "MASTER_ADDR, MASTER_PORT is not set: start the ranks with torchrun" in lacking.stderr
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        taken = alone(tmp_path, **environment(0, 2, other.getsockname()[1]))
    assert "is in use: give another one" in taken.stderr
    nonsense = alone(tmp_path, **{**environment(0, 2, free_port()), "WORLD_SIZE": "many"})
    assert "WORLD_SIZE must be a whole number of 1 or more, got 'many'" in nonsense.stderr
    for result in (lacking, taken, nonsense):
        assert result.returncode == 2 and "Traceback" not in result.stderr


@pytest.mark.slow
def test_an_address_that_does_not_answer_is_told_within_a_minute(tmp_path: Path) -> None:
    started = time.monotonic()
    alone(tmp_path, WORLD_SIZE="2", RANK="0")  # What Python and torch take to load.
    loaded = time.monotonic()
    silent = alone(tmp_path, **environment(1, 2, free_port()))
    assert time.monotonic() - loaded - (loaded - started) < 55
    assert "rank 1 of 2 could not meet the others at 127.0.0.1:" in silent.stderr
    assert silent.returncode == 2 and "Traceback" not in silent.stderr


def test_commands_that_are_not_shared_out_say_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metarl", "list"]
    env = {**os.environ, **environment(0, 2, 1)}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "metarl list runs in one process" in result.stderr


@pytest.mark.timeout(300)
def test_a_rank_that_is_asked_to_stop_stops_all_after_one_iteration(tmp_path: Path) -> None:
    process = train(tmp_path, "--num-iterations", "5000")
    metrics = tmp_path / "runs/maml-trpo-tabular-mdp-seed1/metrics.jsonl"
    try:
        wait_for_lines(metrics, 1)
        os.kill(rank_processes(process.pid)[1], signal.SIGTERM)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    printed = finished(process)
    assert "Stopped after the iteration in hand; everything is saved." in printed
    iteration, _, lines = outcome(tmp_path)
    assert 0 < iteration == len(lines) < 5000
