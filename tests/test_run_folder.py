"""Run folders never clash, name their owner, and hold what is needed to run again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from metarl.errors import CheckpointError, ConfigError
from metarl.runs import folder as run_folder
from metarl.runs.folder import REFERENCE, RunFolder

_HOLD_LOCK = """
import sys
from pathlib import Path
from metarl.runs.folder import REFERENCE, RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


def _run(root: Path, name: str = "run") -> RunFolder:
    run = RunFolder.create(root, name)
    run.write_config({"seed": 1})
    return run


def _hold_lock(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _HOLD_LOCK, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_equal_names_get_distinct_folders(tmp_path: Path) -> None:
    names = [_run(tmp_path / "runs", "maml-trpo-cartpole").path.name for _ in range(3)]
    assert names == ["maml-trpo-cartpole", "maml-trpo-cartpole-2", "maml-trpo-cartpole-3"]


def test_a_folder_with_files_of_a_user_keeps_them(tmp_path: Path) -> None:
    """Whatever the folder in it is called: that of a run's reference is removed only if it has begun and no more."""
    for name, inside in (("a", "weights.pt"), ("b", "manifest.json"), ("c", "checkpoints"), ("d", "config.json")):
        own = tmp_path / name / REFERENCE
        own.mkdir(parents=True)
        (own / inside).touch()
    (own / "model.safetensors").touch()
    made = [RunFolder.create(tmp_path, name).path.name for name in "abcd"]
    assert made == ["a-2", "b", "c-2", "d-2"]
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"a/pretrained/weights.pt", "c/pretrained/checkpoints", "d/pretrained/model.safetensors"} <= left
    assert "b/pretrained/manifest.json" not in left


@pytest.mark.parametrize("name", ["rl2-mine/pendulum", "../rl2-mine pendulum", "rl2-mine\\\npendulum"])
def test_no_name_leaves_the_root(tmp_path: Path, name: str) -> None:
    assert _run(tmp_path, name).path == tmp_path / "rl2-mine-pendulum"


def test_a_name_without_content_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs a letter or digit, got '\.\./'"):
        RunFolder.create(tmp_path, "../")


def test_an_unwritable_root_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot write runs into .*file"):
        RunFolder.create(blocker, "run")


def test_a_nearly_full_disk_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 2**20, 2**20))
    with pytest.raises(ConfigError, match="has 1 MiB left; a run needs at least 50 MiB"):
        RunFolder.create(tmp_path, "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_opened_with_what_it_was_made_with(tmp_path: Path) -> None:
    config = {"agent": {"name": "maml-trpo", "inner_lr": 0.1}, "seed": 3, "nothing": None, "list": [1, 2]}
    run = _run(tmp_path)
    run.write_config(config)
    run.checkpoints.save(4, {"x": 1})
    opened = RunFolder.open(run.path)
    assert opened.read_config() == config
    assert opened.checkpoints.load_latest() == (4, {"x": 1})
    assert opened.metrics.parent == opened.tensorboard.parent == run.path


def test_opening_something_else_lists_the_runs_nearby(tmp_path: Path) -> None:
    run = _run(tmp_path / "runs")
    with pytest.raises(ConfigError, match=f"rum does not exist. Runs nearby: {run.path}."):
        RunFolder.open(tmp_path / "runs" / "rum")
    with pytest.raises(ConfigError, match=f"is not a run folder .*Runs nearby: {run.path}."):
        RunFolder.open(tmp_path)


def test_opening_where_no_run_is_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="There are no runs nearby"):
        RunFolder.open(tmp_path / "absent")


def test_a_config_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path)
    for value in (float("nan"), object()):
        with pytest.raises(ConfigError, match=r"config\.json cannot hold this"):
            run.write_config({"value": value})
    assert run.read_config() == {"seed": 1}


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    run = _run(tmp_path)
    (run.path / "config.json").write_text('{"seed"')
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        run.read_config()


def test_a_second_process_is_kept_out_and_told_which_one_is_in(tmp_path: Path) -> None:
    run = _run(tmp_path)
    process = _hold_lock(run.path)
    with process:
        with pytest.raises(CheckpointError, match=rf"in use by process {process.pid}\. .*--resume"), run.lock():
            pass
        process.communicate("")
    with run.lock():
        assert json.loads((run.path / ".lock.owner").read_text())["pid"] == os.getpid()
    assert not (run.path / ".lock.owner").exists()


def test_a_killed_process_frees_its_lock(tmp_path: Path) -> None:
    run = _run(tmp_path)
    with _hold_lock(run.path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with run.lock():
        pass


def test_a_lock_left_to_an_orphaned_worker_is_explained(tmp_path: Path) -> None:
    run = _run(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    with run.lock():
        owner = run.path / ".lock.owner"
        owner.write_text(json.dumps({**json.loads(owner.read_text()), "pid": ended.pid}))
        message = f"a worker that the ended process {ended.pid} left behind"
        with pytest.raises(CheckpointError, match=message), RunFolder.open(run.path).lock():
            pass


def test_the_manifest_says_what_it_ran_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/private/metarl", "train", "--seed", "7"])
    run = _run(tmp_path)
    run.write_manifest(seed=7, device=torch.device("cpu"))
    manifest = run.read_manifest()
    assert manifest["seed"] == 7
    assert manifest["command"] == ["metarl", "train", "--seed", "7"]
    assert manifest["versions"]["torch"].startswith("2.")
    expected = {"python", "torch", "numpy", "gymnasium", "mujoco", "metaworld", "metarl"}
    assert manifest["versions"].keys() == expected
    assert manifest["machine"]["cores"] == os.cpu_count()
    assert manifest["machine"]["memory_gib"] > 0.1
    assert manifest["machine"]["device"] == "cpu"
    assert manifest["machine"]["cpu"]


def test_the_manifest_names_the_commits_that_went_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(tmp_path)
    cpu = torch.device("cpu")
    run.note_resume(cpu)  # Without a manifest there is nothing to note it in.
    for commit in ("a", "a", "b", "b", "c"):
        monkeypatch.setattr(run_folder, "git_state", lambda commit=commit: {"commit": commit, "dirty": False})
        if commit == "a":
            run.write_manifest(seed=7, device=cpu)
        run.note_resume(cpu)
    manifest = run.read_manifest()
    assert manifest["git"]["commit"] == "a" and manifest["resumed_at"] == ["b", "c"]
    assert "resumed_on" not in manifest


def test_the_manifest_names_the_machines_that_went_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, cpu = _run(tmp_path), torch.device("cpu")
    run.write_manifest(seed=7, device=cpu)
    first = run.read_manifest()
    for cores in (3, 3, 5):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        run.note_resume(cpu)
    manifest = run.read_manifest()
    assert [place["machine"]["cores"] for place in manifest["resumed_on"]] == [3, 5]
    assert manifest["resumed_on"][0]["versions"] == manifest["versions"] == first["versions"]
    assert manifest["machine"] == first["machine"]


def test_a_run_of_this_checkout_names_its_commit() -> None:
    """Written with the place of this very file: moved, it would name none."""
    checkout = Path(__file__).parents[1]
    if shutil.which("git") is None or not (checkout / ".git").exists():
        pytest.skip("needs a checkout")
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert (run_folder.git_state() or {})["commit"] == commit


def test_the_commit_is_that_of_a_checkout_of_metarl_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def state_of(source: Path) -> object:
        source.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(run_folder, "__file__", str(source))
        return run_folder.git_state()

    assert state_of(tmp_path / "metarl" / "runs" / "folder.py") is None
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    commit = git("rev-parse", "HEAD")
    assert state_of(tmp_path / "metarl" / "runs" / "folder.py") == {"commit": commit, "dirty": False}
    (tmp_path / "new.json").write_text("{}\n")  # A new score makes no other code.
    assert state_of(tmp_path / "metarl" / "runs" / "folder.py") == {"commit": commit, "dirty": False}
    git("add", "new.json")
    assert state_of(tmp_path / "metarl" / "runs" / "folder.py") == {"commit": commit, "dirty": True}
    assert state_of(tmp_path / "site-packages" / "metarl" / "runs" / "folder.py") is None
