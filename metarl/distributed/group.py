"""The processes of one run, and the sums that they take together.

Every process, a *rank*, draws the whole meta-batch and keeps a contiguous share of its tasks. What a task draws belongs
to its index in the meta-batch, so that the number of ranks changes the order of sums and nothing else.

Whatever reduces over tasks asks :func:`current` for the group, which outside of :func:`metarl.distributed.join` is one
rank alone: its sums are what they are given, bit for bit, and cost nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store

from metarl.errors import ConfigError, WorkerError

Value = TypeVar("Value")

_FAILURE = "metarl/failure"
"""Key of the store under which the first rank that fails says why."""

_GRACE = timedelta(seconds=3)
"""How long a rank that lost another one waits for the reason."""

_PRECEDENCE = 1.0
"""Seconds by which the rank that failed comes first in what all ranks print."""


@dataclass
class Traffic:
    """What a rank has exchanged with the others so far.

    Attributes:
        seconds: in sums and messages, waiting for slower ranks included.
        sums: of tensors.
        num_bytes: that it gave to sums.
        messages: gatherings and broadcasts of objects, which are small but for what a run begins with.
    """

    seconds: float = 0.0
    sums: int = 0
    num_bytes: int = 0
    messages: int = 0


class Group:
    """The ranks of one run. Every method but :meth:`share` is called by all of them, in the same order.

    Args:
        rank: this process's number, from 0.
        world_size: how many there are.
        connections: to the other ranks; None for one alone.
        store: what the ranks met at, where the first that fails says why; None for one alone.
        waiting: how long the ranks wait for each other in a sum, for the message.

    Attributes:
        traffic: counts what this rank exchanges.

    Raises:
        ConfigError: for a rank that is not below ``world_size``.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        connections: dist.ProcessGroup | None = None,
        store: Store | None = None,
        waiting: timedelta = timedelta(),
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"a rank must be a number from 0 to world_size - 1 = {world_size - 1}, got {rank}.")
        self.rank = rank
        self.world_size = world_size
        self._connections = connections
        self._store = store
        self._waiting = waiting
        self._echo: str | None = None
        self.traffic = Traffic()

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what there is one of: logs, checkpoints, progress."""
        return self.rank == 0

    def share(self, num_tasks: int) -> slice:
        """The tasks of this rank, contiguous; sizes differ by one at most, and the lower ranks have the larger ones."""
        size, larger = divmod(num_tasks, self.world_size)
        first = self.rank * size + min(self.rank, larger)
        return slice(first, first + size + (self.rank < larger))

    # Tensors --------------------------------------------------------------------------------------------------------

    def sum(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors, detached, each summed over ranks in their order: the same bits on every rank.

        They travel as one flat tensor, in the widest of their dtypes and whole numbers in float64.
        """
        if self.world_size == 1:
            return list(tensors)
        dtype = tensors[0].dtype
        for tensor in tensors:
            dtype = torch.promote_types(dtype, tensor.dtype if tensor.is_floating_point() else torch.float64)
        flat = torch.cat([tensor.detach().flatten().to(dtype) for tensor in tensors])
        parts = [torch.empty_like(flat) for _ in range(self.world_size)]
        self._together("a sum", lambda: dist.all_gather(parts, flat, self._connections))
        self.traffic.sums += 1
        self.traffic.num_bytes += flat.numel() * flat.element_size()
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        pieces = torch.split(total, [tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape).to(tensor.dtype) for piece, tensor in zip(pieces, tensors, strict=True)]

    def concatenate(self, values: Tensor) -> Tensor:
        """``values`` ``[task]`` of all ranks in their order, ``[all tasks]``."""
        if self.world_size == 1:
            return values
        first, total = self.place(len(values))
        whole = values.new_zeros(total)
        whole[first : first + len(values)] = values.detach()
        return self.sum(whole)[0]  # Exact: but for one rank's, all terms are zero.

    def average(self, values: Tensor, weight: Tensor | int) -> Tensor:
        """The mean of ``values`` over ranks, weighted by ``weight``, a number; values of weight 0 must be finite."""
        if self.world_size == 1:
            return values
        weight = torch.as_tensor(weight, dtype=values.dtype, device=values.device)
        total, sums = self.sum(weight, values * weight)
        return sums / total

    def average_gradients(self, parameters: Iterable[nn.Parameter], weight: Tensor | int) -> None:
        """Replace every gradient by its mean over ranks, weighted; one that is missing counts as zero.

        Args:
            parameters: the same ones on every rank.
            weight: of this rank's gradient, a number, e.g. how many tasks or steps it is a mean over; 0 if it has none.
        """
        if self.world_size == 1:
            return
        found = list(parameters)
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in found]
        flat = self.average(torch.cat([slope.flatten() for slope in slopes]), weight)
        for parameter, slope in zip(found, torch.split(flat, [p.numel() for p in found]), strict=True):
            parameter.grad = slope.view_as(parameter).clone()

    def place(self, count: int) -> tuple[int, int]:
        """Where the ``count`` rows of this rank begin among the rows of all, and how many these are."""
        counts = self.gather(count)
        return sum(counts[: self.rank]), sum(counts)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over ranks; one that is missing counts as zero."""
        if self.world_size == 1:
            return
        found = list(parameters)
        slopes = self.sum(*(torch.zeros_like(p) if p.grad is None else p.grad for p in found))
        for parameter, slope in zip(found, slopes, strict=True):
            parameter.grad = slope.clone()

    # Numbers and other objects --------------------------------------------------------------------------------------

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order; anything that can be pickled."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        self._together("a gathering", lambda: dist.all_gather_object(values, value, self._connections))
        self.traffic.messages += 1
        return values

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0; that of the other ranks is of no account."""
        if self.world_size == 1:
            return value
        values: list[Any] = [value]
        self._together("a broadcast", lambda: dist.broadcast_object_list(values, 0, self._connections))
        self.traffic.messages += 1
        result: Value = values[0]
        return result

    def total(self, number: int) -> int:
        """The sum over ranks of a whole number."""
        return sum(self.gather(number))

    def mean(self, values: Mapping[str, float], weight: float) -> dict[str, float]:
        """Means over ranks by name, weighted; a rank of weight 0 may lack any of them.

        Args:
            values: of this rank, in the order of all ranks.
            weight: e.g. how many tasks they are means over.
        """
        if self.world_size == 1:
            return dict(values)
        parts = [(part, size) for part, size in self.gather((dict(values), float(weight))) if size]
        total = sum(size for _, size in parts)
        return {name: sum(part[name] * size for part, size in parts) / total for name in parts[0][0]}

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)

    # Failure --------------------------------------------------------------------------------------------------------

    def report(self, reason: str) -> None:
        """Leave word for the other ranks of why this one ends; only the first of all reports is kept."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):
                kept = self._store.compare_set(_FAILURE, "", f"{self.rank}\n{reason}").decode(errors="replace")
                rank, _, first = kept.partition("\n")
                self._echo = reason if int(rank) != self.rank and first == reason else None

    def is_echo(self, reason: str) -> bool:
        """Whether another rank has reported this before, and so says it, too."""
        return self._echo == reason

    def _together(self, what: str, collective: Callable[[], object]) -> None:
        started = time.perf_counter()
        try:
            collective()
            self.traffic.seconds += time.perf_counter() - started
        except RuntimeError as error:
            rank, _, reason = self._reported().partition("\n")
            if not reason:
                ended = "another rank has ended without a word: it was killed, or its machine is gone"
                if "timed out" in str(error).lower():
                    ended = (
                        f"another rank did not come within {self._waiting.total_seconds():.0f} seconds: it hangs, or "
                        "its machine is gone. If it only takes that long, set METARL_RANK_TIMEOUT to more seconds"
                    )
                raise WorkerError(f"rank {self.rank} of {self.world_size} waited in {what}, but {ended}.") from error
            time.sleep(_PRECEDENCE)
            # Once is enough: of many ranks the first tells the whole, beside the one that failed.
            reason = reason if self.is_first else reason.splitlines()[0]
            raise WorkerError(
                f"rank {self.rank} of {self.world_size} waited in {what}, but rank {rank} has ended. It said:\n{reason}"
            ) from None

    def _reported(self) -> str:
        """Number and reason of the first rank that failed, a line break between them; empty if none said anything."""
        found: list[str] = []

        def ask(store: Store) -> None:
            with contextlib.suppress(RuntimeError):
                store.wait([_FAILURE], _GRACE)
                found.append(store.get(_FAILURE).decode(errors="replace"))

        if self._store is not None:
            # In a thread, since a store on a machine that is cut off answers never.
            asking = threading.Thread(target=ask, args=(self._store,), daemon=True)
            asking.start()
            asking.join(2 * _GRACE.total_seconds())
        return found[0] if found else ""


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over the ranks of the current group, through which gradients flow back to each of them.

    The gradient that reaches a rank's tensor is that of the sum of all ranks' losses.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The sum; a copy."""
        return current().sum(x)[0].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The sum of what the losses of all ranks ask for."""
        return current().sum(grads[0].contiguous())[0]


_current: ContextVar[Group] = ContextVar("group", default=Group())  # noqa: B039 - one rank alone has no state.


def current() -> Group:
    """The group that this process takes its sums with; one rank alone unless it has joined others."""
    return _current.get()


@contextlib.contextmanager
def using(group: Group) -> Iterator[Group]:
    """Make ``group`` the current one inside a block."""
    token = _current.set(group)
    try:
        yield group
    finally:
        _current.reset(token)
