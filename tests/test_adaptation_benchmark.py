"""The adaptation benchmark: cells are trained once, for the same number of steps, and its page shows all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metarl.benchmarks import adaptation
from metarl.session import Session

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
    monkeypatch.setattr(Session, "train", lambda *_: pytest.fail("a finished cell was trained again"))
    (results / "NOTES.md").write_text("- RL2 pulled every arm.\n")
    run(tmp_path, monkeypatch)
    assert "[NOTES.md](NOTES.md)" in (results / "README.md").read_text()


def test_two_budgets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="--steps 2000 and --num-iterations 3"):
        run(tmp_path, monkeypatch, OPTIONS + " --num-iterations 3")
