"""What a table costs on this machine: seconds of what is left of it, estimated from a measurement of some seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from metarl.benchmarks.reproduce.scores import Scores, seconds_of
from metarl.benchmarks.reproduce.table import Budget, PaperTable, Source, TableCell
from metarl.experiments import Setup
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.seeding import numpy_stream

_FIRST = 4
"""Tasks that measuring begins with, which PPO divides into as many minibatches."""


@dataclass(frozen=True)
class Cost:
    """What some cells of a table cost.

    Attributes:
        num_runs: how often something is run for them: cells times seeds, or less if cells share runs.
        num_done: runs that have a score.
        steps: environment steps of all runs.
        steps_left: those of runs without a score.
        seconds_done: that the others took, on whatever machine it was, as far as it is known.
        seconds_left: that the rest takes on this machine, one run at a time; None if that was not measured.
    """

    num_runs: int
    num_done: int
    steps: int
    steps_left: int
    seconds_done: float
    seconds_left: float | None


def cost_of(
    table: PaperTable,
    cells: Sequence[TableCell],
    budget: Budget,
    scores: Scores,
    speeds: Mapping[Source, float],
    seeds: Sequence[int] = (),
) -> Cost:
    """What some cells cost, given speeds that were :func:`measured`.

    Args:
        table: the table.
        cells: some of its cells.
        budget: that they are run with.
        scores: what is done.
        speeds: environment steps in a second by source.
        seeds: those of the cells' seeds that count; empty for all.
    """
    runs = table.runs(cells, budget, seeds)
    done = [place for place in runs if place in scores]
    left = [place for place in runs if place not in scores]
    steps = {cell: cell.source.steps(table.fraction(budget)) for cell, _ in runs}
    return Cost(
        num_runs=len(runs),
        num_done=len(done),
        steps=sum(steps[cell] for cell, _ in runs),
        steps_left=sum(steps[cell] for cell, _ in left),
        seconds_done=sum(seconds_of(scores[place]) for place in done),
        seconds_left=sum(steps[cell] / speeds[cell.source] for cell, _ in left)
        if all(cell.source in speeds for cell, _ in left)
        else None,
    )


def measured(tables: Mapping[str, Iterable[TableCell]], seconds: float) -> dict[Source, float]:
    """Environment steps in a second by source; those of one kind in one table have the speed of the shortest of them.

    Args:
        tables: cells by the name of their table.
        seconds: to spend on all of them together. Kinds that there is no time for are left out; the first of every
            table comes before the second of any.
    """
    kinds: dict[str, dict[str, list[Source]]] = {}
    for name, cells in tables.items():
        for cell in cells:
            kinds.setdefault(name, {}).setdefault(cell.source.kind, []).append(cell.source)
    groups = [group for place in zip_longest(*(of.values() for of in kinds.values())) for group in place if group]
    speeds: dict[Source, float] = {}
    deadline = time.perf_counter() + seconds
    for number, group in enumerate(groups):
        left = deadline - time.perf_counter()
        if left <= 0:
            break
        shortest = min(group, key=lambda source: source.steps(1.0))
        speeds |= dict.fromkeys(group, shortest.speed(left / (len(groups) - number)))
    return speeds


def training_speed(setup: Setup, seconds: float) -> float:
    """Environment steps in a second of training, from meta-updates of an untrained agent on few tasks.

    Steps behind an episode's end count, since untrained agents may fail early: they are computed all the same, and
    :meth:`~metarl.benchmarks.reproduce.table.Source.steps` counts them too.

    Args:
        setup: what is trained.
        seconds: to measure for.
    """
    agent, distribution = setup.build(), setup.distribution
    steps: dict[int, int] = {}

    def iterate(num_tasks: int) -> None:
        tasks = distribution.train.sample(num_tasks, numpy_stream(0, "speed"))
        collector = Collector(distribution, agent.rollouts_per_task, agent.device)
        try:
            trial = run_trial(agent, collector, tasks, agent.num_adaptations, num_tasks)
        finally:
            collector.close()
        agent.meta_update(trial)
        steps[num_tasks] = sum(rollout.valid.numel() for rollout in trial.rollouts)

    size = setup.train_config.meta_batch_size
    taken = extrapolated(iterate, size, seconds, min(_FIRST, size))
    largest = max(steps)
    return steps[largest] / largest * size / taken


def extrapolated(run: Callable[[int], None], size: int, seconds: float, first: int) -> float:
    """Seconds that ``run(size)`` takes, on the line through the two largest sizes that there was time for.

    Args:
        run: does something of a size.
        size: of interest.
        seconds: to spend; two sizes, and a run of size 1 before them that loads what it needs, are done in any case.
        first: the first size, at most ``size``; each further one is four times as large.
    """
    run(1)
    deadline = time.perf_counter() + seconds
    found: list[tuple[int, float]] = []
    number = first
    while True:
        begin = time.perf_counter()
        run(number)
        end = time.perf_counter()
        found.append((number, end - begin))
        if number == size:
            return end - begin
        if len(found) > 1 and end + 4 * found[-1][1] > deadline:
            break
        number = min(4 * number, size)
    (fewer, before), (more, taken) = found[-2:]
    return taken + max(0.0, taken - before) / (more - fewer) * (size - more)


def duration(seconds: float) -> str:
    """Seconds for people, e.g. ``4 s``, ``2.5 min``, ``7.1 h``, ``3.0 days``."""
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
