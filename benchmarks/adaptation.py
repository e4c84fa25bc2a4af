"""How agents adapt to one family of tasks: any agents, their presets, several seeds, on the same held-out tasks.

``python -m metarl.benchmarks.adaptation --tasks navigation-2d --agents maml-trpo promp`` trains what is missing and
writes table and figure to ``benchmarks/results/<tasks>``. Interrupted, the same command goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from metarl.benchmarks.cells import Cell, console, run_cells
from metarl.benchmarks.report import write_report
from metarl.presets import settings


@dataclass(frozen=True)
class Options:
    """Train and score agents on one family of tasks."""

    tasks: str = "cartpole-goal"
    """Task distribution."""
    agents: tuple[str, ...] = ("maml-trpo", "pretrained")
    """Agents, each with its preset for these tasks; `pretrained` gets as many episodes as an agent with one step."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of training."""
    num_iterations: int | None = None
    """Meta-updates; default: the preset's."""
    num_tasks: int = 100
    """Held-out tasks to score on."""
    results: Path = Path("benchmarks/results")
    """Scores, table and figure go to a folder in here."""
    runs: Path = Path("runs/benchmark-adaptation")
    """Where the run folders go."""


def main() -> None:
    """Run the benchmark."""
    options = tyro.cli(Options)
    cells = [
        Cell(agent, options.tasks, seed, train=_train(options, agent))
        for agent in options.agents
        for seed in options.seeds
    ]
    folder = options.results / options.tasks.replace("/", "-")
    scores = run_cells(cells, folder, options.runs, options.num_tasks)
    if len(scores) == len(cells):
        iterations = "" if options.num_iterations is None else f" --num-iterations {options.num_iterations}"
        introduction = (
            f"Command: `python -m metarl.benchmarks.adaptation --tasks {options.tasks} --agents "
            f"{' '.join(options.agents)} --seeds {' '.join(map(str, options.seeds))}{iterations} "
            f"--num-tasks {options.num_tasks}`; the held-out tasks are the same for all."
        )
        text = write_report(scores, folder, f"Adaptation on {options.tasks}", introduction)
        console.print(text, soft_wrap=True, markup=False)


def _train(options: Options, agent: str) -> dict[str, Any]:
    iterations = options.num_iterations or settings(agent, options.tasks)[0].num_iterations
    return {"num_iterations": 2 * iterations if agent == "pretrained" else iterations}


if __name__ == "__main__":
    main()
