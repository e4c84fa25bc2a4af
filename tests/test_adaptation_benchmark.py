"""The adaptation benchmark: cells are trained once, for the same number of steps, and its page shows all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from metarl.benchmarks import adaptation
from metarl.benchmarks.summary import Adapted
from metarl.errors import ConfigError
from metarl.experiments.experiment import Experiment

OPTIONS = "--tasks bandit --agents reptile rl2 --seeds 1 2 --steps 2000 --meta-batch-size 5 --num-tasks 3"


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, options: str = OPTIONS) -> Path:
    words = [*options.split(), "--results", str(folder / "results"), "--runs", str(folder / "runs")]
    monkeypatch.setattr("sys.argv", ["adaptation", *words])
    adaptation.main()
    return folder / "results" / "bandit"


@pytest.mark.timeout(120)
def test_cells_are_trained_once_and_shown_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = run(tmp_path, monkeypatch)
    for agent, episodes in (("reptile", 5 * 20 * 3), ("rl2", 1000)):
        score = json.loads((results / f"bandit-{agent}-seed2.json").read_text())
        assert len(score["returns"]) == 3
        # The budget, to the nearest whole iteration, at 10 steps an episode.
        assert score["env_steps"] == 10 * episodes * max(1, round(200 / episodes))
        assert score["curve"]["env_steps"][-1] == score["env_steps"]
        assert len(score["curve"]["return"]) == max(1, round(200 / episodes))
    page = (results / "README.md").read_text()
    assert "| bandit | reptile |" in page and "| bandit | rl2 |" in page
    assert "--tasks bandit --agents rl2 --seeds 1 2 --num-iterations 1 --num-tasks 3" in page
    assert str(tmp_path) not in page
    assert "NOTES.md" not in page
    assert (results / "learning.png").stat().st_size > 5000
    monkeypatch.setattr(Experiment, "train", lambda *_: pytest.fail("a finished cell was trained again"))
    (results / "NOTES.md").write_text("- RL2 pulled every arm.\n")
    run(tmp_path, monkeypatch)
    assert "[NOTES.md](NOTES.md)" in (results / "README.md").read_text()


def test_an_agent_stands_beside_itself_with_another_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = "--tasks bandit --agents rl2 rl2:transformer --seeds 1 --num-iterations 1 --num-tasks 2"
    results = run(tmp_path, monkeypatch, both)
    plain, other = (json.loads((results / f"bandit-rl2{end}-seed1.json").read_text()) for end in ("", "-transformer"))
    assert "variant" not in plain and other["variant"] == "transformer"
    assert [score["config"]["rl2"]["memory"] for score in (plain, other)] == ["gru", "transformer"]
    page = (results / "README.md").read_text()
    assert "| bandit | rl2 |" in page and "| bandit | rl2:transformer |" in page
    # As they were asked for, in one line.
    assert "--tasks bandit --agents rl2 rl2:transformer --seeds 1 --num-iterations 1 --num-tasks 2\n" in page
    with pytest.raises(ConfigError, match=r"holds no score of rl2:snail\."):
        Adapted("bandit", "rl2:snail").text(tmp_path / "results")
    (results / "bandit-rl2-transformer-seed1.json").write_text(json.dumps(other | {"returns": [[99.0], [99.0]]}))
    assert float(Adapted("bandit", "rl2:transformer").text(tmp_path / "results")) == 99.0
    assert float(Adapted("bandit", "rl2").text(tmp_path / "results")) < 10.0
    with pytest.raises(
        SystemExit, match=r"unknown preset of rl2 'rl2:bandit:transfomer'.*Did you mean 'rl2:bandit:transformer'"
    ):
        run(tmp_path, monkeypatch, both.replace("rl2:transformer", "rl2:transfomer"))


def test_two_budgets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="--steps 2000 and --num-iterations 3"):
        run(tmp_path, monkeypatch, OPTIONS + " --num-iterations 3")


def test_budgets_that_are_none_or_another_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = "--tasks bandit --agents reptile --seeds 1 --meta-batch-size 2 --num-tasks 3"
    for words, message in (
        ("--num-iterations 0", "--num-iterations must be above 0"),
        ("--steps -5", "--steps must be"),
    ):
        with pytest.raises(SystemExit, match=f"{message}.*got"):
            run(tmp_path, monkeypatch, f"{one} {words}")
    run(tmp_path, monkeypatch, one + " --num-iterations 1")
    for other in (one, one.replace("--seeds 1", "--seeds 2")):  # Another seed would be in the same row.
        with pytest.raises(SystemExit, match=r"is the score of a run with num_iterations = 1, and now 2 is asked for"):
            run(tmp_path, monkeypatch, other + " --num-iterations 2")


def test_seeds_of_one_row_that_were_not_made_alike_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = "--tasks bandit --agents reptile --seeds 1 --meta-batch-size 2 --num-tasks 3 --num-iterations 1"
    results = run(tmp_path, monkeypatch, one)
    score = json.loads((results / "bandit-reptile-seed1.json").read_text())
    page = (results / "README.md").read_text()
    score["seed"] = score["config"]["train"]["seed"] = 2
    score["config"]["reptile"]["inner_lr"] = 0.7
    (results / "bandit-reptile-seed2.json").write_text(json.dumps(score))
    with pytest.raises(SystemExit, match=r"seed2\.json has inner_lr = 0\.7, and bandit-reptile-seed1\.json beside it"):
        run(tmp_path, monkeypatch, one)
    assert (results / "README.md").read_text() == page


def test_a_score_says_how_many_episodes_it_adapted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = "--tasks bandit --agents reptile --seeds 1 --num-iterations 1 --meta-batch-size 2 --num-tasks 3"
    results = run(tmp_path, monkeypatch, one + " --rollouts-per-task 5")
    path = results / "bandit-reptile-seed1.json"
    assert json.loads(path.read_text())["rollouts_per_task"] == 5
    assert "--num-tasks 3 --rollouts-per-task 5\n" in (results / "README.md").read_text()
    before = path.read_bytes()
    for options, message in (
        (one, "episodes per task and shot: 5, and now as many as in training is asked for"),
        (one.replace("--seeds 1", "--seeds 2 1"), "episodes per task and shot: 5"),
        (one + " --rollouts-per-task 5 --num-tasks 4", "held-out tasks: 3, and now 4 is asked for"),
        (one + " --rollouts-per-task 0", "--rollouts-per-task must be above 0, got 3 and 0"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(tmp_path, monkeypatch, options)
    assert path.read_bytes() == before
    # A score that does not fit is found before a cell that has none is trained.
    assert not (tmp_path / "runs" / "bandit-reptile-seed2").exists()
    # Without its score, a trained cell is scored anew.
    path.unlink()
    monkeypatch.setattr("metarl.trainer._iterate", lambda *_: pytest.fail("a trained cell was trained again"))
    run(tmp_path, monkeypatch, one)
    assert json.loads(path.read_text())["rollouts_per_task"] is None


RESULTS = Path(__file__).resolve().parents[1] / "benchmarks/results"
# Tables of papers are compared in tests/test_reproduce.py.
COMMITTED = sorted(
    {
        path.parent.name
        for path in RESULTS.glob("*/*-seed1.json")
        if "returns" in (score := json.loads(path.read_text())) and "table" not in score
    }
)


def test_pages_are_committed() -> None:
    assert {"navigation-2d", "cartpole-goal", "bandit"} <= set(COMMITTED)


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_pages_are_made_of_committed_scores(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(RESULTS / name, folder)
    scores = sorted(folder.glob("*-seed*.json"))
    text = adaptation.write_page(folder, json.loads(scores[0].read_text())["tasks"])
    assert text == (RESULTS / name / "README.md").read_text()
