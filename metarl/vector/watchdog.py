"""A watch over the environments of this process: nobody else would tell of a call that does not come back.

Workers are watched by their parent, which kills those that hang. Nothing can kill a thread of this process: a call
that runs Python code, or waits for the system, is ended by an exception; one that stays inside C is told on standard
error. One that never releases Python's lock there holds up the watch too: only ``num_workers=1`` is safe from it.
"""

from __future__ import annotations

import ctypes
import math
import os
import reprlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from metarl.errors import WorkerError
from metarl.types import Task

Result = TypeVar("Result")

CALL_TIMEOUT = 45.0
"""Seconds that one instance may take for one call before it counts as hung, in this process and in a worker."""

_GRACE = 2.0
"""Seconds that a hung call has to end by the exception that it was sent."""

_IDLE_LOOKS = 5
"""Looks at environments that nobody steps after which a watch ends; the next call starts another one."""

_ADVICE = (
    ". A worker process, of which num_workers=1 makes one, can be ended in any case. If it is only slow, give it more "
    "time: make_vector=lambda n: GymVectorEnv(make_env, n, first_task=..., worker_timeout=SECONDS)."
)

_DEBUGGERS = ("bdb", "pydevd")
"""Modules that stand on the stack while somebody looks at a stopped program."""


class Call(NamedTuple):
    """A call into an environment, which its text names."""

    verb: str
    instance: int
    task: Task

    def __str__(self) -> str:
        return f"in {self.verb} of instance {self.instance} with task {reprlib.repr(self.task)}"


def no_progress(who: str, timeout: float, what: object) -> str:
    """The sentence on a hang, up to what was done about it."""
    return f"{who} made no progress for {timeout:g} s {what}"


class _Hung(BaseException):
    """Raised inside a call that hangs; no ``except Exception`` of an environment may swallow it."""


class Watchdog:
    """Ends calls into environments of this process that hang, as far as Python can, and tells of all of them.

    One thread looks about once a second whether the instance at work is still in the same call; it exists only while
    environments are stepped. Whoever is looked at by a debugger does not hang, and time in which the process was
    stopped does not count.

    Args:
        progress: ``[2]`` int64, see :class:`metarl.vector.buffers.Buffers`: its second number grows with every call.
        timeout: seconds without progress after which a call counts as hung.
        describe: says, without a full stop, which call of which environment hangs.
    """

    def __init__(self, progress: NDArray[np.int64], timeout: float, describe: Callable[[], str]) -> None:
        self._progress = progress
        self._timeout = timeout
        self._describe = describe
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._watched: int | None = None
        self._hung: str | None = None

    def watch(self, call: Callable[[], Result]) -> Result:
        """What ``call`` returns, which is watched while it runs in this thread.

        Raises:
            WorkerError: in place of whatever becomes of a call that was told to have hung.
        """
        self._begin()
        # What is sent may be raised at any line from here on; no other function, such as a context manager's, may stand
        # between it and the last line.
        try:
            try:
                result = call()
            finally:
                with self._lock:
                    if self._hung is not None:
                        # The call has come back by itself, and what was sent may not have been raised yet.
                        _send(threading.get_ident(), None)
                    self._watched = None
        except BaseException:
            if self._hung is None:
                raise
        if self._hung is not None:
            self._watched = None
            raise WorkerError(self._hung)
        return result

    def _begin(self) -> None:
        with self._lock:
            self._watched, self._hung = threading.get_ident(), None
            # A process that was forked off has no threads but one.
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._look, name="metarl-watchdog", daemon=True)
                self._watcher.start()

    def _look(self) -> None:
        interval = min(self._timeout / 4, 1.0)
        call, stuck, idle = -1, 0.0, 0
        before = time.monotonic()
        while idle < _IDLE_LOOKS:
            time.sleep(interval)
            now = time.monotonic()
            passed, before = min(now - before, 2 * interval), now
            with self._lock:
                watched, calls = self._watched, int(self._progress[1])
                frame = None if watched is None else sys._current_frames().get(watched)
                idle = idle + 1 if frame is None else 0
                if idle == _IDLE_LOOKS:
                    self._watcher = None
                if frame is None or calls != call or _is_debugged(frame):
                    call, stuck = calls, 0.0
                    continue
                stuck += passed
                if stuck <= self._timeout:
                    continue
                self._hung = f"{self._describe()}{_where(frame)}"
                _send(watched, _Hung)
            self._see_to_it(calls)
            stuck = -math.inf  # Told once.

    def _see_to_it(self, calls: int) -> None:
        """Wake a hung call that waits for the system, and tell of one that does not end even so."""
        for last in (False, True):
            deadline = time.monotonic() + _GRACE / 2
            while time.monotonic() < deadline:
                time.sleep(_GRACE / 40)
                if self._watched is None or self._progress[1] != calls:
                    return
            with self._lock:
                watched = self._watched
                if watched is not None and not last:
                    _wake(watched)
        print(
            f"\nwarning: {self._hung}\n\nPython cannot end this call, and it hears no Ctrl-C. Kill the process with "
            f"kill -KILL {os.getpid()}; what the last checkpoint holds is safe.",
            file=sys.stderr,
            flush=True,
        )


def _is_debugged(frame: FrameType) -> bool:
    frames = traceback.walk_stack(frame)
    return any(str(entry.f_globals.get("__name__")).split(".")[0] in _DEBUGGERS for entry, _ in frames)


def _where(frame: FrameType) -> str:
    stack = traceback.format_stack(frame, limit=8)
    return f"{_ADVICE}\n\nIt hung here:\n{''.join(stack).rstrip()}"


def _send(thread: int | None, error: type[BaseException] | None) -> None:
    """Raise an exception in a thread as soon as it runs Python code; None takes back what was not raised yet."""
    value: Any = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread or 0), value)


def _wake(thread: int) -> None:
    """Have a thread that waits for the system run Python code: only a signal's handler can."""
    if thread == threading.main_thread().ident and callable(signal.getsignal(signal.SIGINT)):
        signal.pthread_kill(thread, signal.SIGINT)
