"""Training that is killed at any moment and resumed ends with the bits of training that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.agent import AgentConfig
from metarl.agents import AGENTS, MAMLTRPOConfig, RL2Config
from metarl.config import TrainConfig
from metarl.experiments import Experiment, Setup
from metarl.runs.folder import RunFolder
from metarl.runs.logger import read_metrics

_MAML = MAMLTRPOConfig(hidden_sizes=(4,), rollouts_per_task=2, cg_iterations=3)
_RL2 = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=2)
_JOBS: dict[str, tuple[str, str, AgentConfig]] = {
    "maml-trpo": ("maml-trpo", "cartpole-goal", _MAML),
    "rl2": ("rl2", "tabular-mdp", _RL2),
}

_NURSERY = """
import json, os, signal, sys
from pathlib import Path
from metarl.experiments.experiment import Experiment

def die_at(call):
    # Dies just before the given call that changes the disk: opening, syncing, renaming or removing a file.
    calls = iter(range(1, 1000))
    def dying(function):
        def wrapper(*args, **kwargs):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapper
    os.fsync, os.replace = dying(os.fsync), dying(os.replace)
    Path.open, Path.unlink = dying(Path.open), dying(Path.unlink)

def train(path, call):
    experiment = Experiment.open(Path(path))
    if call:
        die_at(call)
    experiment.train(lambda progress: None)

# What torch loads at first use takes seconds; here it is loaded once for all children.
for path in sys.argv[1:]:
    train(path, 0)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            train(**json.loads(line))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """A process that has loaded everything and forks a child for every training: a fresh start in no time.

    Args:
        warm_up: experiments that it trains first.
    """

    def __init__(self, warm_up: Sequence[Experiment]) -> None:
        # A process that has threads of its own, of OpenMP or of CUDA's autograd, cannot fork.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", _NURSERY, *(str(experiment.run.path) for experiment in warm_up)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, experiment: Experiment, call: int = 0) -> int:
        """Train in a child; returns its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"path": str(experiment.run.path), "call": call}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """The child's exit status, negative for a signal."""
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery([_experiment(tmp_path_factory.mktemp("warm"), job, 1) for job in _JOBS])
    yield nursery
    nursery.close()


def _experiment(root: Path, job: str, num_iterations: int) -> Experiment:
    name, tasks, config = _JOBS[job]
    train_config = TrainConfig(
        seed=7,
        device="cpu",
        num_iterations=num_iterations,
        meta_batch_size=3,
        eval_every=3,
        eval_tasks=2,
        checkpoint_every=1,
        keep_checkpoints=2,
    )
    return Experiment.create(Setup(name, tasks, train_config, config), RunFolder.create(root, job))


def _with_iterations(experiment: Experiment, num_iterations: int) -> Experiment:
    config = dataclasses.replace(experiment.train_config, num_iterations=num_iterations)
    return experiment.reconfigured(config, experiment.agent_config)


def _newest(experiment: Experiment) -> int:
    return max(experiment.run.checkpoints.iterations(), default=-1)


@dataclass(frozen=True)
class Outcome:
    """All that training leaves behind, apart from times."""

    checkpoint: tuple[int, dict[str, Any]]
    best: tuple[int, dict[str, Any]]
    metrics: list[dict[str, Any]]

    @classmethod
    def of(cls, experiment: Experiment) -> Outcome:
        store = experiment.run.checkpoints
        rows = [
            {name: value for name, value in row.items() if name != "wall_time" and not name.startswith("seconds/")}
            for row in read_metrics(experiment.run.metrics)
        ]
        return cls(store.load_latest(), store.load(store.best_path), rows)


def _assert_same_bits(actual: Any, expected: Any, where: str = "state") -> None:
    assert type(actual) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected), where
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            _assert_same_bits(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for index, (left, right) in enumerate(zip(actual, expected, strict=True)):
            _assert_same_bits(left, right, f"{where}.{index}")
    else:
        assert actual == expected, where


def _uninterrupted(root: Path, job: str, num_iterations: int) -> Outcome:
    experiment = _experiment(root, job, num_iterations)
    assert experiment.train(lambda _: None)
    return Outcome.of(experiment)


def _assert_same(experiment: Experiment, expected: Outcome) -> None:
    actual = Outcome.of(experiment)
    _assert_same_bits(actual.checkpoint, expected.checkpoint)
    _assert_same_bits(actual.best, expected.best)
    assert [row["iteration"] for row in actual.metrics] == list(range(expected.checkpoint[0]))
    assert actual.metrics == expected.metrics
    assert list(experiment.run.path.glob("**/*.tmp")) == []


@pytest.mark.parametrize("job", _JOBS)
def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path, nursery: Nursery, job: str) -> None:
    rng = random.Random(job)
    experiment = _experiment(tmp_path / "killed", job, 10_000)
    deaths = 0
    for kill in range(10):
        before, started = _newest(experiment), time.monotonic()
        pid = nursery.start(experiment)
        if kill % 2:
            # Well into training: after some new checkpoints, at any phase of an iteration.
            wanted = before + rng.randint(1, 2)
            while _newest(experiment) < wanted:
                assert time.monotonic() < started + 30.0, "no new checkpoint"
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, 0.06))
        else:
            # While it starts: the lock, the log, loading, the first checkpoint.
            time.sleep(rng.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        deaths += nursery.wait() == -signal.SIGKILL
    assert deaths == 10
    assert _newest(experiment) >= 4
    experiment = _with_iterations(experiment, _newest(experiment) + 2)
    nursery.start(experiment)
    assert nursery.wait() == 0
    _assert_same(experiment, _uninterrupted(tmp_path / "whole", job, _newest(experiment)))


def test_no_change_of_the_disk_is_a_bad_moment_to_die(tmp_path: Path, nursery: Nursery) -> None:
    """Every call that touches a file, in a start, two iterations and their checkpoints, is the last one once."""
    expected = _uninterrupted(tmp_path / "whole", "rl2", 2)
    call, status = 0, -signal.SIGKILL
    while status != 0:
        call += 1
        experiment = _experiment(tmp_path / "killed", "rl2", 2)
        nursery.start(experiment, call)
        status = nursery.wait()
        assert status in (0, -signal.SIGKILL)
        newest = _newest(experiment)
        assert newest < 0 or experiment.run.checkpoints.load_latest()[0] == newest
        nursery.start(experiment)
        assert nursery.wait() == 0
        _assert_same(experiment, expected)
    assert call > 20


@pytest.mark.parametrize("job", _JOBS)
def test_a_run_that_is_given_more_iterations_goes_on(tmp_path: Path, job: str) -> None:
    short = _experiment(tmp_path / "short", job, 3)
    assert short.train(lambda _: None)
    seen = []
    assert _with_iterations(short, 5).train(lambda progress: seen.append((progress.iteration, progress.num_iterations)))
    assert seen == [(4, 5), (5, 5)]
    _assert_same(short, _uninterrupted(tmp_path / "long", job, 5))


@pytest.mark.parametrize("tasks", ["bandit", "navigation-2d", "pendulum", "cartpole-extreme"])
def test_a_fresh_process_goes_on_with_every_family_as_if_nothing_had_happened(tmp_path: Path, tasks: str) -> None:
    """Environments carry nothing from one iteration to the next that a checkpoint does not hold."""
    config = TrainConfig(num_iterations=2, meta_batch_size=3, eval_every=99, eval_tasks=2, checkpoint_every=1)
    agent = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1)
    whole = Experiment.create(Setup("rl2", tasks, config, agent), RunFolder.create(tmp_path, "whole"))
    whole.train(lambda _: None)
    half = Experiment.create(Setup("rl2", tasks, config, agent), RunFolder.create(tmp_path, "half"))
    _with_iterations(half, 1).train(lambda _: None)
    half.train(lambda _: None)
    _assert_same_bits(Outcome.of(half).checkpoint, Outcome.of(whole).checkpoint)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_s_checkpoint_holds_all_of_it(tmp_path: Path, name: str) -> None:
    small = {"rollouts_per_task": 2, "hidden_sizes": (4,), "hidden_size": 4, "cg_iterations": 2, "num_epochs": 2}
    kind = AGENTS[name]
    known = {field.name for field in dataclasses.fields(kind)}
    agent = kind(**{field: value for field, value in small.items() if field in known})
    config = TrainConfig(num_iterations=3, meta_batch_size=3, eval_every=99, eval_tasks=2, checkpoint_every=1)
    whole = Experiment.create(Setup(name, "bandit", config, agent), RunFolder.create(tmp_path, "whole"))
    whole.train(lambda _: None)
    parts = Experiment.create(Setup(name, "bandit", config, agent), RunFolder.create(tmp_path, "parts"))
    for num_iterations in (1, 2, 3):
        _with_iterations(parts, num_iterations).train(lambda _: None)
    _assert_same_bits(Outcome.of(parts).checkpoint, Outcome.of(whole).checkpoint)


def test_evaluating_more_often_changes_no_bit_of_training(tmp_path: Path) -> None:
    outcomes = []
    for every in (1, 99):
        experiment = _experiment(tmp_path, "rl2", 3)
        config = dataclasses.replace(experiment.train_config, eval_every=every, eval_tasks=every)
        experiment.reconfigured(config, experiment.agent_config).train(lambda _: None)
        outcomes.append(Outcome.of(experiment))
    often, seldom = outcomes
    assert sum("test/return_0" in row for row in often.metrics) == 3
    assert sum("test/return_0" in row for row in seldom.metrics) == 1
    _assert_same_bits(often.checkpoint, seldom.checkpoint)


@pytest.mark.parametrize("killed", [False, True])
def test_going_back_to_an_older_checkpoint_repeats_the_same_history(
    tmp_path: Path, nursery: Nursery, killed: bool
) -> None:
    """Also if the process dies at the first sign of a log entry: the abandoned checkpoints are gone by then."""
    experiment = _experiment(tmp_path / "back", "maml-trpo", 4)
    experiment.train(lambda _: None)
    expected = Outcome.of(experiment)
    store = experiment.run.checkpoints
    assert store.iterations() == [3, 4]
    if killed:

        class Killed(BaseException):
            pass

        def die(_: object) -> None:
            raise Killed

        # With the first save an iteration away, nothing but the start itself can have dropped checkpoint 4.
        lazy = dataclasses.replace(experiment.train_config, checkpoint_every=99, num_iterations=99)
        with pytest.raises(Killed):
            experiment.reconfigured(lazy, experiment.agent_config).train(die, store.path(3))
        assert store.iterations() == [3]
        experiment = _with_iterations(experiment, 4)
        experiment.train(lambda _: None)
    else:
        experiment.train(lambda _: None, store.path(3))
    _assert_same(experiment, expected)
