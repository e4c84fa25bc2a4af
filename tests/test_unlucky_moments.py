"""A command that is killed before any of its changes on disk, and given again, ends as if nothing had happened.

Python announces every change before it is made (an audit event); the killed process dies there by SIGKILL.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.runs.folder import RunFolder
from metarl.runs.logger import read_metrics

_SMALL = "--hidden-sizes 4 --rollouts-per-task 2 --meta-batch-size 2 --eval-every 99 --eval-tasks 2 --cg-iterations 2"
_TRAIN = f"train maml-trpo bandit --device cpu --num-iterations 2 --checkpoint-every 1 {_SMALL} --reference"
_RUN = "runs/maml-trpo-bandit-seed1"


_FEWSHOT = (
    "fewshot train maml sinusoid --device cpu --num-iterations 2 --checkpoint-every 1 --hidden-sizes 4 "
    "--meta-batch-size 2 --eval-every 99 --eval-tasks 2 --num-eval-steps 1 --test-tasks 2"
)


_NURSERY = """
import json, os, signal, sys
from metarl.cli import entry, train
from metarl.cli.fewshot import train as fewshot
from metarl.runs import folder

folder.git_state = lambda: None  # Starts git thrice.
# The table at the end is no part of training, and takes longer than all of it.
train.evaluation_rows = lambda *args, **settings: []
train.show_adaptation = lambda *args: None
fewshot.evaluate_with_progress = lambda *args, **settings: None
fewshot.show_scores = lambda *args: None
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

def die_at(number, folder):
    # Before that change to anything in the folder.
    left = number

    def hook(event, arguments):
        nonlocal left
        if event == "open":
            changes = isinstance(arguments[0], (str, bytes, os.PathLike)) and (arguments[2] or 0) & _WRITES
        else:
            changes = event in _CHANGES
        if changes and os.path.abspath(os.fsdecode(arguments[0])).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    synced = os.fsync

    def fsync(handle):
        # Lines of a log are written between two of these.
        hook("os.rename", [folder])
        synced(handle)

    os.fsync = fsync

def run(words, number, folder):
    os.chdir(folder)
    if number:
        die_at(number, folder)
    return entry.main(words)

# What torch loads at first use takes seconds; here it is loaded once for all children.
os.dup2(1, 3)
os.dup2(2, 1)
for words in sys.argv[1:]:
    entry.main(words.split())
os.dup2(3, 1)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        try:
            status = run(**json.loads(line))
        except BaseException as error:
            print(repr(error), flush=True)
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """A process that has loaded everything and forks a child for every command."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.output = folder / "output.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY, _TRAIN, _FEWSHOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )

    def run(self, words: str, folder: Path, number: int = 0) -> int:
        """The exit status of a command in ``folder``, killed before its change of that number (from 1) on disk."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"words": words.split(), "number": number, "folder": str(folder)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


def outcome(run: RunFolder) -> dict[str, Any]:
    """Everything in a run's folder but times, logs of TensorBoard, and what was set aside."""
    names = {path.name for path in run.path.iterdir() if not path.name.startswith("abandoned")} - {".lock"}
    store = run.checkpoints
    rows = [
        {name: value for name, value in row.items() if name != "wall_time" and not name.startswith("seconds/")}
        for row in read_metrics(run.metrics)
    ]
    files = {path.name: store.load(path) for path in sorted(store.folder.iterdir())}
    assert run.read_manifest()["seed"] == run.read_config()["train"]["seed"]
    return {"names": names, "config": run.read_config(), "metrics": rows, "checkpoints": files}


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for left, right in zip(actual, expected, strict=True):
            assert_same(left, right)
    else:
        assert actual == expected


def assert_same_run(run: Path, expected: Path) -> None:
    assert_same(outcome(RunFolder(run)), outcome(RunFolder(expected)))
    if (expected / "pretrained").exists():
        assert_same(outcome(RunFolder(run / "pretrained")), outcome(RunFolder(expected / "pretrained")))


# Every moment takes minutes on a busy machine; every seventh meets the same kinds of change.
strides = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])


@strides
def test_a_first_training_can_be_killed_before_any_change(nursery: Nursery, tmp_path: Path, stride: int) -> None:
    """It is either resumed, reference included, or its name is free again."""
    whole = tmp_path / "whole"
    whole.mkdir()
    assert nursery.run(_TRAIN, whole) == 0, nursery.output.read_text()
    number, status, resumed = 1 - stride, -signal.SIGKILL, []
    while status != 0:
        number += stride
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        status = nursery.run(_TRAIN, folder, number)
        assert status in (0, -signal.SIGKILL)
        resumed.append((folder / _RUN / "config.json").exists())
        again = f"train --resume {_RUN}" if resumed[-1] else _TRAIN
        assert nursery.run(again, folder) == 0, nursery.output.read_text()
        assert [path.name for path in (folder / "runs").iterdir()] == [Path(_RUN).name], f"change {number}"
        assert_same_run(folder / _RUN, whole / _RUN)
    assert number > 60 and not resumed[0] and resumed == sorted(resumed)


@strides
def test_a_first_training_of_a_few_shot_learner_can_be_killed_before_any_change(
    nursery: Nursery, tmp_path: Path, stride: int
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert nursery.run(_FEWSHOT, whole) == 0, nursery.output.read_text()
    (made,) = (whole / "runs").iterdir()
    number, status, resumed = 1 - stride, -signal.SIGKILL, []
    while status != 0:
        number += stride
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        status = nursery.run(_FEWSHOT, folder, number)
        assert status in (0, -signal.SIGKILL)
        run = folder / "runs" / made.name
        resumed.append((run / "config.json").exists())
        again = f"fewshot train --resume {run} --test-tasks 2" if resumed[-1] else _FEWSHOT
        assert nursery.run(again, folder) == 0, nursery.output.read_text()
        assert [path.name for path in (folder / "runs").iterdir()] == [made.name], f"change {number}"
        assert_same_run(run, made)
    assert number > 30 and not resumed[0] and resumed == sorted(resumed)


def test_the_folder_of_a_training_that_only_begins_is_not_taken_over(nursery: Nursery, tmp_path: Path) -> None:
    """Somebody's process lives on, so the name is taken even if nothing is in the folder yet."""
    made = RunFolder.create(tmp_path / "runs", Path(_RUN).name)
    assert nursery.run(_TRAIN, tmp_path) == 0, nursery.output.read_text()
    assert list(made.path.iterdir()) == []
    assert (tmp_path / f"{_RUN}-2" / "config.json").exists()


def test_a_folder_with_anything_of_a_user_s_is_not_taken_over(nursery: Nursery, tmp_path: Path) -> None:
    (tmp_path / _RUN).mkdir(parents=True)
    (tmp_path / _RUN / "notes.txt").write_text("mine")
    assert nursery.run(_TRAIN, tmp_path) == 0, nursery.output.read_text()
    assert (tmp_path / _RUN / "notes.txt").read_text() == "mine"
    assert (tmp_path / f"{_RUN}-2" / "config.json").exists()


@pytest.fixture(scope="module")
def finished(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 12 iterations, whose best checkpoint is not of the tenth, the first that can be it."""
    words = _TRAIN.replace("--num-iterations 2", "--num-iterations 12 --keep-checkpoints 3").replace(" --reference", "")
    for seed in range(1, 20):
        folder = tmp_path_factory.mktemp("finished")
        assert nursery.run(f"{words} --seed {seed}", folder) == 0, nursery.output.read_text()
        (made,) = (folder / "runs").iterdir()
        made.rename(folder / _RUN)
        store = RunFolder(folder / _RUN).checkpoints
        assert store.iterations() == [10, 11, 12]
        if store.load(store.best_path)[0] > 10:
            return folder
    raise AssertionError("no seed has its best checkpoint late")


@strides
@pytest.mark.parametrize("again", ["with the checkpoint", "from the newest"])
def test_going_back_can_be_killed_before_any_change(
    nursery: Nursery, finished: Path, tmp_path: Path, again: str, stride: int
) -> None:
    back = f"train --resume {_RUN} --checkpoint {_RUN}/checkpoints/iteration-00000010.safetensors"
    whole = tmp_path / "whole"
    shutil.copytree(finished, whole)
    assert nursery.run(back, whole) == 0, nursery.output.read_text()
    assert_same_run(whole / _RUN, finished / _RUN)
    number, status = 1 - stride, -signal.SIGKILL
    while status != 0:
        number += stride
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(finished, folder)
        status = nursery.run(back, folder, number)
        assert status in (0, -signal.SIGKILL)
        assert RunFolder(folder / _RUN).checkpoints.best_path.exists(), f"change {number}"
        words = back if again == "with the checkpoint" else f"train --resume {_RUN}"
        assert nursery.run(words, folder) == 0, nursery.output.read_text()
        assert_same_run(folder / _RUN, finished / _RUN)
        assert list((folder / _RUN).glob("**/*.tmp")) == []
        for kept in (folder / _RUN).glob("abandoned*"):
            assert {path.name for path in kept.iterdir()} >= {"metrics.jsonl", "best.safetensors"}
    assert number > 30
