"""Cells of few-shot benchmarks: one learner on tasks of one size with one seed, trained once and scored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metarl.benchmarks.cells import BENCHMARK_SEED, console
from metarl.benchmarks.engines import LOCAL, Engine, Job, Report, run_jobs
from metarl.errors import ConfigError
from metarl.fewshot.evaluation import evaluate
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.setup import Given, Setup, resolve
from metarl.runs.files import read_json, safe_name, write_atomically
from metarl.runs.logger import read_metrics


@dataclass(frozen=True)
class Cell:
    """One learner on tasks of one size with one seed.

    Attributes:
        learner: its name.
        tasks: name of the family.
        ways: classes in a task.
        shots: labelled examples of each class in training.
        test_shots: the same in the test.
        seed: of training.
        train: fields of TrainConfig that differ from the preset's.
        settings: fields of the learner's config that do.
        variant: tells cells apart that differ in their settings alone.
    """

    learner: str
    tasks: str
    ways: int
    shots: int
    test_shots: int
    seed: int
    train: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    variant: str = ""

    @property
    def size(self) -> str:
        """The size of its test tasks."""
        return f"{self.ways}way-{self.test_shots}shot"

    @property
    def name(self) -> str:
        """File name of its score."""
        return safe_name(f"{self.tasks}-{self.size}-{self._who}")

    @property
    def _who(self) -> str:
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.learner}{variant}-seed{self.seed}"


def run_cells(
    cells: Sequence[Cell], data: str | None, results: Path, runs: Path, test_tasks: int, engine: Engine = LOCAL
) -> dict[Cell, dict[str, Any]]:
    """Train and score every cell that has no score yet; interrupted, go on where it stopped.

    Args:
        cells: what to run.
        data: folder of the family's data, if it is read from one.
        results: folder of the scores.
        runs: folder of the run folders.
        test_tasks: tasks to score on, the same for all cells of a size.
        engine: where they run; default: one after the other in this process.

    Returns:
        Scores by cell; those of cells that were interrupted are missing.

    Raises:
        ConfigError: if a cell was scored on another number of tasks.
        WorkerError: at the end, if cells failed, e.g. since they were begun with other settings.
    """
    results, runs = results.absolute(), runs.absolute()
    results.mkdir(parents=True, exist_ok=True)
    paths = {cell: results / f"{cell.name}.json" for cell in cells}
    for path in (path for path in paths.values() if path.exists()):
        if (scored := len(read_json(path)["scores"])) != test_tasks:
            raise ConfigError(
                f"{path} was scored on {scored} tasks, and now {test_tasks} are asked for. Ask for "
                "the same, name another folder with --results, or remove the file to score its run anew."
            )
    by_run: dict[str, list[Cell]] = {}
    for cell, path in paths.items():
        if not path.exists():
            by_run.setdefault(_run_of(cell, data)[1], []).append(cell)
    jobs = [Job(name, _run_cells, (tuple(same), data, results, runs, test_tasks)) for name, same in by_run.items()]
    run_jobs(jobs, engine, (results, runs), console)
    return {cell: read_json(path) for cell, path in paths.items() if path.exists()}


def read_scores(results: Path) -> dict[Cell, dict[str, Any]]:
    """All scores in a folder, by cell."""
    found = [read_json(path) for path in sorted(results.glob("*-seed*.json"))]
    return {Cell(**{name: score[name] for name in _NAMES}): score for score in found}


_NAMES = ("learner", "tasks", "ways", "shots", "test_shots", "seed")


def _run_of(cell: Cell, data: str | None) -> tuple[Setup, str]:
    """What is trained for a cell, and the name of its run."""
    given = Given(cell.learner, cell.tasks, data, cell.ways, cell.shots)
    setup = resolve(given, train={"seed": cell.seed, **cell.train}, settings=cell.settings)
    if not getattr(setup.learner_config, "train_ways", 0):
        return setup, cell.name
    # Its training does not depend on the ways of the test: one run is scored in several cells.
    setup = dataclasses.replace(setup, episode=dataclasses.replace(setup.episode, ways=5))
    return setup, safe_name(f"{cell.tasks}-{cell.shots}shot-{cell._who}")


def _run_cells(
    cells: Sequence[Cell], data: str | None, results: Path, runs: Path, test_tasks: int, report: Report
) -> bool:
    contents = train_and_score(cells, data, runs, test_tasks, report)
    for cell, content in zip(cells, contents or [], strict=False):
        write_atomically(results / f"{cell.name}.json", (json.dumps(content) + "\n").encode())
    return contents is not None


def train_and_score(
    cells: Sequence[Cell], data: str | None, runs: Path, test_tasks: int, report: Report
) -> list[dict[str, Any]] | None:
    """Train the one run of some cells to its end, and score it for each of them; see :func:`run_cells`.

    Returns:
        Their scores; None if training was interrupted.
    """
    setup, name = _run_of(cells[0], data)
    this = Experiment.begin(setup, runs, name)
    if not this.train(lambda progress: report("training", progress.iteration, progress.num_iterations)):
        return None
    metrics = read_metrics(this.run.metrics)
    contents = []
    for cell in cells:
        episode = dataclasses.replace(setup.episode, ways=cell.ways, shots=cell.test_shots)
        learner, iteration = this.load(spec=setup.tasks.spec(episode))
        found = evaluate(
            learner,
            setup.tasks,
            episode,
            num_tasks=test_tasks,
            seed=BENCHMARK_SEED,
            listener=lambda done: report("test tasks", done, test_tasks),
        )
        contents.append(
            {
                **{name: getattr(cell, name) for name in _NAMES},
                "iterations": iteration,
                "seconds": sum(line["seconds/sample"] + line["seconds/meta_update"] for line in metrics),
                "steps": found.steps,
                "kind": found.kind,
                "scores": np.round(found.scores, 5).tolist(),
                "curve": _curve(metrics),
                "config": {name: value for name, value in this.run.read_config().items() if name != "data"},
                # Without the command line, which names folders of the machine.
                "manifest": {name: value for name, value in this.run.read_manifest().items() if name != "command"},
            }
        )
    return contents


def _curve(metrics: Sequence[Mapping[str, Any]], points: int = 100) -> dict[str, list[float]]:
    """Training scores over iterations, means of as many pieces as a figure shows."""
    name = next(key for key in metrics[0] if key.startswith(("train/accuracy_", "train/error_")))
    pieces = np.array_split(np.array([line[name] for line in metrics]), min(points, len(metrics)))
    ends = np.cumsum([len(piece) for piece in pieces])
    return {"iteration": ends.tolist(), "score": [round(float(piece.mean()), 5) for piece in pieces]}
