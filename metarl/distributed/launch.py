"""How a process finds the others of its run: through what torchrun leaves in the environment."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from metarl.distributed.group import Group, current, using
from metarl.errors import ConfigError, MetarlError, told

_MEETING = 45.0
"""Seconds that ranks wait for each other at the start."""

_GRACE = 5.0
"""Seconds that connections may take longer before their rank is ended."""

_UNREACHABLE = (
    "they reach that address, but not each other. Name the network interface that leads to the others, "
    "GLOO_SOCKET_IFNAME=eth0 for one."
)

_WAITING = 1800
"""Seconds that a rank waits for the others in a sum, unless ``METARL_RANK_TIMEOUT`` says otherwise.

Environments may be slow, and one rank may have nothing to do while another evaluates. A rank that ends is noticed at
once, and one whose environment hangs when the watchdog of environments ends it: this is for machines that are frozen,
or gone without a word.
"""

_FAREWELL = 10.0
"""Seconds in which a rank that failed tells the others why."""

_GOODBYE = 1.0
"""Seconds that the rank with the store outlives its connections."""

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def asked_for() -> int:
    """How many ranks the environment asks for; 1 without ``WORLD_SIZE``.

    Raises:
        ConfigError: if that is no whole number above 0.
    """
    return _number("WORLD_SIZE", "1", 1)


@contextlib.contextmanager
def join() -> Iterator[Group]:
    """Join the other ranks of the run that torchrun started, and make them the current group inside the block.

    Without ``WORLD_SIZE``, or with that of 1, there is nobody to join and nothing changes.

    Raises:
        ConfigError: if the environment lacks something or contradicts itself; if the port is in use; if the others, or
            the address where they meet, do not answer within 45 seconds.
        WorkerError: inside the block, from whatever takes a sum, if another rank ends or does not come.
    """
    world_size = asked_for()
    if world_size == 1 or current().world_size > 1:
        with using(current()) as group:
            yield group
        return
    group = _meet(world_size)
    try:
        with using(group):
            yield group
            group.barrier()  # The store lives in rank 0, which must not leave before the others have read it.
    except BaseException as error:
        # Cut off from the others, it could wait for them here once more, and without end.
        with _at_most(_FAREWELL, _reason(error)):
            group.report(_reason(error))
            dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()
    finally:
        if group.is_first and not _torchrun_has_the_store():
            time.sleep(_GOODBYE)  # The store is this process's own, and the others may want to read it.


def require_ready(what: str, data_parallel: bool, meta_batch_size: int) -> None:
    """Refuse training that more than one rank would do wrongly.

    Args:
        what: an agent or learner, for the message.
        data_parallel: whether it takes its sums over tasks with :func:`current`.
        meta_batch_size: tasks that the ranks share out.

    Raises:
        ConfigError: for a process that was started as one of many and has not joined the others, for an agent or
            learner that knows nothing of ranks, and for more ranks than tasks.
    """
    world_size = current().world_size
    if world_size > 1 and not data_parallel:
        raise ConfigError(
            f"{what} learns in one process only: its meta_update takes its sums over the tasks of its own process. "
            "Start one process without torchrun, or take the sums with metarl.distributed.current() and set "
            "data_parallel = True."
        )
    if world_size > meta_batch_size:
        raise ConfigError(
            f"{world_size} ranks share out the tasks of a meta-batch, and there are {meta_batch_size}: start as many "
            "ranks at most, or set --meta-batch-size higher."
        )
    if asked_for() > 1 and current().world_size == 1:
        raise ConfigError(
            f"WORLD_SIZE is {asked_for()}, but this process has not joined the other ranks and would train alone. Put "
            "the training into `with metarl.distributed.join():`, or start one process without torchrun."
        )


def device_of_rank() -> torch.device:
    """The CUDA device of this rank; without other ranks the current one.

    Raises:
        ConfigError: for more ranks on this machine than it has devices.
    """
    if current().world_size == 1:
        return torch.device("cuda")
    here, local, count = ranks_here(), _number("LOCAL_RANK", "0", 0), torch.cuda.device_count()
    if max(here, local + 1) > count:
        raise ConfigError(
            f"{max(here, local + 1)} ranks on this machine need as many CUDA devices, and torch sees {count}: start "
            f"--nproc-per-node {count}, or use --device cpu."
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def ranks_here() -> int:
    """How many ranks of the current group share this machine, and so its cores; 1 without other ranks."""
    return 1 if current().world_size == 1 else _number("LOCAL_WORLD_SIZE", "1", 1)


def launcher() -> str | None:
    """What tells the torchrun that started this process from any other, also after it has restarted its processes."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        started = "unknown"
    return f"{socket.gethostname()}/{parent}/{started}/{os.environ['TORCHELASTIC_RUN_ID']}"


def restarts() -> int:
    """How often torchrun has restarted the processes of this run."""
    return _number("TORCHELASTIC_RESTART_COUNT", "0", 0)


def _meet(world_size: int) -> Group:
    if missing := [name for name in _NEEDED if not os.environ.get(name)]:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set: start the ranks with torchrun, or "
            f"set {', '.join(_NEEDED)}."
        )
    rank, port = _number("RANK", "0", 0), _number("MASTER_PORT", "0", 1)
    where = f"{os.environ['MASTER_ADDR']}:{port}"
    if port >= 2**16:
        raise ConfigError(f"MASTER_PORT must be a number from 1 to 65535, got {port}.")
    if rank >= world_size:
        raise ConfigError(f"RANK must be a number from 0 to WORLD_SIZE - 1 = {world_size - 1}, got {rank}.")
    apart = f"rank {rank} of {world_size} could not meet the others at {where} within {_MEETING:.0f} seconds"
    deadline = time.monotonic() + _MEETING
    waiting = timedelta(seconds=_number("METARL_RANK_TIMEOUT", str(_WAITING), 1))
    try:
        if rank > 0 or _torchrun_has_the_store():
            _wait_for_answer(os.environ["MASTER_ADDR"], port, deadline)
        board, _, _ = next(rendezvous("env://", timeout=_left(deadline)))
        store = PrefixStore(f"metarl/{_agree(board, rank, world_size, deadline)}", board)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        # Connections are made within the time of the meeting; only what ranks do later may take longer.
        with _at_most(deadline + _GRACE - time.monotonic(), f"{apart}: {_UNREACHABLE}"):
            left = _left(deadline)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=left)
            ranks = dist.new_group(timeout=waiting)
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise ConfigError(
                f"the port {where} is in use: give another one, --master-port of torchrun or MASTER_PORT. ({first})"
            ) from error
        hint = _UNREACHABLE if "gloo" in first.lower() else "do all ranks run, and can they reach that address?"
        raise ConfigError(f"{apart}: {hint} ({first})") from error
    group = Group(rank, world_size, ranks, store, waiting)
    if len({*group.gather(rank)}) != world_size:
        raise ConfigError(f"two of the {world_size} ranks have one number; RANK must differ.")
    return group


def _agree(board: Store, rank: int, world_size: int, deadline: float) -> str:
    """A name for this meeting that is no earlier one's.

    The store may be torchrun's, which outlives its processes: what ranks wrote before they were restarted is there,
    and how often each machine has restarted its ranks need not be the same. So every rank comes under a new name, rank
    0 answers to all names that it finds, and those that take up its answer are there.

    Raises:
        RuntimeError: if some do not come.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        board.set(f"metarl/hello/{rank}", own)
        board.wait([f"metarl/welcome/{own}"], _left(deadline))
        meeting = str(board.get(f"metarl/welcome/{own}").decode())
        board.set(f"metarl/{meeting}/ready/{rank}", "")
        return meeting
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if board.check([f"metarl/hello/{other}"]):
                board.set(f"metarl/welcome/{board.get(f'metarl/hello/{other}').decode()}", own)
        missing = {other for other in missing if not board.check([f"metarl/{own}/ready/{other}"])}
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"rank {', '.join(map(str, sorted(missing)))} did not come")
        time.sleep(0.02)
    return own


@contextlib.contextmanager
def _at_most(seconds: float, sentence: str) -> Iterator[None]:
    """End this process if the block takes longer, as gloo and its store wait without end for some that are gone."""

    def end() -> None:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _torchrun_has_the_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _wait_for_answer(address: str, port: int, deadline: float) -> None:
    """Wait until something listens there; the store's own client would wait for up to twice its timeout."""
    while True:
        try:
            socket.create_connection((address, port), timeout=_left(deadline).total_seconds()).close()
            return
        except OSError:
            if time.monotonic() > deadline - 1.0:
                raise
            time.sleep(0.2)


def _left(deadline: float) -> timedelta:
    return timedelta(seconds=max(1.0, deadline - time.monotonic()))


def _number(name: str, default: str, least: int) -> int:
    text = os.environ.get(name, default)
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise ConfigError(f"the environment's {name} must be a whole number of {least} or more, got {text!r}.")
    return number


def _reason(error: BaseException) -> str:
    if isinstance(error, MetarlError):
        return told(error)
    return "".join(traceback.format_exception(error)).rstrip()
