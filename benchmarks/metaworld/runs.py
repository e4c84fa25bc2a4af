"""Cells that are trained on a task set of Meta-World and scored by its official protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from metarl.benchmarks.cells import BENCHMARK_SEED, Cell, describe, open_experiment
from metarl.benchmarks.engines import Report
from metarl.envs.metaworld.distributions import meta_world
from metarl.experiments import Experiment
from metarl.experiments.official import evaluate_experiment
from metarl.tasks.registry import load_distribution
from metarl.trainer import train

Split = Literal["train", "test"]

_WORKERS = 1
"""Processes that step the simulations of a cell: the other cores are those of other cells."""


def train_and_score(
    cell: Cell, runs: Path, splits: Sequence[Split], goals: int | None, report: Report
) -> dict[str, Any] | None:
    """Train a cell to its end, and score it by the official protocol on the first ``goals`` goals of each task.

    Returns:
        Its score; None if training was interrupted.
    """
    experiment = _train(cell, runs, report)
    if experiment is None:
        return None
    agent, iteration = experiment.load()
    official = {}
    for split in splits:
        scores, _ = evaluate_experiment(
            experiment,
            agent,
            iteration,
            seed=BENCHMARK_SEED,
            split=split,
            goals=goals,
            num_workers=_WORKERS,
            listener=partial(report, f"{split} goals"),
        )
        official[split] = scores.to_json()
    return describe(cell, experiment) | {"official": official}


def _train(cell: Cell, runs: Path, report: Report) -> Experiment | None:
    """Train a cell to its end; None if it was interrupted."""
    experiment = open_experiment(cell, runs)
    wanted = experiment.train_config.num_iterations
    if max(experiment.run.checkpoints.iterations(), default=0) < wanted:
        tasks = dataclasses.replace(meta_world(load_distribution(cell.tasks)), pool_workers=_WORKERS)
        if not train(
            experiment.build(),
            experiment.seen(tasks),
            experiment.train_config,
            experiment.run,
            listener=lambda progress: report("training", progress.iteration, wanted),
        ):
            return None
    return experiment
