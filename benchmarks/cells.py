"""What every benchmark shares: cells that are trained once, resumed if interrupted, and scored on held-out tasks.

A *cell* is one agent on one task distribution with one seed. Its score is a JSON file; a cell that has one is done.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from metarl.agents import AGENTS
from metarl.benchmarks.engines import LOCAL, Engine, Job, Report, run_jobs
from metarl.config import fixed_settings
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.experiments import Experiment, Setup, resolve
from metarl.runs.files import read_json, safe_name, write_atomically
from metarl.runs.folder import RunFolder, git_state
from metarl.runs.logger import iteration_seconds, read_metrics

BENCHMARK_SEED = 3_000_017
"""Draws the held-out tasks of all benchmarks; no training and no choice of settings has used it, and neither has
``metarl evaluate``, whose own seed is another one."""

console = Console()


@dataclass(frozen=True)
class Cell:
    """One agent on one task distribution with one seed.

    Attributes:
        agent: name of the agent.
        tasks: id of the distribution.
        seed: seed of the training run.
        train: fields of TrainConfig that differ from the preset's.
        settings: fields of the agent's config that differ from the preset's.
        variant: tells cells apart that differ in their settings or preset alone.
        preset: to take instead of that of agent and tasks.
    """

    agent: str
    tasks: str
    seed: int
    train: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    variant: str = ""
    preset: str | None = None

    @property
    def label(self) -> str:
        """What tables and figures call the agent."""
        return f"{self.agent}:{self.variant}" if self.variant else self.agent

    @property
    def name(self) -> str:
        """File name of the cell's score and of its run folder."""
        variant = f"-{self.variant}" if self.variant else ""
        return safe_name(f"{self.tasks}-{self.agent}{variant}-seed{self.seed}")

    def setup(self) -> Setup:
        """What is trained."""
        train = {"seed": self.seed, **self.train}
        return resolve(self.agent, self.tasks, preset=self.preset, train=train, settings=self.settings)

    def part(self, fraction: float) -> Cell:
        """The same with a fraction of the meta-updates, under a name of its own."""
        if fraction == 1.0:
            return self
        num_iterations = max(1, round(fraction * self.setup().train_config.num_iterations))
        variant = f"{self.variant}-of{num_iterations}".removeprefix("-")
        return dataclasses.replace(self, train={**self.train, "num_iterations": num_iterations}, variant=variant)


def variant_of(settings: Mapping[str, Any], preset: str | None = None) -> str:
    """What to call a cell of these settings and preset, so that its run folder is no other's; empty for none."""
    words = [preset or "", *(f"{name}={value}" for name, value in settings.items())]
    return safe_name("-".join(word for word in words if word))


def run_cells(
    cells: Sequence[Cell],
    results: Path,
    runs: Path,
    num_tasks: int,
    rollouts_per_task: int | None = None,
    engine: Engine = LOCAL,
) -> dict[Cell, dict[str, Any]]:
    """Train and score every cell that has no score yet.

    Interrupt it at will: finished cells are kept, and those in hand go on from their last checkpoints.

    Args:
        cells: what to run.
        results: folder of the scores, ``<cell>.json``.
        runs: folder of the run folders, resumable.
        num_tasks: held-out tasks to score on.
        rollouts_per_task: episodes per task and shot in the score; default: as each agent has in training.
        engine: where they run; default: one after the other in this process.

    Returns:
        The scores by cell: ``returns`` ``[task][shot]``, ``rollouts_per_task``, ``env_steps``, ``curve`` and
        provenance. Cells that were interrupted are missing.

    Raises:
        ConfigError: if a cell was scored on another number of tasks or episodes before.
        WorkerError: at the end, if cells failed, e.g. since they were trained with other settings.
    """
    results, runs = results.absolute(), runs.absolute()
    results.mkdir(parents=True, exist_ok=True)
    paths = {cell: results / f"{cell.name}.json" for cell in cells}
    # Before anything is trained, which may take hours.
    for cell, path in paths.items():
        if path.exists():
            _require_same_scoring(path, num_tasks, rollouts_per_task)
            require_same_length(cell, path)
    jobs = [
        Job(cell.name, _run_cell, (cell, path, runs, num_tasks, rollouts_per_task))
        for cell, path in paths.items()
        if not path.exists()
    ]
    run_jobs(jobs, engine, (results, runs), console)
    return {cell: read_json(path) for cell, path in paths.items() if path.exists()}


def _require_same_scoring(path: Path, num_tasks: int, rollouts_per_task: int | None) -> None:
    score = read_json(path)
    for what, scored, asked in (
        ("held-out tasks", len(score["returns"]), num_tasks),
        ("episodes per task and shot", score.get("rollouts_per_task"), rollouts_per_task),
    ):
        if scored != asked:
            before, now = ("as many as in training" if number is None else number for number in (scored, asked))
            raise ConfigError(
                f"{path} was scored with another number of {what}: {before}, and now {now} is asked for. Ask for the "
                "same, name another folder with --results, or remove the file to score its run anew."
            )


def require_same_length(cell: Cell, path: Path) -> None:
    """Refuse to put a cell beside a score of a run that was trained for longer, or for less.

    Raises:
        ConfigError: naming the file, and both numbers.
    """
    trained = read_json(path)["config"]["train"]
    for name in ("num_iterations", "meta_batch_size"):
        if name in cell.train and trained[name] != cell.train[name]:
            raise ConfigError(
                f"{path} is the score of a run with {name} = {trained[name]}, and now {cell.train[name]} is asked for. "
                "Ask for the same, name another folder with --results, or remove the file to train anew."
            )


def _run_cell(
    cell: Cell, path: Path, runs: Path, num_tasks: int, rollouts_per_task: int | None, report: Report
) -> bool:
    content = train_and_score(cell, runs, num_tasks, rollouts_per_task, report)
    if content is not None:
        write_atomically(path, (json.dumps({**content, "scored": git_state()}) + "\n").encode())
    return content is not None


def train_and_score(
    cell: Cell, runs: Path, num_tasks: int, rollouts_per_task: int | None, report: Report
) -> dict[str, Any] | None:
    """Train a cell to its end, and score it on held-out tasks; see :func:`run_cells`.

    Returns:
        Its score; None if training was interrupted.
    """
    experiment = train(cell, runs, report)
    if experiment is None:
        return None
    agent, iteration = experiment.load()
    report("held-out tasks", iteration, iteration)
    evaluation = evaluate(
        agent,
        experiment.distribution,
        num_tasks=num_tasks,
        seed=BENCHMARK_SEED,
        rollouts_per_task=rollouts_per_task,
    )
    return describe(cell, experiment) | {
        "rollouts_per_task": rollouts_per_task,
        "returns": np.round(evaluation.returns, 4).tolist(),
        "success": evaluation.mean_success,
    }


def train(cell: Cell, runs: Path, report: Report) -> Experiment | None:
    """Train a cell to its end, going on where it was interrupted; None if it was interrupted again."""
    experiment = open_experiment(cell, runs)
    done = experiment.train(lambda progress: report("training", progress.iteration, progress.num_iterations))
    return experiment if done else None


def read_scores(results: Path, tasks: str) -> dict[Cell, dict[str, Any]]:
    """All scores of a family of tasks in a folder, by cell, in the order of agents and seeds."""
    found = [read_json(path) for path in results.glob("*-seed*.json")]
    cells = {cell_of(score): score for score in found if score["tasks"] == tasks}
    order = {agent: number for number, agent in enumerate(AGENTS)}
    # Agents of the user's own come last.
    return dict(
        sorted(cells.items(), key=lambda pair: (order.get(pair[0].agent, len(order)), pair[0].label, pair[0].seed))
    )


def labelled_cell(label: str, tasks: str, seed: int) -> Cell:
    """The cell of an agent with its preset for these tasks, or of ``AGENT:VARIANT`` with a variant of it."""
    agent, _, variant = label.partition(":")
    if agent not in AGENTS or not variant:
        return Cell(label, tasks, seed)  # An agent of the user's own is MODULE:ATTRIBUTE.
    return Cell(agent, tasks, seed, variant=variant, preset=f"{agent}:{tasks}:{variant}")


def cell_of(score: Mapping[str, Any]) -> Cell:
    """The cell that a score is of."""
    return labelled_cell(":".join(filter(None, (score["agent"], score.get("variant")))), score["tasks"], score["seed"])


def describe(cell: Cell, experiment: Experiment) -> dict[str, Any]:
    """What a score's file says of its cell: what was trained, for how long, and on what."""
    # Without the command line: it names folders of the machine, and the page names the benchmark's own command.
    manifest = {name: value for name, value in experiment.run.read_manifest().items() if name != "command"}
    metrics = read_metrics(experiment.run.metrics)
    return {
        "agent": cell.agent,
        **({"variant": cell.variant} if cell.variant else {}),
        "tasks": cell.tasks,
        "seed": cell.seed,
        "env_steps": metrics[-1]["env_steps"],
        "training_seconds": sum(map(iteration_seconds, metrics)),
        "curve": _curve(experiment),
        "config": experiment.run.read_config(),
        "manifest": manifest,
    }


def open_experiment(cell: Cell, runs: Path) -> Experiment:
    """The experiment of a cell, new or begun earlier; begun, it keeps the settings that its folder holds.

    Raises:
        ConfigError: if it was begun with another value of a setting that ``cell`` names.
    """
    folder = runs / cell.name
    if (folder / "config.json").is_file():
        experiment = Experiment.open(folder, agent=cell.agent, tasks=cell.tasks)
        _require_same_settings(cell.setup(), experiment)
        return experiment
    setup = cell.setup()
    setup.check()
    folder.mkdir(parents=True, exist_ok=True)
    return Experiment.create(setup, RunFolder(folder))


def _require_same_settings(wanted: Setup, experiment: Experiment) -> None:
    """All that decides about the result is compared, also what comes from a preset, which may have changed."""
    before, now = (
        dataclasses.asdict(setup.agent_config)
        | fixed_settings(setup.train_config)
        | {"num_iterations": setup.train_config.num_iterations}
        for setup in (experiment, wanted)
    )
    for name, value in now.items():
        if before[name] != value:
            raise ConfigError(
                f"{experiment.run.path} was begun with {name} = {before[name]!r}, and now {value!r} is asked for. Ask "
                "for the same, give the new settings a variant's name of their own, or remove that folder."
            )


def _curve(experiment: Experiment) -> dict[str, list[float]]:
    """Training return and, where it was reported, success of the last rollout of a trial, by iteration."""
    last = experiment.agent_config.num_adaptations
    names = {"env_steps": "env_steps", "return": f"train/return_{last}", "success": f"train/success_{last}"}
    metrics = read_metrics(experiment.run.metrics)
    # Some environments report success alone: an iteration without a word had none.
    return {
        name: [round(float(line.get(key, 0.0)), 4) for line in metrics]
        for name, key in names.items()
        if any(key in line for line in metrics)
    }
