"""How agents adapt to one family of tasks: any agents, their presets, several seeds, on the same held-out tasks.

``python -m metarl.benchmarks.adaptation --tasks navigation-2d --agents maml-trpo promp --rollouts-per-task 40`` trains
what is missing and writes table and figures to ``benchmarks/results/<tasks>``, from all scores in that folder, which
must have been made alike. Interrupted, the same command goes on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from metarl.agents.registry import load_agent
from metarl.benchmarks.cells import Cell, console, labelled_cell, read_scores, require_same_length, run_cells
from metarl.benchmarks.engines import LOCAL, Engine
from metarl.benchmarks.report import Scores, write_returns_page
from metarl.benchmarks.tables import load_table
from metarl.errors import ConfigError, told_errors
from metarl.runs.files import safe_name

TABLES = {
    "navigation-2d": ("maml-navigation", "*"),
    "bandit": ("rl2-bandits", "n=10,k=5"),
    "tabular-mdp": ("rl2-mdps", "n=10"),
}
"""The table of a paper on the same tasks, and which of its cells, by family."""


@dataclass(frozen=True)
class Options:
    """Train and score agents on one family of tasks."""

    tasks: str = "cartpole-goal"
    """Task distribution."""
    agents: tuple[str, ...] = ("maml-trpo", "pretrained")
    """Agents, each with its preset for these tasks, or AGENT:VARIANT with another such as rl2:recall; `pretrained` gets
    as many episodes as an agent with one step."""
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
    if options.num_tasks < 1 or (options.rollouts_per_task is not None and options.rollouts_per_task < 1):
        raise ConfigError(
            f"--num-tasks and --rollouts-per-task must be above 0, got {options.num_tasks} and "
            f"{options.rollouts_per_task}."
        )
    for name in ("num_iterations", "steps", "meta_batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value}.")
    asked = [labelled_cell(agent, options.tasks, seed) for agent in options.agents for seed in options.seeds]
    cells = [dataclasses.replace(cell, train=_train(options, cell)) for cell in asked]
    folder = options.results / safe_name(options.tasks)
    for scored in read_scores(folder, options.tasks):
        for cell in cells:
            if cell.label == scored.label:  # Seeds of one row.
                require_same_length(cell, folder / f"{scored.name}.json")
    scores = run_cells(cells, folder, options.runs, options.num_tasks, options.rollouts_per_task, options.engine)
    if len(scores) == len(cells):
        console.print(write_page(folder, options.tasks), soft_wrap=True, markup=False)


def write_page(folder: Path, tasks: str) -> str:
    """Write the page of a family of tasks from all of its scores in a folder; returns its text."""
    known = read_scores(folder, tasks)
    _require_alike(known, folder)
    introduction = "\n".join(
        [
            "Commands; the held-out tasks are the same for all:",
            "",
            *(f"    python -m metarl.benchmarks.adaptation {words}" for words in _commands(known)),
            *(_beside(*TABLES[tasks]) if tasks in TABLES else []),
        ]
    )
    return write_returns_page(known, folder, f"Adaptation on {tasks}", introduction)


def _require_alike(known: Scores, folder: Path) -> None:
    """Refuse scores of one row that were not made alike; settings that only one of them records are left alone."""
    first: dict[str, tuple[Cell, dict[str, Any]]] = {}
    for cell, score in known.items():
        config = score["config"]
        made = {
            **config.get(cell.agent, {}),
            **{name: config["train"][name] for name in ("num_iterations", "meta_batch_size")},
            "held-out tasks": len(score["returns"]),
            "episodes per task and shot": score.get("rollouts_per_task"),
        }
        other, theirs = first.setdefault(cell.label, (cell, made))
        for name in made.keys() & theirs.keys():
            if made[name] != theirs[name]:
                raise ConfigError(
                    f"{folder / cell.name}.json has {name} = {made[name]!r}, and {other.name}.json beside it "
                    f"{theirs[name]!r}: seeds of one row must be made alike. Remove one of them, or name another "
                    "folder with --results."
                )


def _beside(name: str, cells: str) -> list[str]:
    """A paragraph of Markdown with the published numbers; hyper-parameters, budgets and tests differ."""
    numbers = (
        f"{cell.key} {cell.published.text}" for cell in load_table(name).select([cells]) if cell.published is not None
    )
    return ["", f"Published, and to be run as a table by `metarl reproduce {name}`: {'; '.join(numbers)}."]


def _commands(scores: Scores) -> list[str]:
    """The options behind scores: agents that share seeds and budget in one line."""
    agents: dict[tuple[str, ...], list[str]] = {}
    for agent in dict.fromkeys(cell.label for cell in scores):
        chosen = {cell: score for cell, score in scores.items() if cell.label == agent}
        first, score = next(iter(chosen.items()))
        preset = first.setup().train_config
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


def _train(options: Options, cell: Cell) -> dict[str, Any]:
    by_gradient = load_agent(cell.agent).adapts_by == "gradient step"
    batch = {"meta_batch_size": options.meta_batch_size} if by_gradient and options.meta_batch_size is not None else {}
    setup = dataclasses.replace(cell, train=batch).setup()
    if options.steps is None:
        iterations = setup.train_config.num_iterations if options.num_iterations is None else options.num_iterations
        return {**batch, "num_iterations": 2 * iterations if cell.agent == "pretrained" else iterations}
    if options.num_iterations is not None:
        raise ConfigError(f"--steps {options.steps} and --num-iterations {options.num_iterations}: give one of them.")
    return {**batch, "num_iterations": max(1, round(options.steps / setup.steps_per_iteration))}


if __name__ == "__main__":
    main()
