"""Every CartPole variant x both agents x three seeds, at a small budget: 8,000 training episodes a cell.

``python -m metarl.benchmarks.cartpole`` trains what is missing and writes table and figure to
``benchmarks/results/cartpole``. Interrupted, the same command goes on. ``--jobs 4`` runs four
cells at a time, ``--engine ray`` those of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from metarl.benchmarks.cells import Cell, console, run_cells
from metarl.benchmarks.engines import LOCAL, Engine
from metarl.benchmarks.report import write_returns_page
from metarl.errors import told_errors, unknown_name

VARIANTS = ("cartpole", "cartpole-random", "cartpole-extreme", "cartpole-goal", "cartpole-mirrored")
BUDGETS = {
    "maml-trpo": {"num_iterations": 20, "meta_batch_size": 10, "eval_every": 20},
    "rl2": {"num_iterations": 40, "meta_batch_size": 100, "eval_every": 40},
}
"""8,000 episodes each: 10 tasks x 20 episodes x 2 rollouts x 20 iterations; 100 tasks x 2 episodes x 40."""


@dataclass(frozen=True)
class Options:
    """Train and score every CartPole variant."""

    agents: tuple[str, ...] = tuple(BUDGETS)
    """Agents to run."""
    variants: tuple[str, ...] = VARIANTS
    """Task distributions to run."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of training."""
    num_tasks: int = 100
    """Held-out tasks to score on."""
    results: Path = Path("benchmarks/results/cartpole")
    """Where scores, table and figure go."""
    runs: Path = Path("runs/benchmark-cartpole")
    """Where the run folders go."""
    engine: tyro.conf.OmitArgPrefixes[Engine] = LOCAL


@told_errors()
def main() -> None:
    """Run the benchmark."""
    options = tyro.cli(Options)
    for kind, names, choices in (("agent", options.agents, BUDGETS), ("variant", options.variants, VARIANTS)):
        for name in names:
            if name not in choices:
                raise unknown_name(kind, name, choices)
    cells = [
        Cell(agent, variant, seed, train=BUDGETS[agent])
        for variant in options.variants
        for agent in options.agents
        for seed in options.seeds
    ]
    scores = run_cells(cells, options.results, options.runs, options.num_tasks, engine=options.engine)
    if len(scores) == len(cells):
        text = write_returns_page(
            scores,
            options.results,
            "CartPole variants",
            "Command: `python -m metarl.benchmarks.cartpole`; 8,000 training episodes a cell; seeds "
            f"{', '.join(map(str, options.seeds))}; {options.num_tasks} held-out tasks, the same for all; horizon 200.",
        )
        console.print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
