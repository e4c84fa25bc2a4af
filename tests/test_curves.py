"""Learning curves: what is aggregated over seeds, where, and what the CSV says of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import metarl, refused
from scipy import stats

from metarl.experiments import Experiment, resolve
from metarl.runs.folder import RunFolder
from metarl.seeding import numpy_stream
from metarl.statistics import interquartile_mean, mean_interval, seed_intervals

RNG = np.random.default_rng(0)


def made(name: str, returns: list[float], steps: list[float], seed: int = 1, **settings: Any) -> RunFolder:
    """A run in ``runs`` with these returns after adaptation, at these numbers of steps; each iteration took 36 s."""
    setup = resolve("maml-trpo", "bandit", train={"seed": seed, **settings})
    run = Experiment.start(setup, "runs", name).run
    rows = [
        {
            "iteration": number,
            "env_steps": cost,
            "train/return_0": 0.0,
            "train/return_1": value,
            "seconds/collect": 36.0,
        }
        for number, (value, cost) in enumerate(zip(returns, steps, strict=True))
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def plotted(words: str, csv_file: str = "runs/learning.csv") -> list[dict[str, str]]:
    """The CSV's rows of returns after adaptation."""
    assert metarl(f"plot {words}") == 0
    assert Path(csv_file).with_suffix(".png").stat().st_size > 1000
    with open(csv_file, newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] == "train/return_1"]


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name] or "nan") for row in rows]


def iqm(values: Any) -> Any:
    """The mean of the middle half, with plain numpy."""
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def test_seeds_that_cost_the_same_are_aggregated_where_they_logged() -> None:
    returns = RNG.normal(size=(5, 6))
    for seed, values in enumerate(returns):
        made(f"s{seed}", values.tolist(), [10.0 * (n + 1) for n in range(6)], seed)
    rows = plotted("runs")
    assert {row["label"] for row in rows} == {"maml-trpo on bandit (5 seeds)"}
    assert column(rows, "steps") == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    assert column(rows, "num_seeds") == [5.0] * 6 and {row["aggregate"] for row in rows} == {"IQM"}
    np.testing.assert_allclose(column(rows, "value"), iqm(returns.T))
    draws = numpy_stream(0, "bootstrap").integers(5, size=(2000, 5))
    low, high = np.quantile(iqm(returns.T[:, draws]), [0.025, 0.975], axis=1)
    np.testing.assert_allclose(column(rows, "low"), low)
    np.testing.assert_allclose(column(rows, "high"), high)


def test_fewer_than_four_seeds_have_their_mean_and_students_interval() -> None:
    returns = RNG.normal(size=(3, 2))
    for seed, values in enumerate(returns):
        made(f"s{seed}", values.tolist(), [10.0, 20.0], seed)
    rows = plotted("runs --x iterations")
    assert column(rows, "iterations") == [1.0, 2.0] and {row["aggregate"] for row in rows} == {"mean"}
    half = stats.t.ppf(0.975, 2) * returns.std(0, ddof=1) / 3**0.5
    np.testing.assert_allclose(column(rows, "value"), returns.mean(0))
    np.testing.assert_allclose(column(rows, "low"), returns.mean(0) - half)
    np.testing.assert_allclose(column(rows, "high"), returns.mean(0) + half)


def test_seeds_that_cost_different_steps_are_interpolated_inside_their_ranges_alone() -> None:
    costs = [[10.0, 20.0, 30.0, 40.0], [12.0, 24.0, 36.0, 48.0], [13.0, 23.0, 33.0, 43.0], [9.0, 19.0, 39.0, 49.0]]
    returns = RNG.normal(size=(4, 4))
    for seed in range(4):
        made(f"s{seed}", returns[seed].tolist(), costs[seed], seed)
    rows = plotted("runs")
    steps = [9.0, 10.0, 12.0, *np.linspace(13.0, 40.0, 4), 43.0, 48.0, 49.0]
    assert column(rows, "steps") == steps
    expected = np.array(
        [np.interp(steps, cost, values, left=np.nan, right=np.nan) for cost, values in zip(costs, returns, strict=True)]
    )
    there = np.isfinite(expected).sum(0)
    assert column(rows, "num_seeds") == there.tolist() == [1, 2, 3, 4, 4, 4, 4, 3, 2, 1]
    for row, values in zip(rows, expected.T, strict=True):
        assert float(row["value"]) == pytest.approx(iqm(values[np.isfinite(values)]))
    assert [row["low"] == row["high"] == "" for row in rows] == [count == 1 for count in there]


def test_seeds_of_different_lengths_are_told_by_their_number() -> None:
    for seed, length in enumerate((2, 3, 5)):
        made(f"s{seed}", [float(seed)] * length, [10.0 * (n + 1) for n in range(length)], seed)
    rows = plotted("runs --x hours")
    np.testing.assert_allclose(column(rows, "hours"), [0.01, 0.02, 0.03, 0.04, 0.05])
    assert column(rows, "num_seeds") == [3, 3, 2, 1, 1]
    assert column(rows, "value") == [1.0, 1.0, 1.5, 2.0, 2.0]


def test_a_metric_logged_once_at_different_costs_has_the_seeds_own_points() -> None:
    for seed in range(4):
        made(f"s{seed}", [float(seed)], [10.0 + 7 * seed], seed)
    rows = plotted("runs --metric train/return_1 --output one.png", "one.csv")
    assert column(rows, "steps") == [10.0, 17.0, 24.0, 31.0]
    assert column(rows, "num_seeds") == [1] * 4 and column(rows, "value") == [0.0, 1.0, 2.0, 3.0]


def test_groups_are_named_by_patterns_and_the_others_group_themselves() -> None:
    for seed in range(4):
        made(f"a{seed}", [1.0 + seed], [10.0], seed)
        made(f"b{seed}", [11.0 + seed], [10.0], seed, meta_batch_size=7)
    made("c", [5.0], [10.0], meta_batch_size=9)
    rows = plotted("runs --label ours=runs/a* --label theirs=runs/b[01]")
    found = {row["label"]: (row["num_seeds"], float(row["value"])) for row in rows}
    assert found == {
        "ours (4 seeds)": ("4", 2.5),
        "theirs (2 seeds)": ("2", 11.5),
        "maml-trpo on bandit, meta_batch_size 7 (2 seeds)": ("2", 13.5),
        "c": ("1", 5.0),
    }
    assert [row["label"] for row in plotted("--label all=runs/a* --output all.png", "all.csv")] == ["all (4 seeds)"]
    # A folder of runs stands for them.
    assert [row["num_seeds"] for row in plotted("--label all=ru* --output all.png", "all.csv")] == ["9"]


def test_one_metric_alone_is_drawn_of_runs_that_share_it(capsys: pytest.CaptureFixture[str]) -> None:
    made("a", [1.0], [10.0], 1)
    other = made("b", [2.0], [10.0], 2, meta_batch_size=7)
    line = json.loads(other.metrics.read_text())
    other.metrics.write_text(json.dumps({**line, "mine/x": 3.0}) + "\n")
    told = refused("plot runs --metric mine/x", capsys)
    assert "mine/x is not logged by" in told and "runs/a. All of these runs have: env_steps," in told
    told = refused("plot runs --metric train/return_7", capsys)
    assert "unknown metric 'train/return_7'. Did you mean 'train/return_" in told and "seconds/collect" in told
    assert not Path("runs/learning.png").exists()
    assert metarl("plot runs/b --metric mine/x") == 0
    assert "b,mine/x,10.0,1,mean,3.0,,\n" in Path("runs/b/learning.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plot", "plot needs at least one run folder: metarl plot RUN..., or --label NAME=GLOB."),
        ("plot elsewhere", "elsewhere does not exist."),
        ("plot --label a", "--label takes NAME=GLOB, such as 'RL2=runs/rl2-bandit-*', got 'a'."),
        ("plot --label =runs/*", "--label takes NAME=GLOB"),
        ("plot --label a=nowhere/*", "--label a=nowhere/*: there is no run that 'nowhere/*' finds, from "),
        ("plot --label a=runs/s1 --label a=runs/s2", "--label a is there twice"),
        ("plot --label a=runs/s1 --label b=runs/s*", "runs/s1 is both a and b; a run has one label."),
        ("plot --label a=runs/s1*", "runs/s1 and runs/s1-2 have the same settings and seed"),
        ("plot runs/s1-2 --label s1-2=runs/s2", "--label s1-2 names a line as that of"),
        ("plot runs/empty", "metrics.jsonl holds no iteration yet: nothing to plot."),
        ("plot runs/s1 --x hours", "metrics.jsonl has no seconds/...: its iterations do not say how long they took."),
        (
            "plot runs/s1 --output nowhere/x.png",
            "cannot write the figure nowhere/x.png: No such file or directory. Name a file in a folder that exists",
        ),
        ("plot model:rl2-bandit", "model:rl2-bandit is a published model, which has no metrics to plot."),
    ],
)
def test_what_cannot_be_drawn_is_told(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("s1", 1), ("s1", 1), ("s2", 2), ("empty", 3)):
        made(name, [1.0], [10.0], seed, meta_batch_size=7 if name == "s2" else 8)
    Path("runs/empty/metrics.jsonl").write_text("")
    line = json.loads(Path("runs/s1/metrics.jsonl").read_text())
    del line["seconds/collect"]
    Path("runs/s1/metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert message in refused(words, capsys)


def test_curves_are_resampled_by_whole_runs() -> None:
    """Two points at which the runs did the same have the same interval, and each that of its own runs."""
    scores = np.repeat(RNG.normal(size=(6, 1)), 2, axis=1)
    scores = np.hstack([scores, scores + 3.0, np.where(np.arange(6)[:, None] < 2, scores[:, :1], np.nan)])
    centre, low, high = seed_intervals(scores)
    assert centre[0] == centre[1] == pytest.approx(interquartile_mean(scores[:, 0]))
    assert (low[0], high[0]) == (low[1], high[1]) == pytest.approx((low[2] - 3.0, high[2] - 3.0))
    assert (centre[4], low[4], high[4]) == pytest.approx(mean_interval(scores[:2, 4]))
    assert np.isnan(seed_intervals(np.full((3, 1), np.nan))).all()
    assert [bool(np.isnan(part).all()) for part in seed_intervals(np.ones((1, 2)))] == [False, True, True]


def test_the_interval_holds_the_mean_about_as_often_as_it_says() -> None:
    """Twelve runs, of which a percentile bootstrap holds somewhat too few: 89 to 93 %."""
    scores = np.random.default_rng(1).normal(size=(12, 400))
    # Points are runs of their own here: each must be resampled for itself as if it were the only one.
    _, low, high = seed_intervals(scores, num_resamples=500)
    assert 0.86 < ((low <= 0) & (high >= 0)).mean() < 0.97
