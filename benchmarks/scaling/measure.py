"""What the scaling benchmark measures, in the processes that it is about; torchrun starts them.

Iterations are those of ``metarl train``, without evaluation and checkpoints.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metarl.distributed import Group, Traffic, join
from metarl.envs.metaworld.distributions import MetaWorldTasks
from metarl.errors import WorkerError
from metarl.experiments import resolve
from metarl.runs.files import read_json, write_json
from metarl.runs.folder import RunFolder
from metarl.runs.outer_loop import Progress
from metarl.seeding import numpy_stream
from metarl.trainer import train

_MANY = 10**6
"""Numbers of the large sum that bandwidth is measured with; the meta-gradients of Meta-World's presets have half."""


@dataclass(frozen=True)
class Setting:
    """One setting to measure.

    Attributes:
        case: agent and tasks, ``AGENT:TASKS``.
        tasks: in one meta-update, of all ranks.
        threads: of torch, of each rank.
        workers: of Meta-World's simulations, of each rank.
    """

    case: str
    tasks: int
    threads: int = 1
    workers: int = 1

    @property
    def cores(self) -> int:
        """That a rank may use, and no others: simulation and network overlap where there are more."""
        return max(self.threads, self.workers)


def measured(ranks: int, setting: Setting | None, iterations: int) -> dict[str, Any]:
    """Start ranks, and return what they find.

    Args:
        ranks: how many.
        setting: what they train; None: only how fast they exchange.
        iterations: to measure, besides a first one.

    Raises:
        WorkerError: with what they print, if they fail.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        asked = json.dumps([None if setting is None else dataclasses.asdict(setting), iterations, str(output)])
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", "metarl.benchmarks.scaling.measure", asked]
        threads = str(1 if setting is None else setting.threads)
        ended = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": threads}, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise WorkerError(f"{' '.join(command)} failed:\n{ended.stderr[-3000:]}")
        return read_json(output)


def _train(setting: Setting, iterations: int, group: Group) -> dict[str, Any]:
    """Medians and means of iterations, as rank 0 sees them."""
    agent, _, tasks = setting.case.partition(":")
    schedule = {"num_iterations": iterations + 2, "eval_every": 10**6, "checkpoint_every": 10**6, "eval_tasks": 2}
    setup = resolve(agent, tasks, train={**schedule, "meta_batch_size": setting.tasks, "device": "cpu"})
    moments: list[tuple[float, float, Traffic]] = []

    def note(progress: Progress) -> None:
        moments.append((time.perf_counter(), progress.metrics["env_steps"], dataclasses.replace(group.traffic)))
        if len(moments) == iterations + 1:  # The first one warmed up.
            signal.raise_signal(signal.SIGTERM)  # Ends training on all ranks, without a last evaluation.

    distribution = setup.distribution
    if isinstance(distribution, MetaWorldTasks):
        distribution = setup.seen(dataclasses.replace(distribution, pool_workers=setting.workers))
    with tempfile.TemporaryDirectory() as folder:
        train(setup.build(), distribution, setup.train_config, RunFolder(folder), listener=note)
    if not group.is_first:
        return {}
    ends, steps, traffic = zip(*moments, strict=True)
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    first, last = traffic[0], traffic[-1]
    started = time.perf_counter()
    distribution.sample_meta_batch(setting.tasks, numpy_stream(0, "tasks", 0))
    return {
        "seconds": statistics.median(seconds),
        "steps": (steps[-1] - steps[0]) / iterations,
        "share_in_collectives": (last.seconds - first.seconds) / sum(seconds),
        "sums": (last.sums - first.sums) / iterations,
        "num_bytes": (last.num_bytes - first.num_bytes) / iterations,
        "messages": (last.messages - first.messages) / iterations,
        "draw_seconds": time.perf_counter() - started,
    }


def _exchange(group: Group) -> dict[str, float]:
    """Seconds of a sum of one number, of a message, and of each byte of a large sum."""

    def typical(exchange: Callable[[], object], repeats: int) -> float:
        found = []
        for _ in range(repeats):
            group.barrier()
            started = time.perf_counter()
            exchange()
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    small, large = torch.zeros(1), torch.zeros(_MANY)
    latency = typical(lambda: group.sum(small), 200)
    return {
        "sum": latency,
        "message": typical(lambda: group.gather(0), 200),
        "byte": max(0.0, typical(lambda: group.sum(large), 20) - latency) / (4 * _MANY),
    }


def main() -> None:
    """One rank."""
    setting, iterations, output = json.loads(sys.argv[1])
    with join() as group:
        if setting is None:
            found: dict[str, Any] = _exchange(group)
        else:
            chosen = Setting(**setting)
            torch.set_num_threads(chosen.threads)
            first = group.rank * chosen.cores
            if own := sorted(os.sched_getaffinity(0))[first : first + chosen.cores]:
                os.sched_setaffinity(0, own)
            found = _train(chosen, iterations, group)
        if group.is_first:
            write_json(Path(output), found)


if __name__ == "__main__":
    main()
