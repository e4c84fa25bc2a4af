"""Tables of agents: columns are shots of one run, and Meta-World's are splits, samples and single tasks of one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl.benchmarks.metaworld.source import BEST, OfficialSource, ReferenceSource
from metarl.benchmarks.reproduce.agents import AgentSource
from metarl.benchmarks.reproduce.table import PaperTable
from metarl.benchmarks.tables import load_table, table_names
from metarl.envs.metaworld.distributions import meta_world
from metarl.envs.metaworld.task_sets import by_name
from metarl.experiments import Experiment
from metarl.runs.folder import RunFolder
from metarl.tasks.registry import load_distribution


def _silent(*_: Any) -> None:
    pass


def _published(table: PaperTable, row: str) -> list[float | None]:
    return [None if cell.published is None else cell.published.value for cell in table.cells if cell.row == row]


def test_columns_are_shots_of_one_run(tmp_path: Path) -> None:
    train = {"num_iterations": 1, "meta_batch_size": 2, "eval_tasks": 2}
    settings = {"rollouts_per_task": 2, "hidden_sizes": (8,)}
    source = AgentSource("maml-trpo", "navigation-2d", None, train, settings, num_tasks=3, rollouts_per_task=4)
    content = source.run(1, 1.0, tmp_path, _silent)
    assert content is not None and content["rollouts_per_task"] == 4
    returns = np.array(content["returns"])
    assert returns.shape == (3, 4)
    for shot in range(4):
        np.testing.assert_array_equal(source.values(content, str(shot)), returns[:, shot])
    np.testing.assert_array_equal(source.values(content, ""), returns[:, -1])


def test_the_tables_of_maml_stand_beside_its_data() -> None:
    navigation = load_table("maml-navigation")
    assert _published(navigation, "MAML") == [-40.41, -11.68, -3.33, -3.23]
    assert _published(navigation, "pretrained") == [-40.81, -19.73, -11.72, -8.47]
    assert _published(navigation, "random init") == [-82.66, -57.96, -53.84, -46.81]
    assert _published(navigation, "oracle") == [-2.29]
    assert len(navigation.runs(navigation.select(()), "full")) == 5 * 3
    locomotion = load_table("maml-locomotion")
    assert _published(locomotion, "HalfCheetah fwd/bwd, MAML") == [-50.69, 293.19, 313.48, 315.65]
    assert _published(locomotion, "Ant fwd/bwd, pretrained") == [3.16, 1.27, 6.51, 6.86]
    assert all(cell.not_comparable for cell in locomotion.cells if cell.published is not None)
    asked = {cell.row for cell in locomotion.select(())}
    assert asked == {f"HalfCheetah fwd/bwd, {agent}" for agent in ("MAML", "pretrained", "oracle")}


def test_a_network_that_no_update_moves_is_that_of_its_seed(tmp_path: Path) -> None:
    """The row of the random initialisation trains for one meta-update, whose trust region is a point."""
    table = load_table("maml-navigation")
    source = next(cell.source for cell in table.cells if cell.row == "random init")
    assert isinstance(source, AgentSource)
    dataclasses.replace(source, num_tasks=2, rollouts_per_task=2).run(5, 1.0, tmp_path, _silent)
    (run,) = RunFolder.find(tmp_path)
    experiment = Experiment.open(run.path)
    trained, fresh = experiment.load()[0], experiment.build()
    for name, value in fresh.components()["policy"].state_dict().items():
        np.testing.assert_allclose(trained.components()["policy"].state_dict()[name], value, atol=1e-5)


@pytest.mark.timeout(300)
def test_a_score_of_the_protocol_has_splits_samples_and_tasks(tmp_path: Path) -> None:
    train = {"num_iterations": 25, "meta_batch_size": 2, "eval_tasks": 2}
    settings = {"rollouts_per_task": 1, "hidden_sizes": (8,)}
    source = OfficialSource("ml1/reach-v3", ("test",), "maml-trpo", None, train, settings)
    assert source.steps(1.0) == 25 * source.steps(0.04)
    content = source.run(2, 0.04, tmp_path, _silent)  # One meta-update, two goals.
    assert content is not None
    scores = content["official"]["test"]["by_task"]["reach-v3"]
    np.testing.assert_allclose(source.values(content, "test"), 100 * np.array(scores["success"]))
    np.testing.assert_allclose(source.values(content, "test reach-v3"), 100 * np.array(scores["success"]))
    np.testing.assert_allclose(source.values(content, "test sampled"), 100 * np.array(scores["sampled"]["success"]))
    np.testing.assert_allclose(source.values(content, BEST), [100 * max(content["curve"]["success"])])
    assert [run.path.name.count("of1") for run in RunFolder.find(tmp_path)] == [1]
    reference = ReferenceSource("ml1/reach-v3", ("test",), "random policy")
    assert reference.steps(0.04) == 2 * 3 * 500
    played = reference.run(1, 0.04, tmp_path, _silent)
    assert reference.values(played, "test").shape == (2,)
    assert set(reference.values(played, "test")) <= {0.0, 100 / 3, 200 / 3, 100.0}


@pytest.mark.parametrize("tasks", ["ml10", "ml25", "ml45"])
def test_columns_name_single_tasks(tasks: str) -> None:
    table = load_table(f"metaworld-{tasks}")
    goals = meta_world(load_distribution(tasks)).task_set.goals
    for split in ("test", "train"):
        named = [column.removeprefix(f"{split} ") for column in table.columns if column.startswith(f"{split} ")]
        named = [name for name in named if name != "sampled"]
        shown = split == "test" or tasks == "ml10"
        assert named == (list(by_name(getattr(goals, split))) if shown else [])
    assert all(cell.not_comparable for cell in table.cells if cell.published is not None)


@pytest.mark.parametrize("name", table_names())
def test_run_folders_of_a_table_are_no_others(name: str) -> None:
    """Rows that train one agent on the same tasks with other settings must not go on with each other's runs."""
    sources = {cell.source for cell in load_table(name).cells if isinstance(cell.source, AgentSource | OfficialSource)}
    for fraction in (1.0, 0.1):
        names = {source._cell(1, fraction).name for source in sources}
        assert len(names) == len(sources)
