"""How long an iteration takes on many ranks, predicted from what was measured on one and two.

An iteration of ``B`` tasks on ``R`` ranks takes

    T(B, R) = fixed + draw B + per_task ceil(B / R) + (R - 1) (sums sum + messages message + num_bytes byte)

- ``fixed``, ``per_task``: a line through what one rank needs for the tasks of the first table and for half of them (or
  twice as many, where the distribution cannot halve them), ``draw`` taken off. What does not depend on tasks, every
  rank does: vectors of conjugate gradient, optimisers, logs.
- ``draw``: every rank draws all tasks.
- The last term: a sum gathers the flat tensors of all ranks in a ring of ``R - 1`` rounds, each of which costs a
  latency and the tensor's bytes. Sums, messages and bytes are counted, and do not depend on ``R``.

Assumed: ranks are equally fast and have their cores for themselves, so that none waits for another; tasks cost the
same; rounds are not slowed down by other traffic; line searches and epochs are as long as in the iterations measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Link:
    """Seconds that one round of an exchange takes.

    Attributes:
        sum: a sum's latency.
        message: a message's latency.
        byte: each byte of a sum.
    """

    sum: float
    message: float
    byte: float


@dataclass(frozen=True)
class Cost:
    """What an iteration is made of; seconds, and counts of exchanges.

    Attributes:
        fixed: seconds whatever the tasks.
        draw: seconds to draw a task.
        per_task: seconds of a task on the rank that has it.
        sums: sums over ranks.
        messages: gatherings of small objects.
        num_bytes: bytes that a rank gives to sums.
    """

    fixed: float
    draw: float
    per_task: float
    sums: float
    messages: float
    num_bytes: float

    @classmethod
    def of(
        cls, tasks: int, whole: Mapping[str, Any], two_ranks: Mapping[str, Any], others: int, other: Mapping[str, Any]
    ) -> Cost:
        """From an iteration of ``tasks`` tasks on one rank and on two, and of ``others`` tasks on one."""
        slope = max(0.0, (whole["seconds"] - other["seconds"]) / (tasks - others))
        draw = whole["draw_seconds"] / tasks
        return cls(
            fixed=max(0.0, whole["seconds"] - slope * tasks),
            draw=draw,
            per_task=max(0.0, slope - draw),
            sums=two_ranks["sums"],
            messages=two_ranks["messages"],
            num_bytes=two_ranks["num_bytes"],
        )

    def seconds(self, tasks: int, ranks: int, link: Link) -> float:
        """Of an iteration; see this module's formula."""
        exchange = self.sums * link.sum + self.messages * link.message + self.num_bytes * link.byte
        share = math.ceil(tasks / ranks)
        return self.fixed + self.draw * tasks + self.per_task * share + (ranks - 1) * exchange

    def strong(self, tasks: int, ranks: int, link: Link) -> float:
        """Efficiency at the same number of tasks: the speed-up over one rank, by rank."""
        return self.seconds(tasks, 1, link) / (ranks * self.seconds(tasks, ranks, link))

    def weak(self, tasks: int, ranks: int, link: Link) -> float:
        """Efficiency at ``tasks`` tasks for each rank."""
        return self.seconds(tasks, 1, link) / self.seconds(tasks * ranks, ranks, link)
