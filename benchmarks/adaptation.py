"""How agents adapt to one family of tasks: any agents, their presets, several seeds, on the same held-out tasks.

``python -m metarl.benchmarks.adaptation --tasks navigation-2d --agents maml-trpo promp --rollouts-per-task 40`` trains
what is missing and writes table and figures to ``benchmarks/results/<tasks>``, from all scores in that folder, which
must have been made alike. Interrupted, the same command goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from metarl.agents.registry import load_agent
from metarl.benchmarks.cells import Cell, console, read_scores, run_cells
from metarl.benchmarks.engines import LOCAL, Engine
from metarl.benchmarks.report import Scores, write_returns_page
from metarl.errors import ConfigError, told_errors
from metarl.experiments import resolve
from metarl.runs.files import safe_name

PUBLISHED = {
    "navigation-2d": "MAML (arXiv 1703.03400, Table 4) -40.4, -11.7, -3.3, -3.2 after 0 to 3 steps of "
    "40 episodes; one policy for all tasks, fine-tuned: -40.8, -19.7, -11.7, -8.5; told the task: -2.3.",
    "bandit": "total reward, k = 5, n = 10: RL2 6.7 (arXiv 1611.02779, Table 1), SNAIL 6.6 +- 0.1 (arXiv 1707.03141, "
    "Table 3), Gittins 6.6, random 5.0.",
    "tabular-mdp": "total reward of 10 episodes: RL2 156.2, PSRL 138.1, UCRL2 146.6, random 100.1 (arXiv 1611.02779, "
    "Table 2); SNAIL 0.766 against RL2's 0.752 of value iteration (arXiv 1707.03141, Table 4).",
}
"""Results to read ours beside; hyper-parameters, budgets and tests differ."""


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
    steps: int | None = None
    """Environment steps of training, the same for every agent, instead of num_iterations."""
    meta_batch_size: int | None = None
    """Tasks in one meta-update of agents that adapt by gradient steps; default, and for the others: the preset's."""
    num_tasks: int = 100
    """Held-out tasks to score on."""
    rollouts_per_task: int | None = None
    """Episodes per task and shot when scoring, which adaptation learns from; default: as in the agent's training."""
    results: Path = Path("benchmarks/results")
    """Scores, table and figure go to a folder in here."""
    runs: Path = Path("runs/benchmark-adaptation")
    """Where the run folders go."""
    engine: tyro.conf.OmitArgPrefixes[Engine] = LOCAL


@told_errors()
def main() -> None:
    """Run the benchmark."""
    options = tyro.cli(Options)
    cells = [
        Cell(agent, options.tasks, seed, train=_train(options, agent))
        for agent in options.agents
        for seed in options.seeds
    ]
    if options.num_tasks < 1 or (options.rollouts_per_task is not None and options.rollouts_per_task < 1):
        raise ConfigError(
            f"--num-tasks and --rollouts-per-task must be above 0, got {options.num_tasks} and "
            f"{options.rollouts_per_task}."
        )
    folder = options.results / safe_name(options.tasks)
    scores = run_cells(cells, folder, options.runs, options.num_tasks, options.rollouts_per_task, options.engine)
    if len(scores) == len(cells):
        known = read_scores(folder, options.tasks)
        introduction = "\n".join(
            [
                "Commands; the held-out tasks are the same for all:",
                "",
                *(f"    python -m metarl.benchmarks.adaptation {words}" for words in _commands(known)),
                *(["", f"Published: {PUBLISHED[options.tasks]}"] if options.tasks in PUBLISHED else []),
            ]
        )
        text = write_returns_page(known, folder, f"Adaptation on {options.tasks}", introduction)
        console.print(text, soft_wrap=True, markup=False)


def _commands(scores: Scores) -> list[str]:
    """The options behind scores: agents that share seeds and budget in one line."""
    agents: dict[tuple[str, ...], list[str]] = {}
    for agent in dict.fromkeys(cell.agent for cell in scores):
        chosen = {cell: score for cell, score in scores.items() if cell.agent == agent}
        first, score = next(iter(chosen.items()))
        preset = resolve(agent, first.tasks).train_config
        ran = score["config"]["train"]
        iterations = ran["num_iterations"] // 2 if agent == "pretrained" else ran["num_iterations"]
        rest = ["--seeds", *(str(cell.seed) for cell in chosen)]
        if iterations != preset.num_iterations:
            rest += ["--num-iterations", str(iterations)]
        if ran["meta_batch_size"] != preset.meta_batch_size:
            rest += ["--meta-batch-size", str(ran["meta_batch_size"])]
        rest += ["--num-tasks", str(len(score["returns"]))]
        if score.get("rollouts_per_task") is not None:
            rest += ["--rollouts-per-task", str(score["rollouts_per_task"])]
        agents.setdefault(("--tasks", first.tasks, "--agents", " ".join(rest)), []).append(agent)
    return [" ".join([*first, *names, last]) for (*first, last), names in agents.items()]


def _train(options: Options, agent: str) -> dict[str, Any]:
    by_gradient = load_agent(agent).adapts_by == "gradient step"
    batch = {"meta_batch_size": options.meta_batch_size} if by_gradient and options.meta_batch_size is not None else {}
    setup = resolve(agent, options.tasks, train=batch)
    if options.steps is None:
        iterations = options.num_iterations or setup.train_config.num_iterations
        return {**batch, "num_iterations": 2 * iterations if agent == "pretrained" else iterations}
    if options.num_iterations is not None:
        raise ConfigError(f"--steps {options.steps} and --num-iterations {options.num_iterations}: give one of them.")
    return {**batch, "num_iterations": max(1, round(options.steps / setup.steps_per_iteration))}


if __name__ == "__main__":
    main()
