"""How fast Meta-World steps: the pool against Gymnasium's vector environments and against the bare physics, in one run.

The part ``metaworld`` of :mod:`metarl.benchmarks.speed`; alone, ``OMP_NUM_THREADS=1 python -m
metarl.benchmarks.speed.metaworld``, and ``--help`` lists the settings.

All sides step the same instances, tasks and actions. Rounds alternate between them and the fastest of each counts,
since another process can only slow a round down; trust the ratios more than the figures. The limit is ``mj_step`` x 5
and ``mj_forward`` for the same models and inputs, with one thread for each core and nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import tyro
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from metarl.config.settings import Count, check_settings
from metarl.envs.metaworld import TASK_NAMES, TaskSet
from metarl.envs.metaworld.upstream import upstream_env, upstream_task
from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv
from metarl.errors import ConfigError, told_errors
from metarl.types import Task

Array = NDArray[Any]

SIDES = ("sync", "async", "pool", "limit")
BUILT = ("sync", "pool")
_EACH = tuple(f"ml1/{name}" for name in TASK_NAMES)


@dataclass(frozen=True)
class MetaWorldSpeed:
    """Settings of the comparison."""

    benchmarks: tuple[str, ...] = ("ml10",)
    """Meta-World's task sets, e.g. ml10 ml1/reach-v3; ml1 stands for all 50 tasks, each alone."""
    num_envs: Count = 20
    """Instances stepped together, the same number for each task name."""
    cores: tuple[int, ...] = (1, 2)
    """Numbers of cores to measure on."""
    steps: Count = 40
    """Vector steps in a round."""
    rounds: Count = 5
    """Timed rounds of each side; the fastest counts. All rounds together must fit an episode of 500 steps."""
    clock: Literal["wall", "cpu"] = "wall"
    """On a busy machine ``cpu`` counts what the sides' processes computed; it says nothing about several cores."""
    build: bool = True
    """Also measure the time and memory to build the instances and reset them once."""
    seed: int = 0
    """Seed for goals and actions."""

    def __post_init__(self) -> None:
        check_settings(self)


def measure(benchmark: str, settings: MetaWorldSpeed) -> dict[str, float]:
    """Environment steps per second of each side, on the cores that this process may use."""
    tasks = choose_tasks(benchmark, settings.num_envs, settings.seed)
    rng = np.random.default_rng(settings.seed)
    # One round more than is timed: the first warms the caches.
    rounds = rng.uniform(-1, 1, (settings.rounds + 1, settings.steps, len(tasks), 4)).astype(np.float32)
    sides = {name: _open(name, tasks) for name in SIDES}
    seconds = dict.fromkeys(SIDES, float("inf"))
    clock = time.perf_counter if settings.clock == "wall" else cpu_seconds
    try:
        for number, actions in enumerate(rounds):
            for name, (step, _) in sides.items():
                start = clock()
                step(actions)
                if number:
                    seconds[name] = min(seconds[name], clock() - start)
    finally:
        for _, close in sides.values():
            close()
    return {name: settings.steps * len(tasks) / spent for name, spent in seconds.items()}


def choose_tasks(benchmark: str, num_envs: int, seed: int) -> list[Task]:
    """The first goals of each task name, equally many of each and in upstream's order."""
    goals = TaskSet(benchmark, seed).goals.train
    names = list(dict.fromkeys(task["env_name"] for task in goals))
    each, rest = divmod(num_envs, len(names))
    if rest or each > 50:
        raise ConfigError(f"num_envs must be a multiple of {benchmark}'s {len(names)} tasks, got {num_envs}.")
    return [task for name in names for task in [t for t in goals if t["env_name"] == name][:each]]


def _open(name: str, tasks: list[Task]) -> tuple[Callable[[Array], None], Callable[[], None]]:
    if name == "limit":
        return _open_limit(tasks)
    env = open_pool(tasks) if name == "pool" else _open_upstream(tasks, name)

    def step(actions: Array) -> None:
        for action in actions:
            env.step(action)

    return step, env.close


def open_pool(tasks: list[Task]) -> VectorEnv[Any, Any, Any]:
    """The pool, reset to these tasks."""
    pool = MetaWorldVectorEnv(len(tasks))
    pool.reset(options={"tasks": tasks})
    return pool


def _open_upstream(tasks: list[Task], strategy: str) -> VectorEnv[Any, Any, Any]:
    """What ``metaworld.make_ml_envs`` builds, from goals that are drawn already."""
    metaworld: Any = importlib.import_module("metaworld")
    names = list(dict.fromkeys(task["env_name"] for task in tasks))
    benchmark = SimpleNamespace(
        train_classes={name: metaworld.ALL_V3_ENVIRONMENTS[name] for name in names},
        train_tasks=[upstream_task(task) for task in tasks],
    )
    env: VectorEnv[Any, Any, Any] = metaworld._make_ml_envs_inner(
        benchmark,
        meta_batch_size=len(tasks),
        seed=0,
        vector_strategy=strategy,
        terminate_on_success=False,
        task_select="pseudorandom",
    )
    env.call("sample_tasks")  # type: ignore[attr-defined]
    env.reset()
    return env


def _open_limit(tasks: list[Task]) -> tuple[Callable[[Array], None], Callable[[], None]]:
    import mujoco

    num_threads = len(os.sched_getaffinity(0))
    envs = [upstream_env(task) for task in tasks]
    for env in envs:
        env.reset()
    threads = ThreadPoolExecutor(num_threads)

    def run(own: Sequence[int], inputs: tuple[Array, Array]) -> None:
        bodies = [(envs[i].model, envs[i].data, envs[i].data.mocap_pos[0], envs[i].data.ctrl, i) for i in own]
        for hand, grip in zip(*inputs, strict=True):
            for model, data, mocap_pos, ctrl, i in bodies:
                mocap_pos[:], ctrl[:] = hand[i], grip[i]
                mujoco.mj_step(model, data, 5)
                mujoco.mj_forward(model, data)

    low, high = np.stack([env.mocap_low for env in envs]), np.stack([env.mocap_high for env in envs])

    def step(actions: Array) -> None:
        hand = np.empty((*actions.shape[:2], 3))
        position = np.stack([env.data.mocap_pos[0] for env in envs])
        for time_step, action in enumerate(np.clip(actions[..., :3], -1, 1)):
            position = hand[time_step] = np.clip(position + action * np.float32(0.01), low, high)
        inputs = hand, actions[..., 3:] * np.array([1, -1], np.float32)
        shares = [range(first, len(envs), num_threads) for first in range(num_threads)]
        list(threads.map(partial(run, inputs=inputs), shares))

    return step, threads.shutdown


def report_build(name: str, benchmark: str, num_envs: int, seed: int) -> None:
    """Print as JSON the seconds to build and reset one side, and the memory (MB) it adds to this process's."""
    tasks = choose_tasks(benchmark, num_envs, seed)
    before = _memory()
    start = time.perf_counter()
    env = open_pool(tasks) if name == "pool" else _open_upstream(tasks, name)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "memory": _memory() - before}))
    env.close()


def _processes() -> tuple[str, ...]:
    """This one and its children."""
    here = os.getpid()
    return (str(here), *Path(f"/proc/{here}/task/{here}/children").read_text().split())


def cpu_seconds() -> float:
    """Time that all threads of these processes have computed."""
    threads = [thread for process in _processes() for thread in Path(f"/proc/{process}/task").iterdir()]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def _memory() -> float:
    """Proportional set size of these processes, MB: shared pages count once."""
    total = 0
    for process in _processes():
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def _build_in_fresh_process(name: str, benchmark: str, settings: MetaWorldSpeed) -> dict[str, float]:
    arguments = ", ".join(map(repr, (name, benchmark, settings.num_envs, settings.seed)))
    code = f"from metarl.benchmarks.speed.metaworld import report_build; report_build({arguments})"
    answer = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return measured


def run(settings: MetaWorldSpeed, console: Console) -> None:
    """Measure and print the tables."""
    usable = sorted(os.sched_getaffinity(0))
    console.print(
        f"{settings.num_envs} instances, {settings.clock} time, load average {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores"
    )
    names = [name for given in settings.benchmarks for name in (_EACH if given == "ml1" else (given,))]
    for name in names:
        TaskSet(name)  # Refuses an unknown one before anything is measured.
    table = Table("tasks", "cores", *(f"{name}, steps/s" for name in SIDES), "x sync", "x async", "of the limit")
    for benchmark in names:
        for cores in settings.cores:
            if cores > len(usable):
                console.print(f"{cores} cores: skipped, this process may use {len(usable)}.")
                continue
            os.sched_setaffinity(0, usable[:cores])
            speed = measure(benchmark, settings)
            os.sched_setaffinity(0, usable)
            ratios = (speed["pool"] / speed[name] for name in ("sync", "async", "limit"))
            table.add_row(benchmark, str(cores), *(f"{speed[n]:,.0f}" for n in SIDES), *(f"{r:.2f}" for r in ratios))
    console.print(table)
    if settings.build:
        built = Table("tasks", "side", "build and first reset, s", "memory, MB")
        for benchmark in names:
            for name in BUILT:
                cost = _build_in_fresh_process(name, benchmark, settings)
                built.add_row(benchmark, name, f"{cost['seconds']:.1f}", f"{cost['memory']:,.0f}")
        console.print(built)


@told_errors()
def main() -> None:
    """Measure and print, with settings from the command line."""
    run(tyro.cli(MetaWorldSpeed, description=__doc__), Console(width=120))


if __name__ == "__main__":
    main()
