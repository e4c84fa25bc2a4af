"""The best checkpoint of a few-shot run is that of the best validation score, where there are validation tasks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fewshot_runs import CPU

from metarl.cli import main
from metarl.config import TrainConfig
from metarl.errors import ConfigError
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.learners import ProtoNetConfig, RandomConfig
from metarl.fewshot.setup import Given, Setup, resolve
from metarl.fewshot.tasks import labelled_arrays
from metarl.fewshot.trainer import train
from metarl.fewshot.types import EpisodeConfig
from metarl.runs.checkpoint import load, state_digest
from metarl.runs.folder import RunFolder
from metarl.runs.outer_loop import Progress

TRAIN: dict[str, Any] = {"meta_batch_size": 3, "eval_every": 3, "eval_tasks": 4, "checkpoint_every": 4, "device": "cpu"}


def setup(num_iterations: int, **train: Any) -> Setup:
    """MAML with steps so large that it gets worse from one iteration to the next."""
    settings = {"hidden_sizes": (8,), "num_eval_steps": 2, "meta_lr": 0.3}
    return resolve(
        Given("maml", "sinusoid"), train={**TRAIN, "num_iterations": num_iterations, **train}, settings=settings
    )


def logged(run: RunFolder, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {number + 1: line[name] for number, line in enumerate(lines) if name in line}


def test_validation_tells_the_best_checkpoint_though_training_would_tell_another_one(tmp_path: Path) -> None:
    this = Experiment.start(setup(11), tmp_path)
    assert this.train()
    errors = logged(this.run, "validation/error_2")
    assert list(errors) == [3, 6, 9, 11]
    expected = min(errors, key=lambda iteration: errors[iteration])
    best = load(this.best_checkpoint)
    assert best["iteration"] == expected
    assert best["score"] == -errors[expected]
    in_training = logged(this.run, "train/error_1")
    means = {number: np.mean([in_training[i] for i in range(1, number + 1)]) for number in errors}
    assert min(means, key=lambda iteration: float(means[iteration])) != expected
    # Those that are not monitored have no score.
    assert [load(this.run.checkpoints.path(number))["score"] for number in (8, 9, 11)] == [
        None,
        -errors[9],
        -errors[11],
    ]


def test_a_run_that_is_stopped_between_two_evaluations_and_resumed_has_the_same_best(tmp_path: Path) -> None:
    whole = Experiment.start(setup(9), tmp_path, "whole")
    assert whole.train()
    parts = Experiment.start(setup(9), tmp_path, "parts")

    def stop(progress: Progress) -> None:
        if progress.iteration == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        parts.train(stop)
    assert parts.run.checkpoints.iterations()[-1] == 5
    parts = Experiment.open(parts.run.path)
    assert parts.train()
    one, other = load(whole.best_checkpoint), load(parts.best_checkpoint)
    assert state_digest(one) == state_digest(other)


def test_without_validation_tasks_training_tells_the_best(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((48, 6), np.float32)
    tasks = labelled_arrays(images, np.arange(48) % 6, {"train": [0, 1, 2], "test": [4, 5]})
    episode = EpisodeConfig(2, 1, 2)
    learner = ProtoNetConfig(hidden_sizes=(4,)).build(tasks.spec(episode), CPU, 0)
    run = RunFolder.create(tmp_path, "run")
    # A single task would do for monitoring that there is none of.
    config = TrainConfig(num_iterations=14, **TRAIN | {"eval_tasks": 1, "checkpoint_every": 2})
    assert train(learner, tasks, episode, config, run)
    scores = list(logged(run, "train/accuracy_1").values())
    means = {number: float(np.mean(scores[number - 10 : number])) for number in (10, 12, 14)}
    best = load(run.checkpoints.best_path)
    assert best["score"] == pytest.approx(max(means.values()))
    assert best["iteration"] == max(means, key=lambda number: means[number])
    assert run.checkpoints.iterations() == [10, 12, 14]


def test_commands_take_the_best_or_say_that_there_is_none_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    this = Experiment.start(setup(11), tmp_path)
    assert main(["fewshot", "evaluate", str(this.run.path), "--best"]) == 2
    assert "has no best checkpoint yet: its learner is scored every 3" in " ".join(capsys.readouterr().err.split())
    assert this.train()
    assert main(["fewshot", "evaluate", str(this.run.path), "--best", "--num-tasks", "3"]) == 0
    (found,) = this.run.path.glob("evaluation-*.json")
    assert json.loads(found.read_text())["iteration"] == load(this.best_checkpoint)["iteration"]
    both = ["--best", "--checkpoint", "x"]
    for words in (["evaluate", str(this.run.path)], ["predict", str(this.run.path), str(tmp_path), "x.png"]):
        assert main(["fewshot", *words, *both]) == 2
        assert "give one of them" in " ".join(capsys.readouterr().err.split())


# One task is too few to monitor by -----------------------------------------------------------------------------------


def test_a_single_task_to_monitor_by_is_refused_before_there_is_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="eval_tasks must be 2 or more, got 1"):
        Experiment.start(setup(3, eval_tasks=1), tmp_path)
    assert main(["fewshot", "train", "random", "sinusoid", "--eval-tasks", "1", "--runs", str(tmp_path)]) == 2
    assert "eval_tasks must be 2 or more, got 1" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_single_task_to_monitor_by_is_refused_on_resume_and_in_python(tmp_path: Path) -> None:
    this = Experiment.start(setup(3), tmp_path)
    before = this.run.read_config()
    with pytest.raises(ConfigError, match="eval_tasks must be 2 or more, got 1"):
        this.reconfigured(dataclasses.replace(this.setup.train_config, eval_tasks=1), this.setup.learner_config)
    assert this.run.read_config() == before
    tasks = this.setup.tasks
    learner = RandomConfig().build(tasks.spec(tasks.default_episode), CPU, 0)
    run = RunFolder.create(tmp_path, "script")
    with pytest.raises(ConfigError, match="eval_tasks must be 2 or more, got 1"):
        train(learner, tasks, tasks.default_episode, TrainConfig(eval_tasks=1), run)
