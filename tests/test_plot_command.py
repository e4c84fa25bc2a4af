"""``metarl plot`` draws runs that differ by their seed alone as one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from helpers.command_line import metarl

from metarl.cli.plot import _labelled, by_experiment
from metarl.errors import CheckpointError, ConfigError
from metarl.experiments import Experiment, resolve
from metarl.runs.folder import RunFolder


def made(root: Path, agent: str = "random", tasks: str = "bandit", seed: int = 1, **settings: Any) -> RunFolder:
    """A run folder with a config and nothing else; ``iterations`` may differ between seeds."""
    train = {"seed": seed, "num_iterations": settings.pop("num_iterations", 2)}
    return Experiment.start(resolve(agent, tasks, train=train, settings=settings), root).run


def labels(runs: list[RunFolder]) -> dict[str, list[str]]:
    return {label: [run.path.name for run in seeds] for label, seeds in by_experiment(runs).items()}


def test_seeds_of_one_experiment_share_a_label(tmp_path: Path) -> None:
    """Whatever else may change on a resume; a run of another agent keeps the name of its folder."""
    runs = [made(tmp_path, seed=seed, num_iterations=seed) for seed in (1, 2, 3)] + [made(tmp_path, "rl2")]
    assert labels(runs) == {
        "random on bandit (3 seeds)": [f"random-bandit-seed{seed}" for seed in (1, 2, 3)],
        "rl2-bandit-seed1": ["rl2-bandit-seed1"],
    }


def test_experiments_of_one_agent_are_told_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    runs = [
        made(tmp_path, "maml-trpo", seed=seed, inner_lr=rate, inner_objective=loss)
        for rate, loss in ((0.1, "ratio"), (0.5, "log_likelihood"))
        for seed in (1, 2)
    ]
    assert list(labels(runs)) == [
        "maml-trpo on bandit, inner_lr 0.1, inner_objective ratio (2 seeds)",
        "maml-trpo on bandit, inner_lr 0.5, inner_objective log_likelihood (2 seeds)",
    ]


def test_a_whole_number_for_a_float_makes_no_other_experiment(tmp_path: Path) -> None:
    """Recorded as 0.0 today, and by an older metarl as 0."""
    runs = [made(tmp_path, "rl2", entropy_coef=number, seed=seed) for number, seed in ((0, 1), (0.0, 2), (0.0, 3))]
    recorded = [run.read_config()["rl2"]["entropy_coef"] for run in runs]
    assert [type(number) for number in recorded] == [float] * 3
    older = runs[0].read_config()
    older["rl2"]["entropy_coef"] = 0
    runs[0].write_config(older)
    assert list(labels(runs)) == ["rl2 on bandit (3 seeds)"]
    twice = RunFolder.create(tmp_path, "again")
    twice.write_config(older | {"train": older["train"] | {"seed": 2}})
    with pytest.raises(ConfigError, match="have the same settings and seed"):
        list(_labelled([f"x={tmp_path}"]))


def test_runs_on_other_data_are_other_experiments(tmp_path: Path) -> None:
    runs = []
    for data, seed in (("birds", 1), ("birds", 2), ("cars", 1), ("cars", 2)):
        run = RunFolder.create(tmp_path, f"{data}{seed}")
        run.write_config({"learner": "protonet", "tasks": "folder", "data": f"/{data}", "train": {"seed": seed}})
        runs.append(run)
    assert labels(runs) == {
        f"protonet on folder, data /{data} (2 seeds)": [f"{data}1", f"{data}2"] for data in ("birds", "cars")
    }


def test_a_seed_counts_once_in_an_interval(tmp_path: Path) -> None:
    """The same seed again is a line of its own, and so is the same folder given twice no second run."""
    runs = [made(tmp_path, seed=seed) for seed in (1, 2, 1)]
    assert labels(runs) == {
        "random on bandit (2 seeds)": ["random-bandit-seed1", "random-bandit-seed2"],
        "random-bandit-seed1-2": ["random-bandit-seed1-2"],
    }
    assert labels([runs[0], RunFolder(runs[0].path)]) == {"random-bandit-seed1": ["random-bandit-seed1"]}


def test_runs_that_nobody_can_name_are_not_taken_for_seeds_of_each_other(tmp_path: Path) -> None:
    runs = [made(tmp_path, seed=seed) for seed in (1, 2)]
    for run in runs:
        content = run.read_config()
        run.write_config({**content, "agent": None, "not_found": {"agent": "it has no name"}})
    assert list(labels(runs)) == ["random-bandit-seed1", "random-bandit-seed2"]


def test_runs_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    runs = [made(tmp_path / folder, agent) for folder, agent in (("a", "random"), ("b", "random"))]
    assert list(labels(runs)) == ["random-bandit-seed1", str(tmp_path / "b" / "random-bandit-seed1")]


def test_a_label_is_for_runs_on_the_same_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those with other settings are drawn, but not called seeds."""
    monkeypatch.chdir(tmp_path)
    runs = [made(tmp_path, "rl2", seed=1, meta_lr=1e-3), made(tmp_path, "rl2", seed=2, meta_lr=1e-4)]
    for run in runs:
        run.metrics.write_text(json.dumps({"iteration": 0, "env_steps": 5, "train/return_0": 1.0}) + "\n")
    with pytest.warns(
        UserWarning, match="--label A: its runs differ in meta_lr, so that the line is no mean over seeds"
    ):
        assert metarl("plot --label A=rl2-*") == 0
    assert (tmp_path / "learning.csv").read_text().count("A (2 runs)") > 0
    made(tmp_path, "rl2", "cartpole-goal", seed=3)
    capsys.readouterr()
    assert metarl("plot --label A=rl2-*") == 2
    assert "rl2-bandit-seed1 is on bandit, and rl2-cartpole-goal-seed3 on cartpole-goal" in capsys.readouterr().err


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    run = made(tmp_path)
    (run.path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        by_experiment([run])


def test_a_folder_of_seeds_becomes_one_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["--num-iterations", "2", "--meta-batch-size", "2", "--eval-tasks", "2", "--eval-every", "1"]
    for seed in ("1", "2"):
        assert metarl(["train", "random", "bandit", "--seed", seed, *train]) == 0
    assert metarl("plot runs") == 0
    assert matplotlib.image.imread(tmp_path / "runs" / "learning.png").std() > 0.01
    assert json.loads((tmp_path / "runs" / "random-bandit-seed2" / "config.json").read_text())["train"]["seed"] == 2
