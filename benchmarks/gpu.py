"""Everything that wants a GPU, in some minutes: ``make gpu``, or ``python -m metarl.benchmarks.gpu``.

Runs the tests that need one, the speed tables whose arithmetic runs on it, and three iterations each of maml-trpo and
rl2 on ML10, whose simulations stay on the processor, acting on the GPU and beside them; writes
``benchmarks/results/gpu/README.md``.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import tyro
from rich.console import Console

from metarl.benchmarks.cells import console
from metarl.benchmarks.report import notes
from metarl.benchmarks.speed import __main__ as speed
from metarl.benchmarks.speed.__main__ import Speed
from metarl.benchmarks.speed.meta_update import UpdateSpeed
from metarl.config import choose_device
from metarl.errors import WorkerError, told_errors
from metarl.experiments import resolve
from metarl.rollouts.host_actor import ActOn
from metarl.runs.files import write_atomically
from metarl.runs.folder import RunFolder, git_state, machine
from metarl.runs.logger import read_metrics
from metarl.trainer import train

_PARTS: tuple[Literal["meta-update", "acting", "rl2", "fewshot"], ...] = ("meta-update", "acting", "rl2", "fewshot")
_UPDATES = UpdateSpeed(tasks=(20, 40), widths=(100, 256), inner_steps=(1,))
_TRAINED = ("maml-trpo", "rl2")
_TESTS = Path(__file__).parents[1] / "tests"


@dataclass(frozen=True)
class Options:
    """Run what wants a GPU, and write the page."""

    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: to see that everything runs."""
    tasks: str = "ml10"
    """Tasks to train on."""
    iterations: int = 3
    """Iterations of training; the first one warms up."""
    quick: bool = False
    """Sizes that take seconds; their figures mean nothing."""
    results: Path = Path("benchmarks/results/gpu")
    """Where the page goes."""


@told_errors()
def main() -> None:
    """Run the tests, the tables and the training."""
    options = tyro.cli(Options)
    device = choose_device(options.device)
    sections = {
        "Tests": _test(device),
        "Speed": _measure(options),
        "Training": "\n".join(_train(agent, options, place) for agent in _TRAINED for place in get_args(ActOn)),
    }
    here, commit = machine(device), str((git_state() or {}).get("commit"))[:10]
    text = [
        f"# On {here['device']}",
        "",
        f"`make gpu`, commit {commit}, PyTorch {torch.__version__}, {here['device']}; {here['cores']} cores of "
        f"{here['cpu']}.",
        "",
    ]
    for title, body in sections.items():
        text += [f"## {title}", "", "```text", body.rstrip(), "```", ""]
    options.results.mkdir(parents=True, exist_ok=True)
    write_atomically(options.results / "README.md", "\n".join([*text, *notes(options.results)]).encode())


def _test(device: torch.device) -> str:
    """What pytest says of the tests that need a GPU.

    Raises:
        WorkerError: if one fails.
    """
    if device.type != "cuda" or not _TESTS.is_dir():
        return "not run: they need a GPU and a checkout"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--timeout", "300", str(_TESTS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise WorkerError(f"tests failed on the GPU:\n{ended.stdout[-5000:]}{ended.stderr[-1000:]}")
    return ended.stdout.strip().splitlines()[-1]


def _measure(options: Options) -> str:
    """The tables of the speed command."""
    out = io.StringIO()
    for part in _PARTS:
        console.print(f"measuring: {part}")
        settings = Speed(only=part, device=options.device, quick=options.quick, update=_UPDATES)
        speed.run(settings, Console(file=out, width=150))
    return out.getvalue()


def _train(agent: str, options: Options, place: ActOn) -> str:
    """Seconds of the parts of each iteration, acting on the GPU or beside the simulations."""
    schedule = {"num_iterations": options.iterations, "eval_every": 10**6, "checkpoint_every": 10**6, "eval_tasks": 2}
    small = {"meta_batch_size": 2} if options.quick else {}
    setup = resolve(agent, options.tasks, train={**schedule, **small, "device": options.device})
    console.print(f"training: {agent} on {options.tasks}, acting on: {place}")
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        train(setup.build(), setup.distribution, setup.train_config, run, act_on=place)
        rows = read_metrics(run.metrics)
    lines = [f"{agent} on {options.tasks}, {setup.train_config.meta_batch_size} tasks, acting on: {place}"]
    for row in rows:
        parts = ", ".join(f"{name} {row[f'seconds/{name}']:.2f} s" for name in ("collect", "adapt", "meta_update"))
        lines.append(f"  iteration {int(row['iteration'])}: {parts}; {int(row['env_steps']):,} steps so far")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
