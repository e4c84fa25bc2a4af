"""Which tasks the pool's fast code may step: those in which it gives upstream's numbers, bit for bit.

With the verified versions that was shown for every task (``tests/test_metaworld_vector_env.py``). With other versions
each task is tested where it is used for the first time (:mod:`metarl.envs.metaworld.worker.self_test`), and what was
found is kept on disk for as long as the versions, this code and this processor's arithmetic stay the same.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import platform
import subprocess
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from metarl.digest import task_digest
from metarl.envs.metaworld import worker
from metarl.envs.metaworld.cache import cache_folder, read_cached, write_cached
from metarl.envs.metaworld.upstream import installed_version
from metarl.vector.workers import interpreter_settings

VERIFIED_VERSIONS = {
    "metaworld": ("3.1.1",),
    "mujoco": ("3.3.0",),
    "numpy": ("2.4.6",),
    "scipy": ("1.17.1",),
}
"""Versions with which the fast code was shown to equal upstream in every task."""

_BOOT = "from metarl.envs.metaworld.worker.start import self_test; self_test()"
_SECONDS_A_NAME = 4
"""What the user is told to expect."""
_MOST_SECONDS_A_NAME = 120.0
_FORMAT = 1


def is_verified() -> bool:
    """Whether the installed versions are verified ones.

    Raises:
        ConfigError: if one of the packages is not installed.
    """
    return all(installed_version(name) in known for name, known in VERIFIED_VERSIONS.items())


def fast_code_differences(names: Sequence[str], reward_version: str, num_processes: int) -> dict[str, str]:
    """How the fast code differs from upstream, in words, by task name; empty where it does not.

    What no earlier test on this machine found out is tested now, in processes of its own. A difference is told in a
    warning.

    Args:
        names: tasks of upstream's.
        reward_version: upstream's reward functions.
        num_processes: how many tests run at the same time.
    """
    folder = cache_folder() / "metaworld" / f"self-test-{_key()[:12]}"
    paths = {name: folder / f"{name}-{reward_version}.json" for name in names}
    found = {name: difference for name, path in paths.items() if (difference := _read(path)) is not None}
    untested = [name for name in names if name not in found]
    if untested:
        tested, died = _test(untested, reward_version, num_processes)
        for name, difference in tested.items():
            write_cached(paths[name], _FORMAT, {"key": _key(), "difference": difference}, "results of self-tests")
        # Whatever ended a test (no memory, a signal) need not happen again, so it is not kept.
        found |= tested | died
    for difference, group in itertools.groupby(sorted(names, key=found.__getitem__), found.__getitem__):
        if difference:
            warnings.warn(
                f"Meta-World runs {', '.join(group)} on upstream's own code, at its speed: the fast code was not shown "
                f"to give the same numbers with {_described_versions()}: {difference}.",
                stacklevel=2,
            )
    return found


def _test(names: Sequence[str], reward_version: str, num_processes: int) -> tuple[dict[str, str], dict[str, str]]:
    """Differences by name, and, of names whose test did not come to its end, the reason."""
    shares = [share for first in range(num_processes) if (share := names[first::num_processes])]
    seconds = _SECONDS_A_NAME * len(shares[0])
    print(
        f"Meta-World: testing the fast code against upstream with {_described_versions()} for {len(names)} task(s), "
        f"once; that takes about {seconds} s on an idle machine ...",
        file=sys.stderr,
        flush=True,
    )
    tested: dict[str, str] = {}
    died: dict[str, str] = {}
    with ThreadPoolExecutor(len(shares)) as threads:
        for share, (lines, reason) in zip(shares, threads.map(partial(_run, reward_version), shares), strict=True):
            tested |= dict(json.loads(line) for line in lines)
            died |= {name: reason for name in share if name not in tested}
    return tested, died


def _run(reward_version: str, names: Sequence[str]) -> tuple[list[str], str]:
    """Test one share in a process of its own: the lines that it printed, and how it ended."""
    command = [sys.executable, "-P", "-c", _BOOT, reward_version, *names]
    seconds = _MOST_SECONDS_A_NAME * len(names)
    process = subprocess.Popen(
        command,
        env=interpreter_settings(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            return output.splitlines(), f"its test did not end within {seconds:g} s"
    last = errors.strip().rpartition("\n")[2]
    return output.splitlines(), f"its test ended with status {process.returncode} ({last or 'it said nothing'})"


def _read(path: Path) -> str | None:
    content = read_cached(path, _FORMAT)
    if content is None or content.get("key") != _key() or not isinstance(content.get("difference"), str):
        return None
    return str(content["difference"])


def _versions() -> dict[str, str]:
    return {name: installed_version(name) for name in VERIFIED_VERSIONS}


def _described_versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in _versions().items())


@functools.cache
def _key() -> str:
    """Digest of all that a test's result depends on."""
    code = hashlib.sha256()
    for path in sorted(Path(worker.__path__[0]).rglob("*.py")):
        code.update(path.read_bytes())
    machine = [platform.machine(), platform.python_version(), _arithmetic()]
    return task_digest({"versions": _versions(), "code": code.digest(), "machine": machine}).hex()


def _arithmetic() -> bytes:
    """Bits of sums and functions that NumPy and its BLAS compute in another way on another processor."""
    vectors = np.random.default_rng(0).uniform(0.1, 2.0, (200, 9))
    dots = [vector[:num].dot(vector[:num]) for vector in vectors for num in (2, 3, 4, 9)]
    matrices = vectors.reshape(-1, 3, 3)
    results = [np.array(dots), matrices @ matrices, np.exp(vectors), np.log(vectors), vectors**2.5, np.sin(vectors)]
    return hashlib.sha256(b"".join(result.tobytes() for result in results)).digest()
