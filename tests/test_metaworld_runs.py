"""The Meta-World benchmarks: cells are trained, then scored and reported; each step alone, and none twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metarl.benchmarks import ml1, ml10
from metarl.benchmarks.cells import Cell, open_experiment
from metarl.benchmarks.metaworld import runs as metaworld_runs
from metarl.benchmarks.metaworld.report import write_success_page
from metarl.benchmarks.report import smooth
from metarl.cli.entry import main as metarl
from metarl.errors import ConfigError
from metarl.evaluation.metaworld_scores import OfficialScores, SampledScores, TaskScores
from metarl.experiments import resolve

TINY = """
import dataclasses
from metarl.envs.metaworld import task_distribution

reach = dataclasses.replace(task_distribution("ml1/reach-v3"), horizon=10)
"""

OPTIONS = (
    "--agent rl2 --seeds 1 --variant tiny --agent.hidden-size 4 --agent.num-epochs 1 --meta-batch-size 2 --steps 40 "
    "--goals 2 --num-workers 1"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a tiny benchmark was trained, and only trained."""
    path = tmp_path_factory.mktemp("benchmark")
    (path / "tiny_reach.py").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARL_CACHE", str(path / "cache"))
        patch.chdir(path)
        run("--train-only")
        assert not (path / "benchmarks").exists()
        yield path


def run(more: str = "") -> None:
    words = f"{OPTIONS} {more}".split()
    metaworld_runs.run(words, "tiny_reach:reach", "tiny", "metarl.benchmarks.tiny", ("test",))


def test_the_same_command_scores_what_was_trained_and_writes_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metaworld_runs, "train", None)  # Nothing may be trained again.
    run()
    results = folder / "benchmarks/results/tiny_reach-reach"
    page = (results / "README.md").read_text()
    for part in (
        "python -m metarl.benchmarks.tiny --agent rl2 --seeds 1 --variant tiny --steps 40 --meta-batch-size 2 ",
        " --agent.hidden-size 4 ",
        " --agent.num-epochs 1 ",
        " --goals 2\n",
        "NOT the official protocol: 2 of 50 goals",
        "| rl2 tiny | 4.00e-05 M | ",
        "| scripted expert |",
        "| random policy |",
        "mujoco",
        "Commit",
    ):
        assert part in page, part
    score = json.loads((results / "tiny_reach-reach-rl2-tiny-seed1.json").read_text())
    assert score["env_steps"] == 40 and score["curve"]["env_steps"] == [40]
    assert score["official"]["test"]["env_steps"] == 2 * 13 * 10
    assert len(score["official"]["test"]["by_task"]["reach-v3"]["success"]) == 2
    assert (results / "curves.png").read_bytes().startswith(b"\x89PNG")
    for path in results.iterdir():
        assert str(folder).encode() not in path.read_bytes(), f"{path.name} names a folder of the machine"

    # A score stands for its cell, even where the run's folder is gone.
    for name in ("open_experiment", "evaluate_experiment"):
        monkeypatch.setattr(metaworld_runs, name, None)
    run()
    assert (results / "README.md").read_text() == page


def test_metarl_evaluate_prints_the_table_and_upstreams_figure_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "runs/benchmark-metaworld/tiny_reach-reach-rl2-tiny-seed1"
    # Upstream's episodes last 500 steps; that its function runs is tests/test_metaworld_upstream.py.
    monkeypatch.setattr("metarl.experiments.official.upstream_evaluation", lambda *_, **__: (0.5, {"reach-v3": 0.5}))
    assert metarl(["evaluate", path, "--official", "--goals", "1", "--upstream"]) == 0
    printed = capsys.readouterr().out
    for part in ("NOT the official protocol: 1 of 50 goals", "upstream's", "50.0", "130 environment steps"):
        assert part in printed, part
    (text,) = (folder / path).glob("official-*.md")
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
    path = "runs/benchmark-metaworld/tiny_reach-reach-rl2-tiny-seed1"
    assert metarl(["evaluate", path, *options.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("benchmark", "words", "message"),
    [
        (ml1.main, "--task raech-v3", "unknown Meta-World task 'raech-v3'. Did you mean 'reach-v3'"),
        (ml1.main, "--agent rl3", "unknown agent 'rl3'"),
        (ml1.main, "--agent.num-epochs 3", "differ from the preset's: num_epochs. Give them a name with --variant"),
        (ml1.main, "--steps 10", "--steps must be 50000 or more"),
        (ml10.main, "--meta-batch-size 0 --variant x", "meta_batch_size must be a whole number above 0, got 0"),
    ],
)
def test_commands_that_cannot_work_say_why_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Callable[[list[str]], None], words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as failure:
        benchmark(words.split())
    assert message in str(failure.value)
    assert not list(tmp_path.iterdir())


def test_a_cell_keeps_the_settings_that_it_was_begun_with(folder: Path) -> None:
    cell = Cell("rl2", "tiny_reach:reach", 1, {}, {"hidden_size": 8}, "tiny")
    with pytest.raises(ConfigError, match="was begun with hidden_size = 4, and now 8 is asked for"):
        open_experiment(cell, folder / "runs/benchmark-metaworld")


def _scores(split: str, success: float, agent: str = "") -> OfficialScores:
    about = {
        "protocol": "the official protocol",
        "task_set": "ml10",
        "goals_seed": 0,
        "split": split,
        "goals_per_task": 50,
        "adaptation_episodes": 10,
        "evaluation_episodes": 3,
        "deterministic": True,
        "reward_version": "v2",
        "versions": {"mujoco": "3"},
        "agent": agent,
    }
    solved, half = TaskScores((success,) * 50, (1.0,) * 50, 9, 0), TaskScores((0.5,) * 50, (1.0,) * 50, 9, 0)
    return OfficialScores(about, {"door-close-v3": solved, "lever-pull-v3": half})


def test_sampled_success_stands_in_the_page_where_it_was_measured(tmp_path: Path) -> None:
    """One seed was scored before there was any, one with it."""
    for seed in (1, 2):
        scores = _scores("test", 0.25)
        if seed == 2:
            sampled = SampledScores((0.75,) * 50, (1.0,) * 50, 9)
            by_task = {name: dataclasses.replace(entry, sampled=sampled) for name, entry in scores.by_task.items()}
            scores = dataclasses.replace(scores, by_task=by_task)
        score = {
            **{"agent": "rl2", "tasks": "ml10", "seed": seed, "variant": "", "changed": {}, "env_steps": 2e7},
            "config": json.loads(json.dumps(resolve("rl2", "ml10", train={"seed": seed}).to_json())),
            "manifest": {
                "git": {"commit": "0123456789ab"},
                "machine": {"cpu": "a cpu", "cores": 2, "torch_threads": 1, "device": "cpu"},
                "versions": {"mujoco": "3"},
            },
            "curve": {"env_steps": [1e5, 2e5], "return": [1.0, 2.0], "success": [0.0, 0.5]},
            "official": {"test": scores.to_json()},
        }
        (tmp_path / f"ml10-rl2-seed{seed}.json").write_text(json.dumps(score))
    page = write_success_page(tmp_path, "ml10", "metarl.benchmarks.ml10", ("test",), {})
    row = next(line for line in page.splitlines() if line.startswith("| rl2 |"))
    assert row.endswith("| 37.5, 37.5 | -, 75.0 |")
    assert next(line for line in page.splitlines() if line.startswith("| door-close-v3 |")).endswith("; sampled 75.0 |")


def test_the_page_of_several_seeds_and_splits_holds_seeds_tasks_references_and_floor(tmp_path: Path) -> None:
    manifest = {
        "git": {"commit": "0123456789ab"},
        "machine": {"cpu": "a cpu", "cores": 2, "torch_threads": 1, "device": "cpu"},
        "versions": {"mujoco": "3"},
    }
    for seed, success in ((1, 1.0), (2, 0.5)):
        score = {
            "agent": "rl2",
            "tasks": "ml10",
            "seed": seed,
            "variant": "",
            "changed": {},
            "env_steps": 2e7,
            "config": json.loads(json.dumps(resolve("rl2", "ml10", train={"seed": seed}).to_json())),
            "manifest": manifest,
            "curve": {"env_steps": [1e5, 2e5], "return": [1.0, 2.0], "success": [0.0, 0.5]},
            "official": {split: _scores(split, success).to_json() for split in ("train", "test")},
        }
        (tmp_path / f"ml10-rl2-seed{seed}.json").write_text(json.dumps(score))
    references = {("scripted expert", split): _scores(split, 1.0) for split in ("train", "test")}
    page = write_success_page(tmp_path, "ml10", "metarl.benchmarks.ml10", ("train", "test"), references)  # type: ignore[arg-type]
    assert "    python -m metarl.benchmarks.ml10 --agent rl2 --seeds 1 2\n" in page
    row = next(line for line in page.splitlines() if line.startswith("| rl2 |"))
    assert row.split("|")[2] == " 20.0 M " and row.count(" 62.5 |") == 2
    assert row.count("75.0, 50.0") == 2
    assert "| test task | rl2 | scripted expert |" in page
    assert "| door-close-v3 | 75.0 (" in page and "| lever-pull-v3 | 50.0 (" in page
    assert "test: The floor is 20 %: what solving door-close alone gives." in page
    assert "train: The floor" not in page
    assert "Commit 0123456789; machine: a cpu, 2 cores" in page
    assert "differs from its preset" not in page


def test_long_curves_are_running_means_of_the_past() -> None:
    assert smooth([3.0, 1.0]).tolist() == [3.0, 1.0]
    ramp = [float(value) for value in range(100)]
    curve = smooth(ramp)
    assert curve[0] == 0.0 and curve[4] == 2.0
    assert curve[99] == pytest.approx(sum(ramp[90:]) / 10)
