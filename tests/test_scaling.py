"""The scaling benchmark: its model, its page, and that it measures what training does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from metarl.benchmarks.scaling import __main__ as scaling
from metarl.benchmarks.scaling.measure import Setting, measured
from metarl.benchmarks.scaling.model import Cost, Link
from metarl.errors import ConfigError
from metarl.tasks import make


def findings(seconds: float, **more: float) -> dict[str, float]:
    names = ("sums", "messages", "num_bytes", "draw_seconds", "share_in_collectives")
    return {"seconds": seconds, "steps": 1000.0, **dict.fromkeys(names, 0.0), **more}


@pytest.mark.parametrize("others", [5, 20])
def test_the_model_splits_an_iteration_into_what_ranks_share_and_what_each_does(others: int) -> None:
    """Of 10 tasks, 2 s are fixed, each task takes 0.1 s to draw and 0.4 s to play."""
    two_ranks = findings(0.0, sums=100, messages=10, num_bytes=10**6)
    cost = Cost.of(10, findings(7.0, draw_seconds=1.0), two_ranks, others, findings(2.0 + 0.5 * others))
    assert (cost.fixed, cost.draw) == (pytest.approx(2.0), pytest.approx(0.1))
    assert cost.per_task == pytest.approx(0.4)
    link = Link(sum=1e-3, message=1e-2, byte=1e-7)
    assert cost.seconds(10, 1, link) == pytest.approx(7.0)
    # Two ranks of five tasks, and 0.3 s of exchange; four of at most three, and three rounds of it.
    assert cost.seconds(10, 2, link) == pytest.approx(2 + 1 + 2 + 0.3)
    assert cost.seconds(10, 4, link) == pytest.approx(2 + 1 + 1.2 + 0.9)
    assert cost.strong(10, 2, link) == pytest.approx(7 / (2 * 5.3))
    assert cost.weak(10, 2, link) == pytest.approx(7 / (2 + 2 + 4 + 0.3))
    nothing = Link(0.0, 0.0, 0.0)
    assert Cost(0.0, 0.0, 1.0, 5, 5, 5).strong(64, 64, nothing) == 1.0


def test_a_page_is_written_from_measurements_that_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, Setting | None]] = []

    def measure(ranks: int, setting: Setting | None, iterations: int) -> dict[str, Any]:
        made.append((ranks, setting))
        if setting is None:
            return {"sum": 1e-4, "message": 2e-4, "byte": 1e-9}
        share = {"share_in_collectives": 0.25, "sums": 50, "messages": 5, "num_bytes": 1e6} if ranks == 2 else {}
        return findings(setting.tasks / (ranks * setting.threads), **share)

    monkeypatch.setattr(scaling, "measured", measure)
    words = ["--cases", "rl2:navigation-2d", "maml-trpo:ml10", "--tasks", "20", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["scaling", *words])
    scaling.main()
    page = (tmp_path / "README.md").read_text()
    assert "| rl2:navigation-2d | 20 | 2 ranks | 10 | 100 | 1.00 | 25.0 % |" in page
    assert "| maml-trpo:ml10 | 20 | 1 rank, 2 workers | 20 | 50 | 0.50 |  |" in page
    assert "--cases rl2:navigation-2d maml-trpo:ml10 --iterations 5 --tasks 20`" in page
    assert "T(B, R) = fixed" in page and "Assumed: ranks are equally fast" in page
    assert (tmp_path / "efficiency.png").stat().st_size > 5000
    assert len(made) == 4 + 5 + 1  # Arithmetic has no workers.
    one_rank = [setting.tasks for ranks, setting in made if setting is not None and ranks == setting.threads == 1]
    assert sorted(one_rank) == [10, 10, 20, 20, 20]
    scaling.main()
    assert len(made) == 10
    assert str(tmp_path) not in page
    # What other code has measured says nothing of this one.
    monkeypatch.setattr(scaling, "git_state", lambda: {"commit": "0123456789ab", "dirty": False})
    scaling.main()
    assert len(made) == 20 and "commit 0123456789" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cases", "rl2"], r"written as AGENT:TASKS, e\.g\. rl2:ml10, got 'rl2'"),
        (["--cases", "rl2:bandit", "--tasks", "1"], "two ranks need two tasks, got 1 of rl2:bandit"),
        (["--iterations", "0"], "--iterations must be above 0, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", *words, "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match=message):
        scaling.main()


def test_tasks_that_cannot_be_halved_are_doubled() -> None:
    count = scaling._other_number
    assert count(make("navigation-2d"), 10) == 5
    ml10 = make("ml10")
    assert [count(ml10, number) for number in (20, 10)] == [10, 20]
    with pytest.raises(ConfigError, match="multiple of 10"):
        count(ml10, 7)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_are_measured() -> None:
    found = measured(2, Setting("rl2:bandit", 4), 2)
    assert found["steps"] == 4 * 10  # Tasks x episodes of one step.
    assert found["seconds"] > 0 and 0 < found["share_in_collectives"] < 1
    assert found["sums"] > 0 and found["messages"] > 0 and found["num_bytes"] > 0
    alone = measured(1, Setting("rl2:bandit", 4), 1)
    assert alone["sums"] == alone["share_in_collectives"] == 0
    assert set(measured(2, None, 1)) == {"sum", "message", "byte"}
