"""A run's folder: its resolved config, what it ran on, checkpoints, metrics, and a lock against a second writer."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from metarl.distributed import current, launcher, restarts
from metarl.errors import CheckpointError, ConfigError, RunInUseError
from metarl.plugins import refuse_while_importing
from metarl.runs.checkpoint import CheckpointStore
from metarl.runs.claims import CONFIG, claim, is_run, settle
from metarl.runs.files import read_json, safe_name, shown, typed, write_json
from metarl.runs.published import NO_RESUME, is_published, run_path
from metarl.version import version_of

MIN_FREE_BYTES = 50 * 2**20
"""A run is refused below this; small agents fill a few megabytes, and a disk this full is about to fail anyway."""

REFERENCE = "pretrained"
"""Name of the folder inside a run that holds the run of its reference, if there is one."""

_PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "metaworld", "metarl")

_PLACE = ("versions", "machine")
"""What of a manifest may differ when a run goes on elsewhere, or later."""

_given: set[Path] = set()
"""Runs that :meth:`RunFolder.begin` has given to this process."""


class RunFolder:
    """One run on disk; make it with :meth:`create` or :meth:`open`.

    Of the ranks of a group (:mod:`metarl.distributed`) the first alone makes it, locks it and writes into it.

    Attributes:
        path: the folder, absolute.
        checkpoints: the run's checkpoints.
        metrics: the JSON-lines log.
        tensorboard: folder of TensorBoard's event files.
    """

    def __init__(self, path: Path | str) -> None:
        # An environment may change the working directory.
        self.path = path = Path(path).absolute()
        self.checkpoints = CheckpointStore(path / "checkpoints")
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"

    @classmethod
    def create(cls, root: Path | str, name: str) -> RunFolder:
        """Make ``root/name``, or ``root/name-2``, ``-3``, ... if that is taken.

        A folder that a process left before its config was written is no run, and is taken over.

        Args:
            root: folder of all runs, made if need be.
            name: the run's name; see :func:`metarl.runs.files.safe_name` for what becomes of it.

        Raises:
            ConfigError: if the folder cannot be written or the disk is nearly full; if the command line is importing
                the script that makes it.
        """
        refuse_while_importing("makes a run folder")
        group = current()
        return cls(group.broadcast(cls._make(Path(root).absolute(), name) if group.is_first else Path()))

    @staticmethod
    def _make(root: Path, name: str) -> Path:
        stem = safe_name(name)
        if not stem:
            raise ConfigError(f"a run's name needs a letter or digit, got {name!r}.")
        try:
            root.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(root).free
            if free < MIN_FREE_BYTES:
                raise ConfigError(
                    f"the disk of {root} has {free / 2**20:.0f} MiB left; a run needs at least "
                    f"{MIN_FREE_BYTES / 2**20:.0f} MiB. Free some space or choose another folder for runs."
                )
            path = claim(root, stem, REFERENCE)
            probe = path / ".probe"
            probe.write_bytes(b"writable")
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"cannot write runs into {shown(root)}: {error.strerror or error}.") from error
        return path

    @classmethod
    def begin(cls, root: Path | str, name: str, config: Mapping[str, Any]) -> tuple[RunFolder, bool]:
        """A new folder for a run, or the run that this torchrun began in its place before it restarted its processes.

        A script may begin several runs: one is that of this call if it has the same config and name. Equal calls
        get their runs in the order in which these were made, and each run is given once.

        Args:
            root: see :meth:`create`.
            name: see :meth:`create`.
            config: what a new run is about to be given by :meth:`write_config`.

        Returns:
            The folder, and whether it is a run that was begun before.

        Raises:
            ConfigError: see :meth:`create`.
        """
        group = current()
        path = None
        if restarts():
            known = {launch for launch in group.gather(launcher()) if launch is not None}
            if group.is_first:
                path = _begun(Path(root).absolute(), safe_name(name), known, config)
            path = group.broadcast(path)
        run = cls.create(root, name) if path is None else cls(path)
        _given.add(run.path)
        return run, path is not None

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The run at ``path``, or the published model for ``model:NAME``.

        Its path is absolute: the user's own modules and environments may change the working directory later.

        Raises:
            ConfigError: if there is none, naming the runs nearby, or the models.
        """
        path = run_path(path).absolute()
        if not is_run(path):
            what = "is not a run folder (it has no config.json)" if path.exists() else "does not exist"
            nearby = _runs_near(path)
            found = f"Runs nearby: {', '.join(map(shown, nearby))}." if nearby else "There are no runs nearby."
            raise ConfigError(f"{shown(path)} {what}. {found}")
        return cls(path)

    @classmethod
    def find(cls, path: Path | str) -> list[RunFolder]:
        """The run at ``path``, or the runs in it, by name, or the published model for ``model:NAME``.

        Raises:
            ConfigError: if there is none, naming the runs nearby, or the models.
        """
        path = run_path(path)
        inside = sorted(child for child in path.iterdir() if is_run(child)) if path.is_dir() else []
        return [cls(child) for child in inside] if inside and not is_run(path) else [cls.open(path)]

    def output_folder(self, here: Path) -> Path:
        """Where figures, scores and videos of this run go: its folder.

        That of a published model is a part of metarl and stays as it is: in its place comes ``model-NAME`` in the
        working directory ``here``, which need not exist yet.
        """
        return here / f"model-{self.path.name}" if is_published(self.path) else self.path

    @property
    def next_abandoned(self) -> Path:
        """The folder that :meth:`set_aside` will make."""
        return next(path for path in _numbered(self.path / "abandoned") if not path.exists())

    def set_aside(self, iteration: int) -> Path | None:
        """Keep what came after ``iteration`` in a folder inside the run, for a run that goes back to that iteration.

        Returns:
            The folder, ``abandoned`` or ``abandoned-2`` and so on; None if nothing came later.

        Raises:
            CheckpointError: if it cannot be written; the run is then as before.
        """
        store = self.checkpoints
        later = [store.path(known) for known in store.iterations() if known > iteration]
        if not later:
            return None
        try:
            # In one step, so that a folder of this name is always whole.
            unfinished = self.path / ".abandoned.tmp"
            unfinished.mkdir()
            kept = [*later, *(path for path in (store.best_path, self.metrics) if path.exists())]
            for path in kept:
                shutil.copy2(path, unfinished / path.name)
            folder = self.next_abandoned
            unfinished.rename(folder)
        except OSError as error:
            raise CheckpointError(f"could not keep later checkpoints of {self.path}: {error.strerror}.") from error
        return folder

    def require_trainable(self) -> None:
        """Refuse to train in the folder of a published model.

        Raises:
            CheckpointError: with the command that trains one like it.
        """
        if is_published(self.path):
            raise CheckpointError(
                f"{shown(self.path)} {NO_RESUME}. Train one like it with: metarl train --config "
                f"{shown(self.path / CONFIG)}"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing into this run; the system frees the lock even if this process is killed.

        Raises:
            RunInUseError: if another process holds it, with its process id.
            CheckpointError: if it cannot be locked; for a published model, which nothing is written into.
        """
        self.require_trainable()
        if not current().is_first:
            yield
            return
        lock = FileLock(self.path / ".lock")
        owner = self.path / ".lock.owner"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunInUseError(
                f"the run {self.path} is in use by {_describe_owner(owner)}. "
                "Wait until it ends, stop it (Ctrl-C saves first), or start a run of its own without --resume."
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"cannot lock the run {self.path}: {error.strerror or error}. Copy its folder to where you may write."
            ) from error
        try:
            self._remove_leftovers()
            write_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def _remove_leftovers(self) -> None:
        """Remove what a process that was killed while it wrote has left; the lock keeps other writers out."""
        for leftover in self.path.glob(".*.tmp"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config, JSON-able, to ``config.json``; that makes the folder a run.

        Raises:
            CheckpointError: if it cannot be written.
            ConfigError: if it holds something that JSON cannot.
        """
        if current().is_first:
            write_json(self.path / CONFIG, config)
            settle(self.path)

    def read_config(self) -> dict[str, Any]:
        """What :meth:`write_config` wrote.

        Raises:
            CheckpointError: if the file cannot be read.
        """
        return read_json(self.path / CONFIG)

    def record_schedule(self, schedule: Mapping[str, Any]) -> None:
        """Let ``config.json``, if there is one, say how the training goes on that holds the lock.

        A second one that was about to begin may have written its own there before it was refused.

        Args:
            schedule: settings of the outer loop by name; the others stay.

        Raises:
            CheckpointError: if the file cannot be read or written.
        """
        if not is_run(self.path):
            return
        config = self.read_config()
        train = config.get("train")
        if isinstance(train, dict) and (now := {**train, **schedule}) != train:
            self.write_config({**config, "train": now})

    def write_manifest(self, seed: int, device: torch.device) -> None:
        """Write to ``manifest.json`` what is needed to run this again: versions, commit, seed, command, machine.

        Raises:
            CheckpointError: if it cannot be written.
        """
        if not current().is_first:
            return
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        launch = {} if launcher() is None else {"launcher": launcher(), "ranks": current().world_size}
        write_json(self.path / "manifest.json", {**surroundings(device), "seed": seed, "command": command, **launch})

    def note_resume(self, device: torch.device) -> None:
        """Note in the manifest what goes on with the run, where that is new.

        A commit stands under ``resumed_at``, versions and machine under ``resumed_on``.

        Raises:
            CheckpointError: if the manifest cannot be read or written.
        """
        if not (self.path / "manifest.json").is_file():
            return
        manifest, here = self.read_manifest(), surroundings(device)
        commits = [(manifest.get("git") or {}).get("commit"), *manifest.get("resumed_at", [])]
        places = [{name: manifest.get(name) for name in _PLACE}, *manifest.get("resumed_on", [])]
        new = {}
        if (commit := (here["git"] or {}).get("commit")) != commits[-1]:
            new["resumed_at"] = [*commits[1:], commit]
        if (place := {name: here[name] for name in _PLACE}) != places[-1]:
            new["resumed_on"] = [*places[1:], place]
        if new:
            write_json(self.path / "manifest.json", {**manifest, **new})

    def read_manifest(self) -> dict[str, Any]:
        """What :meth:`write_manifest` wrote.

        Raises:
            CheckpointError: if the file cannot be read.
        """
        return read_json(self.path / "manifest.json")


def _begun(root: Path, stem: str, launchers: Collection[str], config: Mapping[str, Any]) -> Path | None:
    """The first run of this name and config that one of these torchruns began and this process was not given yet."""
    wanted = json.loads(json.dumps(config, default=str))  # What JSON cannot hold, writing it tells.
    names = re.compile(rf"{re.escape(stem)}(?:-(\d+))?")
    found = [(match, path) for path in root.glob(f"{stem}*") if (match := names.fullmatch(path.name))]
    for _, path in sorted(found, key=lambda pair: int(pair[0][1] or 1)):
        if is_run(path) and path not in _given:
            # A damaged file is of no run that training could go on with.
            with contextlib.suppress(CheckpointError):
                manifest = read_json(path / "manifest.json")
                if manifest.get("launcher") in launchers and read_json(path / CONFIG) == wanted:
                    return path
    return None


def _numbered(path: Path) -> Iterator[Path]:
    """``path``, then the same with ``-2``, ``-3``, ... at its end."""
    return (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in itertools.count(1))


def _runs_near(path: Path, most: int = 8) -> list[Path]:
    """Runs in ``path``, beside it or in ``runs``, the newest first."""
    folders = [path, path.parent, path / "runs", path.parent / "runs", Path("runs")]
    children = {
        child for folder in folders if folder.is_dir() for child in folder.absolute().iterdir() if is_run(child)
    }
    return sorted(children, key=lambda child: child.stat().st_mtime, reverse=True)[:most]


def _describe_owner(owner: Path) -> str:
    try:
        content = read_json(owner)
        pid, host = typed(content, "pid", int, owner), typed(content, "host", str, owner)
    except CheckpointError:
        return "another process, which has only just started or ended"
    if host != socket.gethostname():
        return f"process {pid} on {host}"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return f"a worker that the ended process {pid} left behind"
    except (PermissionError, OverflowError):
        pass  # Alive, and another user's; or no number of a process.
    return f"process {pid}"


def surroundings(device: torch.device) -> dict[str, Any]:
    """What results of this process depend on beside their settings: versions, commit, machine."""
    versions = {"python": platform.python_version()} | {
        # What belongs to an extra may be missing; then nothing of this run needs it.
        name: version_of(name)
        for name in _PACKAGES
        if importlib.util.find_spec(name) is not None
    }
    return {"versions": versions, "git": git_state(), "machine": machine(device)}


def git_state() -> dict[str, Any] | None:
    """Commit of metarl's own checkout and whether its files differ from it; None for an installed metarl."""
    checkout = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # Inside site-packages git would find whatever repository the virtual environment lies in.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def machine(device: torch.device) -> dict[str, Any]:
    """What this machine is, and how much of it torch uses, as it stands in manifests."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()
