"""Processes that have joined one group and run the same functions."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from metarl.distributed import join


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun would leave in a rank's environment."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Ranks:
    """A group of processes that lives for many tests, since each of them loads torch.

    Args:
        world_size: how many.
    """

    def __init__(self, world_size: int) -> None:
        context, port = multiprocessing.get_context("spawn"), free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(environment(rank, world_size, port), theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returns on every rank, or the text of what it raised there."""
        job = cloudpickle.dumps((function, arguments))
        for pipe in self._pipes:
            pipe.send(job)
        return [pipe.recv() for pipe in self._pipes]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(20)
            process.kill()


def _serve(variables: dict[str, str], pipe: Connection) -> None:
    os.environ.update(variables)
    with join():
        while (job := pipe.recv()) is not None:
            function, arguments = cloudpickle.loads(job)
            try:
                pipe.send(function(*arguments))
            except Exception:
                pipe.send(traceback.format_exc())
