"""A checkpoint is data: one safetensors file whose header carries the rest of the state as JSON.

Loading one executes nothing, writing one replaces a file in a single step, and a digest over every tensor and the
JSON finds each damaged bit. :func:`save` and :func:`load` handle one file, :class:`CheckpointStore` a run's folder.
"""

from __future__ import annotations

import math
import re
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from metarl.errors import CheckpointError, ConfigError, NonFiniteError
from metarl.runs.encoding import content_digest, decode, to_text
from metarl.runs.files import parse_json, read_regular, shown, typed, write_atomically, write_failure

_FORMAT = "metarl-checkpoint-1"
_SUFFIX = ".safetensors"
_LENGTH_BYTES = 8
"""A safetensors file opens with the length of its JSON header, little-endian."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path`` so that a crash at any moment leaves either the old file or the new one.

    Args:
        path: the file; its folder must exist.
        state: dicts, lists and tuples, nested at will, of tensors, numbers, strings, bools and None. Subclasses
            come back as the plain type (an ``OrderedDict`` as a dict), tensors of every device on the CPU.

    Raises:
        CheckpointError: if the state holds something else, the disk is full or the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    text = to_text(state, tensors)
    metadata = {"format": _FORMAT, "state": text, "sha256": content_digest(tensors, text)}
    try:
        data = safetensors.torch.save(tensors, metadata)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: safetensors cannot hold this state: {error!r}.") from error
    try:
        write_atomically(path, data)
    except OSError as error:
        raise CheckpointError(f"could not write the checkpoint {path}: {write_failure(path, error)}") from error


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote, all tensors on the CPU; no content of the file is ever executed.

    Raises:
        CheckpointError: if the file cannot be read, is truncated or damaged, or is no metarl checkpoint.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise CheckpointError(f"could not read the checkpoint {path}: {error.strerror or error}.") from error
    metadata = _read_metadata(path, data)
    text = metadata["state"]
    try:
        tensors = safetensors.torch.load(data)
        if content_digest(tensors, text) != metadata["sha256"]:
            raise CheckpointError(f"{path} is damaged: its content does not match its sha256.")
        state = decode(parse_json(text, path), tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, AssertionError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is damaged: its state must be an object, got {type(state).__name__}.")
    return state


def state_digest(state: Mapping[str, Any]) -> str:
    """The sha256 that a checkpoint of ``state`` carries, in hexadecimal.

    Raises:
        CheckpointError: if the state holds something that a checkpoint cannot.
    """
    tensors: dict[str, Tensor] = {}
    return content_digest(tensors, to_text(state, tensors))


class CheckpointStore:
    """The checkpoints of one run: the last few by iteration, and the best by score.

    Only the process that trains may save (see :meth:`metarl.runs.folder.RunFolder.lock`); any may load.

    Args:
        folder: made at the first save; the one around it must exist.
        keep_last: how many of the newest iterations to keep.
    """

    def __init__(self, folder: Path, keep_last: int = 3) -> None:
        if keep_last < 1:
            raise CheckpointError(f"CheckpointStore.keep_last must be 1 or more, got {keep_last!r}.")
        self.folder = folder
        self.keep_last = keep_last
        self.resume_command = "metarl train"
        """The command that goes on with the run, for messages."""
        self.resume_options = ""
        """What it needs beside --resume."""

    @property
    def best_path(self) -> Path:
        """Where the checkpoint with the highest score lies, if any was scored."""
        return self.folder / f"best{_SUFFIX}"

    def path(self, iteration: int) -> Path:
        """Where the checkpoint of ``iteration`` lies."""
        return self.folder / f"iteration-{iteration:08d}{_SUFFIX}"

    def save(self, iteration: int, state: Mapping[str, Any], score: float | None = None) -> None:
        """Write the checkpoint of ``iteration`` and drop those that are too old.

        A run has one history: checkpoints of later iterations, left by a run that was resumed from before them, go.

        Args:
            iteration: counter, 0 or more.
            state: see :func:`save`; may hold the ``scores`` that ``score`` is the mean of.
            score: higher is better; a score above all earlier ones also writes ``best.safetensors``, as does a mean of
                more scores than that of the best so far.

        Raises:
            CheckpointError: if the checkpoint cannot be written; the previous ones are then intact.
            NonFiniteError: if the score is NaN or infinite.
        """
        if iteration < 0:
            raise CheckpointError(f"a checkpoint's iteration must be 0 or more, got {iteration!r}.")
        if score is not None and not math.isfinite(score):
            raise NonFiniteError(f"the score of iteration {iteration} is {score}; expected a finite number.")
        try:
            # Not with what is above it: a run's folder that was deleted meanwhile must not come back as a torso.
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"could not make the folder {self.folder}: {write_failure(self.folder, error)}"
            ) from error
        self._remove_leftovers()
        content = {"iteration": iteration, "score": score, "state": dict(state)}
        save(self.path(iteration), content)
        self._settle(content)

    def settle(self) -> None:
        """Finish what a process that was killed in :meth:`save` had begun: which file is the best, which are too old.

        Raises:
            CheckpointError: if the newest checkpoint is damaged or the folder cannot be written.
        """
        self._remove_leftovers()
        if iterations := self.iterations():
            self._settle(self._load_content(self.path(iterations[-1])))

    def _settle(self, newest: dict[str, Any]) -> None:
        """Drop what ``newest``, the content of a checkpoint that is written already, puts out of date.

        Killed at any line, the next call with the same content ends in the same state: later checkpoints go from the
        last one on, so that the newest that is left is always one to go on from, and the best is replaced, never gone.
        """
        iteration, score = newest["iteration"], newest["score"]
        known = self.iterations()
        earlier = [number for number in known if number <= iteration]
        for number in reversed(known):
            if number not in earlier[-self.keep_last :]:
                self.path(number).unlink(missing_ok=True)
        best = self._read_best()
        # A best of an abandoned part would stand in the way of every new one.
        if best is not None and best["iteration"] > iteration:
            best = None
        if best is None and score is None:
            self.best_path.unlink(missing_ok=True)
        elif score is not None and (best is None or best["score"] is None or _rank(newest) > _rank(best)):
            save(self.best_path, newest)

    def chosen_best(self, how: str) -> Path:
        """The best checkpoint, as somebody has asked for it.

        Args:
            how: what it is chosen by and when, for the message.

        Raises:
            ConfigError: if there is none yet.
        """
        if not self.best_path.is_file():
            raise ConfigError(
                f"{shown(self.best_path.parent.parent)} has no best checkpoint yet: {how}. Leave out --best to take "
                "the newest checkpoint."
            )
        return self.best_path

    def retire_best(self) -> None:
        """Choose the best anew from here on: scores so far are of other tasks. The best of them is kept beside it.

        Raises:
            CheckpointError: if the folder cannot be written.
        """
        best = self._read_best()
        if best is None:
            return
        kept = self.folder / f"best-of-other-tasks-{best['iteration']:08d}{_SUFFIX}"
        try:
            self.best_path.replace(kept)
        except OSError as error:
            raise CheckpointError(f"cannot rename {self.best_path}: {error.strerror or error}.") from error
        warnings.warn(
            f"the best checkpoint is chosen anew, since its score is of other tasks; the one so far is {kept.name}.",
            RuntimeWarning,
            stacklevel=3,
        )

    def iterations(self) -> list[int]:
        """Iterations that have a checkpoint, ascending."""
        names = [path.name for path in self.folder.glob(f"iteration-*{_SUFFIX}")]
        matches = [re.fullmatch(rf"iteration-(\d{{8,}}){re.escape(_SUFFIX)}", name) for name in names]
        return sorted(int(match[1]) for match in matches if match)

    def latest(self) -> Path:
        """The newest checkpoint's file.

        Raises:
            CheckpointError: if there is none.
        """
        iterations = self.iterations()
        if not iterations:
            raise CheckpointError(f"{self.folder} holds no checkpoint (iteration-*{_SUFFIX}).")
        return self.path(iterations[-1])

    def load_latest(self) -> tuple[int, dict[str, Any]]:
        """Iteration and state of the newest checkpoint.

        Raises:
            CheckpointError: if there is none, or if it is damaged; then with the command that resumes from the
                newest intact one before it.
        """
        latest = self.latest()
        try:
            return self.load(latest)
        except CheckpointError as error:
            raise CheckpointError(f"{error} {self._offer_previous()}") from error

    def load(self, path: Path) -> tuple[int, dict[str, Any]]:
        """Iteration and state of the checkpoint at ``path``.

        Raises:
            CheckpointError: if it is damaged or not a checkpoint of a run.
        """
        content = self._load_content(path)
        return content["iteration"], content["state"]

    def best_score(self) -> float | None:
        """The score of ``best.safetensors``; None if nothing was scored yet, or, with a warning, if it is damaged."""
        best = self._read_best()
        return None if best is None else best["score"]

    def _read_best(self) -> dict[str, Any] | None:
        if not self.best_path.exists():
            return None
        try:
            return self._load_content(self.best_path)
        except CheckpointError as error:
            warnings.warn(f"{error} The best checkpoint is chosen anew.", RuntimeWarning, stacklevel=4)
            return None

    def _load_content(self, path: Path) -> dict[str, Any]:
        content = load(path)
        if content.keys() != {"iteration", "score", "state"}:
            raise CheckpointError(
                f"{path} is not the checkpoint of a run: expected iteration, score and state, got {sorted(content)}."
            )
        number, score = typed(content, "iteration", int, path), content["score"]
        typed(content, "state", dict, path)
        if number < 0 or (score is not None and not math.isfinite(typed(content, "score", float, path))):
            raise CheckpointError(
                f"{path} is damaged: expected an iteration of 0 or more and a finite score or none, got {number!r} and "
                f"{score!r}."
            )
        return content

    def _offer_previous(self) -> str:
        for iteration in reversed(self.iterations()[:-1]):
            path = self.path(iteration)
            try:
                self.load(path)
            except CheckpointError:
                continue
            run = shlex.quote(str(self.folder.parent))
            return (
                f"The newest intact checkpoint before it is {path.name}; resume from it with: "
                f"{self.resume_command} --resume {run}{self.resume_options} --checkpoint {shlex.quote(str(path))}"
            )
        return "No earlier checkpoint of this run is intact; start the run again."

    def _remove_leftovers(self) -> None:
        """Remove what a process that was killed while it wrote has left; the run's lock keeps other writers out."""
        for leftover in self.folder.glob(f".*{_SUFFIX}.*.tmp"):
            leftover.unlink(missing_ok=True)


def _rank(content: Mapping[str, Any]) -> tuple[int, float]:
    """By what the best of scored checkpoints is chosen: a mean of few scores says little beside one of many."""
    return len(content["state"].get("scores", ())), content["score"]


def _read_metadata(path: Path, data: bytes) -> dict[str, str]:
    """The header's metadata.

    Raises:
        CheckpointError: saying what the file is instead, if it is no metarl checkpoint.
    """
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    opening = b'{"__metadata__"'
    if len(data) < _LENGTH_BYTES + len(opening):
        if _looks_pickled(data):
            raise _pickle_refused(path)
        raise CheckpointError(f"{path} is truncated: it holds only {len(data)} bytes.")
    # A header's length may look like a pickle's first bytes, so a file is taken for a pickle only without a header.
    if not data[_LENGTH_BYTES:].startswith(b"{"):
        if _looks_pickled(data):
            raise _pickle_refused(path)
        raise CheckpointError(f"{path} is not a metarl checkpoint: it is no safetensors file, or it is damaged.")
    if end > len(data):
        raise CheckpointError(f"{path} is truncated: its header alone needs {end} bytes, it holds {len(data)}.")
    try:
        header = parse_json(data[_LENGTH_BYTES:end], path)
        needed = end + max(
            (info["data_offsets"][1] for key, info in header.items() if key != "__metadata__"), default=0
        )
        metadata = header.get("__metadata__", {})
        if metadata.get("format") != _FORMAT or metadata.keys() != {"format", "state", "sha256"}:
            raise CheckpointError(
                f"{path} is not a metarl checkpoint: it is a safetensors file without the format {_FORMAT!r}."
            )
        texts = {name: typed(metadata, name, str, path) for name in metadata}
        truncated = len(data) < needed
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: its header cannot be read ({error!r}).") from error
    if truncated:
        raise CheckpointError(f"{path} is truncated: it should hold {needed} bytes, it holds {len(data)}.")
    return texts


def _looks_pickled(data: bytes) -> bool:
    """Whether a file is a pickle: raw (binary or text protocol), or in the zip archive of ``torch.save``."""
    if data.startswith(b"PK\x03\x04"):
        return b"data.pkl" in data
    if re.match(rb"\x80[\x02-\x05]", data):
        return True
    # The text protocol has no signature, but what can run code names a module and a function.
    return data.rstrip().endswith(b".") and re.search(rb"[ci][\w.]+\n[\w.]+\n", data) is not None


def _pickle_refused(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a metarl checkpoint: it is a pickle, which could run code; nothing of it was executed. "
        f"Expected a {_SUFFIX} file that metarl wrote."
    )
