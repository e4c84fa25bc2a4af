"""TensorBoard's event files, written at once and in this thread: what fails is told here, and not by a thread's end."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class EventFile:
    """One event file of scalars.

    Args:
        folder: made if need be.
        purge_step: TensorBoard forgets what earlier files in the folder say of this step and later ones.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of their names; two may begin in one second, or the clock be set back.
        begun = [int(match[1]) for path in folder.iterdir() if (match := _NAME.match(path.name))]
        second = max(int(time.time()), max(begun, default=0) + 1)
        name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            session = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=session))
        self._file.flush()

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Append scalars of one step.

        Raises:
            OSError: if they cannot be written.
        """
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._file.flush()

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: if what a failed write has left cannot be written now either.
        """
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
