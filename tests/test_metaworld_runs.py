"""Cells of Meta-World's tables: agents are trained, then scored by the protocol; each step alone, and none twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from metarl.benchmarks import cartpole, ml1, ml10
from metarl.benchmarks.cells import Cell, open_experiment
from metarl.benchmarks.engines import LOCAL
from metarl.benchmarks.metaworld import runs as metaworld_runs
from metarl.benchmarks.metaworld.source import BEST, OfficialSource, ReferenceSource
from metarl.benchmarks.report import smooth
from metarl.benchmarks.reproduce.run import reproduce
from metarl.benchmarks.reproduce.scores import read_scores
from metarl.benchmarks.reproduce.table import PaperTable, TableCell
from metarl.benchmarks.tables import load_table
from metarl.cli.entry import main as metarl
from metarl.errors import ConfigError

TINY = """
import dataclasses
from metarl.envs.metaworld import task_distribution

reach = dataclasses.replace(task_distribution("ml1/reach-v3"), horizon=10)
"""

TASKS = "tiny_reach:reach"
AGENT = OfficialSource(
    TASKS,
    ("test",),
    "rl2",
    train={"meta_batch_size": 2, "num_iterations": 1},
    settings={"hidden_size": 4, "num_epochs": 1},
)
TABLE = PaperTable(
    name="tiny",
    title="Tiny",
    about="Nothing.",
    cells=(
        *(TableCell("rl2", measure, AGENT, (1,), measure=measure) for measure in ("test", "test sampled", BEST)),
        TableCell("random policy", "test", ReferenceSource(TASKS, ("test",), "random policy"), (1,), measure="test"),
    ),
    metric="success in %",
    version=1,
    small=0.04,
    aggregate="percent",
)
"""Its small budget has two goals of 50."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the tiny table was run."""
    path = tmp_path_factory.mktemp("benchmark")
    (path / "tiny_reach.py").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARL_CACHE", str(path / "cache"))
        patch.chdir(path)
        assert run(path)
        yield path


def run(path: Path) -> bool:
    return reproduce(
        TABLE, Console(quiet=True), budget="small", cells=(), results=path / "results", runs=path / "runs", engine=LOCAL
    )


def test_a_cell_is_trained_and_scored_once_by_the_mode_and_by_samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = folder / "results/tiny-small"
    scores = {cell.key: score for (cell, _), score in read_scores(results, TABLE, "small").items()}
    score = scores["rl2/test"]
    assert score["env_steps"] == 40 and score["curve"]["env_steps"] == [40]
    assert score["official"]["test"]["env_steps"] == 2 * 13 * 10
    assert score["official"]["test"]["settings"]["protocol"].startswith("NOT the official protocol: 2 of 50 goals")
    assert all(len(AGENT.values(score, measure)) == 2 for measure in ("test", "test sampled", "test reach-v3"))
    assert len(AGENT.values(score, BEST)) == 1
    assert scores["random policy/test"]["official"]["test"]["by_task"]["reach-v3"]["success"] == [0.0, 0.0]
    page = (results / "README.md").read_text()
    assert "# Tiny, 0.04 of the budget" in page and "4e-05 M steps a seed" in page and "mujoco" in page
    for path in results.iterdir():
        assert str(folder).encode() not in path.read_bytes(), f"{path.name} names a folder of the machine"

    # A score stands for its cell, even where the run's folder is gone.
    for name in ("open_experiment", "evaluate_experiment"):
        monkeypatch.setattr(metaworld_runs, name, None)
    assert run(folder)
    assert (results / "README.md").read_text() == page


def test_a_score_of_before_samples_were_measured_has_none(folder: Path) -> None:
    path = folder / "results/tiny-small/rl2-seed1.json"
    score = json.loads(path.read_text())
    del score["official"]["test"]["by_task"]["reach-v3"]["sampled"]
    assert len(AGENT.values(score, "test sampled")) == 0 and len(AGENT.values(score, "test")) == 2


def test_metarl_evaluate_prints_the_table_and_upstreams_figure_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(next(path for path in (folder / "runs").iterdir() if path.is_dir()))
    # Upstream's episodes last 500 steps; that its function runs is tests/test_metaworld_upstream.py.
    monkeypatch.setattr("metarl.experiments.official.upstream_evaluation", lambda *_, **__: (0.5, {"reach-v3": 0.5}))
    assert metarl(["evaluate", path, "--official", "--goals", "1", "--upstream"]) == 0
    printed = capsys.readouterr().out
    for part in ("NOT the official protocol: 1 of 50 goals", "upstream's", "50.0", "130 environment steps"):
        assert part in printed, part
    (text,) = Path(path).glob("official-*.md")
    assert "| reach-v3 | 1 |" in text.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--goals 2", "--goals is for Meta-World's protocol; add --official"),
        ("--upstream", "--upstream is for Meta-World's protocol"),
        ("--official --num-tasks 3", "leave --num-tasks out, or use --goals"),
        ("--official --rollouts-per-task 3", "leave --rollouts-per-task out, or use --goals"),
        ("--official --goals 51", "goals must be 1 to 50"),
        ("--official --tasks bandit", "bandit is no task set of Meta-World"),
    ],
)
def test_evaluation_options_that_would_do_nothing_are_refused(
    folder: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(next(path for path in (folder / "runs").iterdir() if path.is_dir()))
    assert metarl(["evaluate", path, *options.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("benchmark", "words", "message"),
    [
        (ml1.main, "--task raech-v3", "unknown task of the table metaworld-ml1 'raech-v3'. Did you mean 'reach-v3'"),
        (ml10.main, "--cells RL3", "unknown cell of metaworld-ml10 'RL3'"),
        (cartpole.main, "--cells cartpole-gaol*", "unknown cell of cartpole 'cartpole-gaol*'"),
    ],
)
def test_commands_that_cannot_work_say_why_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Callable[[list[str]], int], words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as failure:
        benchmark(words.split())
    assert message in str(failure.value)
    assert not list(tmp_path.iterdir())


def test_commands_are_names_of_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, Sequence[str], str]] = []

    def reproduced(table: PaperTable, console: Console, *, cells: Sequence[str], budget: str, **_: object) -> bool:
        ran.append((table.name, cells, budget))
        return True

    monkeypatch.setattr("metarl.cli.reproduce.run_table", reproduced)
    assert ml1.main(["--task", "push-v3", "--budget", "small"]) == 0
    assert ml10.main([]) == 0 and cartpole.main([]) == 0
    assert ran == [
        ("metaworld-ml1", ("push-v3, *",), "small"),
        ("metaworld-ml10", (), "full"),
        ("cartpole", (), "full"),
    ]
    rows = {cell.row for cell in load_table("metaworld-ml1").select(["push-v3, *"])}
    assert "push-v3, MAML-TRPO" in rows and all(row.startswith("push-v3, ") for row in rows)


def test_a_cell_keeps_the_settings_that_it_was_begun_with(folder: Path) -> None:
    (begun,) = (path for path in (folder / "runs").iterdir() if path.is_dir())
    variant = begun.name.removeprefix("tiny_reach-reach-rl2-").removesuffix("-seed1")
    train = {"meta_batch_size": 2, "num_iterations": 1}
    other = Cell("rl2", TASKS, 1, train, {"hidden_size": 8, "num_epochs": 1}, variant)
    with pytest.raises(ConfigError, match="was begun with hidden_size = 4, and now 8 is asked for"):
        open_experiment(other, folder / "runs")


def test_long_curves_are_running_means_of_the_past() -> None:
    assert smooth([3.0, 1.0]).tolist() == [3.0, 1.0]
    ramp = [float(value) for value in range(100)]
    curve = smooth(ramp)
    assert curve[0] == 0.0 and curve[4] == 2.0
    assert curve[99] == pytest.approx(sum(ramp[90:]) / 10)
