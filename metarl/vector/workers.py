"""Worker processes that step instances over shared memory: one message per worker and batch step.

Workers are fresh interpreters rather than forks (torch's threads and CUDA do not survive a fork) and rather than
``multiprocessing`` children (those import the user's main script again, which breaks scripts without a guard).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import itertools
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import IO, Any, NoReturn, Protocol

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from metarl.errors import WorkerError, raised
from metarl.types import Task
from metarl.vector.buffers import Buffers, Layout
from metarl.vector.watchdog import Call, no_progress

Request = tuple[int, Task, int | None]
"""Start an episode: row, task, seed."""

_START_TIMEOUT = 50.0
"""Seconds for a worker to import its modules."""

_EXIT_TIMEOUT = 5.0
"""Seconds for a worker to close its environments before it is killed."""

_PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""

_PARENTS_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")
"""What a whole process group gets: the parent finishes its iteration, which needs its workers, and then ends them."""

_BOOT = f"""
import signal
theirs = [getattr(signal, name) for name in {_PARENTS_SIGNALS!r}]
for number in theirs: signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, theirs)
from metarl.vector.workers import serve
serve()
"""
"""Ignores them from the worker's first instant: it starts with them blocked."""


class Group(Protocol):
    """Instances that run in one process, over their rows of :class:`Buffers`."""

    def reset(self, requests: Sequence[Request]) -> None:
        """Start the requested episodes."""

    def step(self) -> None:
        """Advance every running instance by the action in its row."""

    def close(self) -> None:
        """Close every environment."""


@dataclass
class _Worker:
    """The parent's end of one worker."""

    process: subprocess.Popen[bytes]
    connection: Connection
    trace: IO[bytes]
    first: int
    buffers: Buffers
    doing: str = "start"


class WorkerPool:
    """Divides instances among processes; any failure ends all of them and raises ``WorkerError``.

    Args:
        make_group: builds one worker's instances from the number of its first instance and its buffers; it travels
            by cloudpickle.
        layout: sizes for all instances together.
        num_workers: number of processes, at most ``layout.num``.
        timeout: seconds without progress after which a worker counts as hung.
    """

    def __init__(
        self, make_group: Callable[[int, Buffers], Group], layout: Layout, num_workers: int, timeout: float
    ) -> None:
        self._timeout = timeout
        self._tasks: list[Task] = [None] * layout.num
        bounds = [layout.num * index // num_workers for index in range(num_workers + 1)]
        try:
            payload = cloudpickle.dumps((cloudpickle.dumps(make_group), _own_env_specs()))
        except Exception as error:
            raise WorkerError(f"make_env cannot be sent to a worker process ({error}); set num_workers=0.") from error
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._workers)
        for first, end in itertools.pairwise(bounds):
            self._workers.append(_start(first, layout.rows(end - first)))
        for worker in self._workers:
            self._send(worker, payload)
        # Registered once: a step waits without building a selector.
        self._poll = select.poll()
        for worker in self._workers:
            self._poll.register(worker.connection, select.POLLIN)
        self._wait(_START_TIMEOUT)

    @property
    def rows(self) -> list[tuple[slice, Buffers]]:
        """Each worker's instances and their buffers."""
        return [(slice(w.first, w.first + len(w.buffers.rewards)), w.buffers) for w in self._workers]

    def reset(self, requests: Sequence[Request]) -> None:
        """Start the requested episodes, in all workers at once.

        Raises:
            WorkerError: if an environment raises, or a worker dies or hangs.
        """
        for row, task, _ in requests:
            self._tasks[row] = task
        for worker in self._workers:
            end = worker.first + len(worker.buffers.rewards)
            own = [(row - worker.first, task, seed) for row, task, seed in requests if worker.first <= row < end]
            worker.doing = "reset"
            self._send(worker, cloudpickle.dumps(own))
        self._wait(self._timeout)

    def step(self) -> None:
        """Advance all instances.

        Raises:
            WorkerError: if an environment raises, or a worker dies or hangs.
        """
        self.begin_step()
        self.end_step()

    def begin_step(self) -> None:
        """Have all instances advance, and do not wait.

        Raises:
            WorkerError: if a worker died.
        """
        for worker in self._workers:
            worker.doing = "step"
            self._send(worker, b"")

    def end_step(self) -> None:
        """Wait until all instances have advanced.

        Raises:
            WorkerError: if an environment raised, or a worker died or hangs.
        """
        self._wait(self._timeout)

    def close(self) -> None:
        """End the processes; environments are closed where that takes a few seconds at most."""
        self._finalizer()

    def _send(self, worker: _Worker, message: bytes) -> None:
        try:
            worker.connection.send_bytes(message)
        except BlockingIOError:
            self._fail(worker, self._hang(worker, _START_TIMEOUT))
        except OSError:
            self._fail(worker, self._death(worker))

    def _wait(self, timeout: float) -> None:
        """Receive one answer from every worker."""
        # The timeout bounds one instance's call, so it starts anew whenever a worker enters another one.
        entered = {worker.first: (-1, 0.0) for worker in self._workers}
        wait_ms = 1000 * min(timeout, 1.0)
        pending = {worker.connection.fileno(): worker for worker in self._workers}
        while pending:
            # A worker that has answered shows up again only if it died since; the next call finds that out.
            ready = [pending.pop(descriptor) for descriptor, _ in self._poll.poll(wait_ms) if descriptor in pending]
            for worker in ready:
                try:
                    failure = worker.connection.recv_bytes()
                except (EOFError, OSError):
                    self._fail(worker, self._death(worker))
                if failure:
                    self._fail(worker, failure.decode())
            if ready:
                continue
            now = time.monotonic()
            for worker in pending.values():
                calls, since = entered[worker.first]
                if worker.buffers.progress[1] != calls:
                    entered[worker.first] = int(worker.buffers.progress[1]), now
                elif now - since > timeout:
                    self._fail(worker, self._hang(worker, timeout))

    def _fail(self, worker: _Worker, message: str) -> NoReturn:
        for other in self._workers:
            other.process.kill()
        self.close()
        raise WorkerError(message)

    def _call(self, worker: _Worker) -> Call | str:
        """What a worker is doing."""
        if worker.doing == "start":
            return "while starting"
        row = worker.first + int(worker.buffers.progress[0])
        return Call(worker.doing, row, self._tasks[row])

    def _death(self, worker: _Worker) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(_EXIT_TIMEOUT)
        code = worker.process.returncode
        if code is None:
            how = "closed its pipe"
        else:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return f"worker process {how} {self._call(worker)}.{_section('It left this trace', _read(worker.trace))}"

    def _hang(self, worker: _Worker, timeout: float) -> str:
        with contextlib.suppress(ProcessLookupError):
            worker.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 2.0
        trace = before = ""
        # The dump is complete once it stops growing.
        while time.monotonic() < deadline and (not trace or trace != before):
            time.sleep(0.1)
            before, trace = trace, _read(worker.trace)
        said = no_progress("worker process", timeout, self._call(worker))
        return f"{said}; it was killed.{_section('It hung here', trace)}"


def _section(title: str, text: str) -> str:
    return f"\n\n{title}:\n{text}" if text else ""


def _read(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 1 << 16, 0).decode(errors="replace").strip()


def _start(first: int, layout: Layout) -> _Worker:
    """Start an interpreter that runs :func:`serve`; what it needs to begin goes through the environment."""
    ours, theirs = socket.socketpair()
    # A stopped worker reads nothing: a message larger than the socket's buffer must not block for ever.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_START_TIMEOUT), 0))
    trace = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the worker
    with theirs, tempfile.TemporaryFile() as file:
        file.truncate(layout.num_bytes)
        memory = mmap.mmap(file.fileno(), layout.num_bytes)
        handles = (theirs.fileno(), file.fileno(), trace.fileno())
        sizes = (layout.num, layout.obs_dim, -1 if layout.action_dim is None else layout.action_dim)
        # The kernel's word for a parent is the thread that started a process, and only the main one lives as long.
        bound = threading.current_thread() is threading.main_thread()
        numbers = (*handles, *sizes, first, os.getpid(), int(bound))
        with _signals_held():
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, *map(str, numbers)],
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                env=interpreter_settings(),
            )
    return _Worker(process, Connection(ours.detach()), trace, first, layout.view(memory))


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Block the signals that belong to the parent: what is started here inherits that; they arrive here afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in _PARENTS_SIGNALS])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def interpreter_settings() -> dict[str, str]:
    """Environment variables for a fresh interpreter that imports what this one can, one of several at work."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        # One thread each: the processes are the parallelism.
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    }


def _stop(workers: list[_Worker]) -> None:
    """Ask every worker to leave by closing its pipe, and kill those that stay."""
    for worker in workers:
        worker.connection.close()
    deadline = time.monotonic() + _EXIT_TIMEOUT
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.trace.close()
    workers.clear()


def serve() -> None:
    """Run in a worker: build the group, then reset and step it until the parent closes the pipe."""
    pipe, file, trace, num, obs_dim, action_dim, first, parent, bound = (int(argument) for argument in sys.argv[1:])
    if bound:
        _die_with_parent()
    # Looks at once: the parent may have died before the kernel was told.
    threading.Thread(target=_follow_parent, args=(parent,), daemon=True).start()
    trace_file = os.fdopen(trace, "w")
    faulthandler.enable(trace_file, all_threads=False)
    faulthandler.register(signal.SIGUSR1, trace_file, all_threads=False)
    layout = Layout(num, obs_dim, None if action_dim < 0 else action_dim)
    buffers = layout.view(mmap.mmap(file, layout.num_bytes))
    os.close(file)
    connection = Connection(pipe)
    group: Group | None = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            message = connection.recv_bytes()
            try:
                if group is None:
                    group = _load_group(message)(first, buffers)
                elif message:
                    group.reset(cloudpickle.loads(message))
                else:
                    group.step()
                answer = b""
            except Exception as error:
                answer = _report(error).encode()
            connection.send_bytes(answer)
    if group is not None:
        group.close()


def _own_env_specs() -> dict[str, EnvSpec]:
    """Environments that the main script registered: a worker never runs that script."""
    specs = {}
    for key, spec in gym.registry.items():
        entry_point: Any = spec.entry_point
        if isinstance(entry_point, str) and entry_point.startswith("__main__:"):
            entry_point = load_env_creator(entry_point)
        if not isinstance(entry_point, str | None) and entry_point.__module__ == "__main__":
            specs[key] = dataclasses.replace(spec, entry_point=entry_point)
    return specs


def _load_group(message: bytes) -> Callable[[int, Buffers], Group]:
    make_group, specs = cloudpickle.loads(message)
    gym.registry.update(specs)
    loaded: Callable[[int, Buffers], Group] = cloudpickle.loads(make_group)
    return loaded


def _report(error: Exception) -> str:
    cause, what = (error.__cause__, str(error)) if error.__cause__ else (error, "a worker process failed")
    return raised(what, cause, "Traceback in the worker process")


def _die_with_parent() -> None:
    """Have the kernel kill this process with its parent, where it can: also one that is stuck in C code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _follow_parent(parent: int) -> None:
    """Leave when the parent is gone, also in the middle of a long step."""
    # Signals belong to the main thread: the trace of a hang must show where that one is.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
