"""Every CartPole variant x both agents x three seeds, at a small budget: 8,000 training episodes a cell.

``python -m metarl.benchmarks.cartpole`` trains what is missing and writes table and figure to
``benchmarks/results/cartpole``. Interrupted, the same command goes on. Two shells may share the work with ``--agents``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from metarl.agents import AGENTS
from metarl.benchmarks.cells import Cell, console, provenance, run_cells, stratified_interval
from metarl.errors import unknown_name

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


def main() -> None:
    """Run the benchmark."""
    options = tyro.cli(Options)
    for kind, names, choices in (("agent", options.agents, BUDGETS), ("variant", options.variants, VARIANTS)):
        for name in names:
            if name not in choices:
                raise SystemExit(str(unknown_name(kind, name, choices)))
    cells = [
        Cell(agent, variant, seed, train=BUDGETS[agent])
        for variant in options.variants
        for agent in options.agents
        for seed in options.seeds
    ]
    scores = run_cells(cells, options.results, options.runs, options.num_tasks)
    if len(scores) < len(cells):
        return
    table = [
        f"| tasks | agent | {' | '.join(f'shot {shot}' for shot in range(4))} | per-seed last shot | steps a cell |",
        "|---|---|" + "---|" * 6,
    ]
    figure = Figure(figsize=(2.6 * len(options.variants), 3.2), layout="constrained")
    panels = figure.subplots(1, len(options.variants), sharey=True, squeeze=False)[0]
    for variant, axes in zip(options.variants, panels, strict=True):
        for agent in options.agents:
            chosen = [score for cell, score in scores.items() if (cell.tasks, cell.agent) == (variant, agent)]
            returns = np.array([score["returns"] for score in chosen])
            shots = [stratified_interval(returns[:, :, shot]) for shot in range(returns.shape[2])]
            texts = [f"{mean:.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in shots]
            last = ", ".join(f"{value:.1f}" for value in returns[:, :, -1].mean(1))
            steps = np.mean([score["env_steps"] for score in chosen]) / 1e6
            table.append(
                f"| {variant} | {agent} | {' | '.join(texts + [''] * (4 - len(texts)))} | {last} | {steps:.2f} M |"
            )
            mean, low, high = (np.array(column) for column in zip(*shots, strict=True))
            axes.errorbar(range(len(mean)), mean, yerr=[mean - low, high - mean], marker="o", capsize=3, label=agent)
        axes.set(title=variant, xlabel="shot")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("return on held-out tasks")
    panels[0].legend(fontsize="small")
    figure.savefig(options.results / "cartpole.png", dpi=130)
    text = "\n".join(
        [
            "# CartPole variants",
            "",
            "Command: `python -m metarl.benchmarks.cartpole`; 8,000 training episodes a cell; seeds "
            f"{', '.join(map(str, options.seeds))}; {options.num_tasks} held-out tasks, the same for all.",
            "Shots are gradient steps (maml-trpo) or episodes of the trial before this one (rl2). Mean return and 95 % "
            "interval, resampling tasks within seeds. Horizon 200.",
            "",
            *table,
            "",
            *(f"- `{agent}`: {AGENTS[agent].when}." for agent in options.agents),
            "",
            provenance(scores),
            "",
        ]
    )
    (options.results / "README.md").write_text(text)
    console.print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
