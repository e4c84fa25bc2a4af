"""``metarl reproduce``: cells run once, in any engine; the page says what came, and bad input is one clear sentence."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import metarl, refused
from helpers.tables import Known, Stopped, Trained, Twice, published, small_table
from rich.console import Console

from metarl.benchmarks import tables
from metarl.benchmarks.bandits.source import StrategySource
from metarl.benchmarks.cells import Cell, open_experiment
from metarl.benchmarks.engines import LOCAL, Engine
from metarl.benchmarks.report import provenance
from metarl.benchmarks.reproduce import costs
from metarl.benchmarks.reproduce.agents import AgentSource
from metarl.benchmarks.reproduce.costs import Cost, cost_of, duration, extrapolated, measured
from metarl.benchmarks.reproduce.page import write_page
from metarl.benchmarks.reproduce.run import reproduce
from metarl.benchmarks.reproduce.scores import read_scores
from metarl.benchmarks.reproduce.table import Budget, PaperTable, TableCell
from metarl.benchmarks.reproduce.verdicts import aggregated, compare, results_of
from metarl.benchmarks.tables import load_table
from metarl.cli import reproduce as reproduce_command
from metarl.errors import CheckpointError, ConfigError, WorkerError
from metarl.statistics import crossed_interval

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def _run(
    folder: Path,
    table: PaperTable,
    *cells: str,
    seeds: tuple[int, ...] = (),
    budget: Budget = "full",
    engine: Engine = LOCAL,
) -> str:
    """Run a table in ``folder`` to its end; returns what is printed."""
    (folder / "runs").mkdir(exist_ok=True)
    console = Console(record=True, width=200, quiet=False)
    done = reproduce(
        table,
        console,
        budget=budget,
        cells=cells,
        seeds=seeds,
        results=folder / "results",
        runs=folder / "runs",
        engine=engine,
    )
    assert done
    return console.export_text()


def _ran(folder: Path) -> list[str]:
    return (folder / "runs" / "ran.txt").read_text().splitlines()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_table_is_run_once_and_written_as_markdown_csv_and_figure(tmp_path: Path, jobs: int) -> None:
    printed = _run(tmp_path, small_table(), engine=Engine(jobs=jobs))
    assert sorted(_ran(tmp_path)) == ["3 seed 1", "5 seed 1", "5 seed 2", "7 seed 1"]
    assert "cells: 1 within, 1 above, 1 below, 1 not run: " in printed
    folder = tmp_path / "results" / "small"
    page = (folder / "README.md").read_text()
    assert page.startswith("# A small table\n\n    metarl reproduce small\n")
    assert re.search(r"^\| easy \| (4\.9|5\.0)\d* ± 0\.\d+ \(5\.0\) \| ", page, re.MULTILINE)
    assert "(6.0) ▲ |" in page and "(4.0 ± 0.1) ▼ |" in page and "| – (9.0) |" in page
    assert "- easy/two: the paper's dice were loaded." in page
    assert "| Paper (arXiv 1234.5678), Table 1 | within | around 5 |" in page
    assert (folder / "table.png").stat().st_size > 5000
    with (folder / "table.csv").open() as file:
        first, second, third, fourth = csv.DictReader(file)
    assert [row["verdict"] for row in (first, second, third, fourth)] == ["within", "above", "below", "not run"]
    assert (first["seeds"], first["tasks"], fourth["ours"], first["source"]) == ("2", "400", "", "its text")
    with (folder / "scores.csv").open() as file:
        by_seed = list(csv.DictReader(file))
    assert [row["seed"] for row in by_seed] == ["1", "2", "1", "1"]
    assert float(first["ours"]) == pytest.approx((float(by_seed[0]["mean"]) + float(by_seed[1]["mean"])) / 2)
    # Once more: nothing runs, and the page stays.
    assert "4 of 4 scores are there already: skipped." in _run(tmp_path, small_table())
    assert len(_ran(tmp_path)) == 4
    assert (folder / "README.md").read_text() == page


def test_cells_are_asked_for_by_row_column_or_both(tmp_path: Path) -> None:
    assert [cell.key for cell in small_table().select(())] == ["easy/one", "easy/two", "hard/one"]
    assert [cell.key for cell in small_table().select(("two",))] == ["easy/two", "hard/two"]
    assert [cell.key for cell in small_table().select(("hard", "easy/t*"))] == ["easy/two", "hard/one", "hard/two"]
    printed = _run(tmp_path, small_table(), "hard/two", "easy/one")
    assert sorted(_ran(tmp_path)) == ["5 seed 1", "5 seed 2", "9 seed 1"]
    assert "cells: 2 within, 2 not run" in printed
    page = (tmp_path / "results/small/README.md").read_text()
    assert "    metarl reproduce small\n    metarl reproduce small --cells hard/two\n" in page
    assert "1 of 4 scores" not in printed and "2 of 4 scores are there already" in _run(tmp_path, small_table())


def test_a_small_budget_has_its_own_folder_and_says_so(tmp_path: Path) -> None:
    _run(tmp_path, small_table(), "*", budget="small")
    page = (tmp_path / "results/small-small/README.md").read_text()
    assert page.startswith("# A small table, 0.25 of the budget\n\n    metarl reproduce small --budget small\n")
    assert "**Here all of that is cut to 0.25, training and tests.**" in page
    assert "not comparable: 0.25 of the budget" in page  # What is trained; the others have wider intervals.
    assert "| 100 | 5.0 | Paper (arXiv 1234.5678), Table 1 | within |" in page
    with pytest.raises(ConfigError, match=r"small holds scores of budget small, and now budget full of small is asked"):
        _run_in(tmp_path, small_table(), "small-small", "small")


def _run_in(folder: Path, table: PaperTable, there: str, here: str) -> None:
    (folder / "results" / there).rename(folder / "results" / here)
    _run(folder, table)


def test_a_cell_that_fails_leaves_the_others_and_the_page(tmp_path: Path) -> None:
    table = small_table()
    bad = TableCell("hard", "three", Known(101.0), (1,), published(4.0))
    table = dataclasses.replace(table, cells=(*table.cells, bad))
    with pytest.raises(WorkerError, match=r"1 of 5 cells failed.*\n  hard/three seed 1: the mean is above 100"):
        _run(tmp_path, table)
    assert len(_ran(tmp_path)) == 4
    assert "1 below, 2 not run" in (tmp_path / "results/small/README.md").read_text()


def test_an_interrupted_table_keeps_what_is_done_and_goes_on(tmp_path: Path) -> None:
    stopped = TableCell("hard", "three", Stopped(), (1,), published(4.0))
    table = small_table(cells=(*small_table().cells, stopped))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "stop").touch()
    with pytest.raises(AssertionError):
        _run(tmp_path, table)
    assert "Cells: 1 within, 1 above, 1 below, 2 not run." in (tmp_path / "results/small/README.md").read_text()
    (tmp_path / "runs" / "stop").unlink()
    printed = _run(tmp_path, table)
    assert "4 of 5 scores are there already: skipped." in printed and "cells: 2 within" in printed
    assert _ran(tmp_path)[-1] == "4 seed 1" and len(_ran(tmp_path)) == 5


def _score(folder: Path) -> Path:
    return folder / "results" / "small" / "easy-two-seed1.json"


def test_scores_of_another_version_table_or_cell_are_refused(tmp_path: Path) -> None:
    _run(tmp_path, small_table())
    message = r"small holds scores of version 1, and now version 2 of small is asked for: name another folder with --r"
    with pytest.raises(ConfigError, match=message):
        _run(tmp_path, small_table(2))
    with pytest.raises(
        ConfigError, match=r"easy-two-seed1\.json is the score of no cell of small, whose rows are easy"
    ):
        _run(tmp_path, small_table(cells=small_table().cells[:1], notes={}))
    other = small_table(name="other")
    (tmp_path / "results/small").rename(tmp_path / "results/other")
    with pytest.raises(ConfigError, match="holds scores of table small, and now table other of other is asked for"):
        _run(tmp_path, other)


def test_the_score_of_another_cell_or_seed_is_refused(tmp_path: Path) -> None:
    _run(tmp_path, small_table())
    own = _score(tmp_path)
    for name, other in (("easy-two-seed1.json", "easy-one-seed1.json"), ("easy-one-seed2.json", "easy-one-seed1.json")):
        kept = (own.parent / name).read_bytes()
        shutil.copy(own.parent / other, own.parent / name)
        with pytest.raises(ConfigError, match=rf"{name} holds the score of easy/one with seed 1, and its name is that"):
            _run(tmp_path, small_table())
        (own.parent / name).write_bytes(kept)
    _run(tmp_path, small_table())


def test_edited_and_truncated_scores_are_refused(tmp_path: Path) -> None:
    _run(tmp_path, small_table())
    whole = _score(tmp_path).read_text()
    edited = whole.replace('"seed":1', '"seed":2', 1)
    assert edited != whole
    _score(tmp_path).write_text(edited)
    with pytest.raises(CheckpointError, match=r"easy-two-seed1\.json was edited since it was written.*or remove it to"):
        _run(tmp_path, small_table())
    _score(tmp_path).write_text(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"easy-two-seed1\.json is damaged"):
        _run(tmp_path, small_table())
    _score(tmp_path).write_text(json.dumps({"returns": [1.0]}))
    with pytest.raises(CheckpointError, match="is damaged: it lacks 'digest'"):
        _run(tmp_path, small_table())
    _score(tmp_path).unlink()
    assert "3 of 4 scores are there already" in _run(tmp_path, small_table())
    assert json.loads(_score(tmp_path).read_text())["values"] == json.loads(whole)["values"]


def test_seeds_on_different_tasks_are_refused(tmp_path: Path) -> None:
    table = small_table()
    _run(tmp_path, table)
    scores = {place: dict(content) for place, content in read_scores(tmp_path / "results/small", table, "full").items()}
    scores[table.cells[0], 2]["values"] = [1.0]
    with pytest.raises(ConfigError, match="seeds of easy/one were scored on 400, 1 tasks"):
        results_of(table, scores, "full")


def test_a_missing_extra_and_a_folder_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    table = small_table(requires=("no_such_package", "metaworld"))
    message = (
        r"the table small needs the package no_such_package, which is not installed: pip install 'metarl-torch\[metaw"
    )
    with pytest.raises(ConfigError, match=message):
        _run(tmp_path, table)
    (tmp_path / "results").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write into .*small: .*\. Name another folder with --results"):
        _run(tmp_path, small_table())
    (tmp_path / "results").unlink()
    (tmp_path / "runs").rmdir()
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write into .*runs: .*\. Name another folder with --runs"):
        reproduce(
            small_table(),
            Console(quiet=True),
            budget="full",
            cells=(),
            results=tmp_path / "results",
            runs=tmp_path / "runs",
            engine=LOCAL,
        )


@pytest.mark.parametrize("table", ["maml-locomotion", "metaworld-ml10"])
def test_a_table_whose_extra_is_missing_is_listed_with_what_it_needs(
    table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    assert metarl(f"reproduce {table} --list") == 0
    shown = capsys.readouterr().out
    assert re.search(rf"{table}: .+\nthe table {table} needs the package \w+, which is not installed: pip", shown)
    assert "steps" not in shown and "Measuring" not in shown


def test_a_table_that_contradicts_itself_is_refused() -> None:
    cells = small_table().cells
    with pytest.raises(ConfigError, match=r"several cells for one score: easy-one-seed1\.json, easy-one-seed2\.json"):
        small_table(cells=(*cells, cells[0])).check()
    with pytest.raises(ConfigError, match="has cells without seeds: hard/two"):
        small_table(cells=(*cells[:3], dataclasses.replace(cells[3], seeds=()))).check()
    with pytest.raises(ConfigError, match=r"unknown cell of small with a note 'eassy'. Did you mean 'easy'\?"):
        small_table(notes={"eassy": "what?"}).check()


@pytest.mark.parametrize(
    ("ours", "theirs", "half", "at_least", "verdict"),
    [
        (5.0, 5.0, None, False, "within"),
        # 100 tasks of standard deviation 1: an error of 0.1 each, 0.14 of the difference; plus 0.05 of rounding.
        (5.45, 5.0, None, False, "within"),
        (5.55, 5.0, None, False, "above"),
        (4.45, 5.0, None, False, "below"),
        # The paper says 1.96 x 0.3 instead: an error of 0.32.
        (5.9, 5.0, 0.588, False, "within"),
        (6.1, 5.0, 0.588, False, "above"),
        (9.0, 5.0, None, True, "within"),
        (4.0, 5.0, None, True, "below"),
    ],
)
def test_the_verdict_is_by_three_standard_errors(
    ours: float, theirs: float, half: float | None, at_least: bool, verdict: str
) -> None:
    unit = np.random.default_rng(0).normal(size=(1, 100))
    values = ours + (unit - unit.mean()) / unit.std(ddof=1)
    cell = TableCell("a", "b", Known(5.0), (1,), published(theirs, half, at_least))
    assert compare(small_table(), cell, values, crossed_interval([values])) == verdict


def test_a_published_standard_deviation_over_runs_is_taken_as_such() -> None:
    """A deviation of 1 over 4 runs is an error of 0.5, and 1.96 x 0.51 in an interval; ours has an error of 0.1."""
    unit = np.random.default_rng(0).normal(size=(1, 100))
    cell = TableCell("a", "b", Known(5.0), (1,), published(5.0, 1.0))
    for ours, verdict in ((6.5, "within"), (6.65, "above"), (3.35, "below")):
        values = ours + (unit - unit.mean()) / unit.std(ddof=1)
        assert compare(small_table(published_runs=4), cell, values, crossed_interval([values])) == verdict


def test_a_percentage_is_never_sure() -> None:
    """All of 5 x 1,000 episodes succeeded: a mean of 100, and the interval of Wilson for 1,000 tasks."""
    mean, low, high = aggregated(np.full((5, 1000), 100.0), "percent")
    assert (mean, high) == (100.0, 100.0) and low == pytest.approx(100 / (1 + 1.959964**2 / 1000), abs=1e-4)
    assert aggregated(np.full((5, 1000), 100.0), "mean") == (100.0, 100.0, 100.0)


def test_one_number_of_each_seed_has_no_interval_and_groups_are_no_sample() -> None:
    assert aggregated(np.array([[40.0], [50.0]]), "percent") == (45.0, 45.0, 45.0)
    # One of two tasks is done, whatever the goal: which tasks there are is no chance.
    values = np.repeat([[0.0, 100.0]], 50, axis=1)
    mean, low, high = aggregated(values, "percent", num_groups=2)
    apart = aggregated(values, "percent")
    assert mean == apart[0] == 50.0
    assert high - low < 0.5 * (apart[2] - apart[1])


def test_a_page_names_what_trained_and_what_scored(tmp_path: Path) -> None:
    machine = {"cpu": "one", "cores": 2, "torch_threads": 1, "device": "cpu"}
    manifest = {"git": {"commit": "a" * 40, "dirty": True}, "machine": machine, "versions": {}}
    later = {"resumed_at": ["b" * 40], "git": {"commit": "a" * 40, "dirty": False}}
    scores = [{"manifest": manifest}, {"manifest": manifest | later, "scored": {"commit": "c" * 40, "dirty": False}}]
    text = provenance(scores)
    assert text.startswith(
        "Commit aaaaaaaaaa, aaaaaaaaaa (with files that were changed or new), bbbbbbbbbb, cccccccccc; "
    )
    other = {"machine": machine | {"cpu": "another"}, "versions": {"torch": "3"}}
    text = provenance([{"manifest": manifest | {"resumed_on": [other]}}])
    assert "machine: another, 2 cores, 1 torch thread(s), cpu; one, 2 cores" in text and '{"torch": "3"}' in text


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    cell = Cell("reptile", "bandit", 1, train={"num_iterations": 1})
    this = open_experiment(cell, tmp_path)
    assert open_experiment(cell, tmp_path).run.path == this.run.path
    config = json.loads((this.run.path / "config.json").read_text())
    config["reptile"]["rollouts_per_task"] = 7  # As a preset of an earlier version may have had.
    (this.run.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"was begun with rollouts_per_task = 7, and now 20 is asked for"):
        open_experiment(cell, tmp_path)


def test_cells_with_a_measure_share_the_run_of_their_row(tmp_path: Path) -> None:
    def cell(row: str, measure: str, source: Twice, seeds: tuple[int, ...] = (1, 2)) -> TableCell:
        return TableCell(row, f"the {measure}", source, seeds, published(5.0), measure=measure)

    cells = tuple(cell(row, name, Twice(mean)) for row, mean in (("a", 5.0), ("b", 3.0)) for name in ("once", "twice"))
    table = small_table(cells=cells, notes={})
    printed = _run(tmp_path, table, "the twice")
    assert sorted(_ran(tmp_path)) == ["3 seed 1", "3 seed 2", "5 seed 1", "5 seed 2"]
    assert "cells: 1 within, 2 above, 1 below" in printed
    scores = read_scores(tmp_path / "results/small", table, "full")
    once, twice, *_ = results_of(table, scores, "full")
    assert once.interval is not None and twice.interval is not None
    assert twice.interval[0] == pytest.approx(2 * once.interval[0])
    assert "4 of 4 scores are there already: skipped." in _run(tmp_path, table)
    same = dataclasses.replace(cells[0], column="again")
    with pytest.raises(ConfigError, match=r"several cells for one score: a-seed1\.json, a-seed2\.json"):
        small_table(cells=(*cells, same), notes={}).check()
    for other in (cell("a", "thrice", Twice(4.0)), cell("a", "thrice", Twice(5.0), (1,))):
        with pytest.raises(ConfigError, match="a/the thrice and a/the once of the table small share the run a, and di"):
            small_table(cells=(*cells, other), notes={}).check()


def test_a_small_budget_may_have_fewer_seeds(tmp_path: Path) -> None:
    _run(tmp_path, small_table(small_seeds=1), "*", budget="small")
    assert sorted(_ran(tmp_path)) == ["3 seed 1", "5 seed 1", "7 seed 1", "9 seed 1"]


def test_some_seeds_are_run_before_the_others(tmp_path: Path) -> None:
    _run(tmp_path, small_table(), "easy", seeds=(2,))
    first = _ran(tmp_path)
    _run(tmp_path, small_table(), "easy")
    assert {line.split(" ", 1)[1] for line in first} == {"seed 2"}
    assert {line.split(" ", 1)[1] for line in _ran(tmp_path)[len(first) :]} == {"seed 1"}


def test_costs_are_of_runs_that_are_left(tmp_path: Path) -> None:
    """Ten steps a second; cells that share a run cost it once."""
    table = small_table()
    cells = list(table.cells)
    speeds = measured({"small": cells}, 1.0)
    assert set(speeds.values()) == {10.0}
    assert cost_of(table, cells, "full", {}, speeds) == Cost(5, 0, 2000, 2000, 0.0, 200.0)
    assert cost_of(table, cells, "small", {}, speeds) == Cost(5, 0, 500, 500, 0.0, 50.0)
    scores = {(cells[0], 1): {"seconds": 7.0}}
    assert cost_of(table, cells[:1], "full", scores, speeds) == Cost(2, 1, 800, 400, 7.0, 40.0)
    shared = tuple(TableCell("a", name, Twice(5.0), (1, 2), measure=name) for name in ("once", "twice"))
    whole = small_table(cells=shared, notes={})
    assert cost_of(whole, shared, "full", {}, measured({"small": shared}, 1.0)) == Cost(2, 0, 800, 800, 0.0, 80.0)


def test_one_of_each_kind_is_measured() -> None:
    asked = []

    @dataclasses.dataclass(frozen=True)
    class Asked(Known):
        size: int = 0

        @property
        def kind(self) -> str:
            return f"{self.mean:g}"

        def steps(self, fraction: float) -> int:
            return self.size

        def speed(self, seconds: float) -> float:
            asked.append((self.mean, self.size))
            return self.mean * self.size

    cells = [TableCell(f"{size}", f"{mean}", Asked(mean, size), (1,)) for mean in (5.0, 3.0) for size in (9, 4, 8)]
    speeds = measured({"small": cells, "other": cells[:1]}, 1.0)
    assert asked == [(5.0, 4), (5.0, 9), (3.0, 4)]  # The first kind of each table, then the second.
    assert [speeds[cell.source] for cell in cells[1:]] == [20.0, 20.0, 12.0, 12.0, 12.0]
    assert measured({"small": cells}, 0.0) == {}
    table = small_table(cells=tuple(cells), notes={})
    assert cost_of(table, cells, "full", {}, {}).seconds_left is None
    assert cost_of(table, cells[:3], "full", {}, speeds).seconds_left is not None


def test_time_is_extrapolated_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second and a tenth for each: after 4 and 16 there is no time for 64; then there is; a size that is met."""
    clock = [0.0]
    sizes = []

    def run(size: int) -> None:
        sizes.append(size)
        clock[0] += 1.0 + 0.1 * size

    monkeypatch.setattr(costs.time, "perf_counter", lambda: clock[0])
    assert extrapolated(run, 1000, 5.0, 4) == pytest.approx(101.0) and sizes == [1, 4, 16]
    assert extrapolated(run, 1000, 20.0, 4) == pytest.approx(101.0) and sizes[3:] == [1, 4, 16, 64]
    assert extrapolated(run, 20, 0.0, 4) == pytest.approx(3.0) and sizes[7:] == [1, 4, 16]
    assert extrapolated(run, 10, 0.0, 4) == pytest.approx(2.0) and sizes[10:] == [1, 4, 10]
    assert extrapolated(run, 4, 0.0, 4) == pytest.approx(1.4) and sizes[13:] == [1, 4]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.0, "59 s"), (90.0, "1.5 min"), (7200.0, "2.0 h"), (259_200.0, "3.0 days")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_speeds_are_measured_where_cells_run() -> None:
    """Steps of the longest episode count for all; a bandit's are equally long."""
    small: dict[str, Any] = {"num_iterations": 4, "meta_batch_size": 20, "eval_every": 100, "device": "cpu"}
    for source in (
        AgentSource("rl2", "bandit-k5-n10", "rl2:bandit", small, {"hidden_size": 4}, num_tasks=6),
        StrategySource("TS", "bandit-k5-n10"),
    ):
        assert 10.0 < source.speed(0.1) < 1e8


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    cells = (
        TableCell("a", "body", Known(5.0), (1,), published(5.0), not_comparable="another body"),
        TableCell("a", "unpublished", Known(5.0), (1,)),
        TableCell("a", "trained", Trained(5.0), (1,), published(5.0)),
    )
    table = small_table(cells=cells, notes={}, aggregate="iqm")
    _run(tmp_path, table)
    scores = read_scores(tmp_path / "results/small", table, "full")
    verdicts = [result.verdict for result in results_of(table, scores, "full")]
    assert verdicts == ["not comparable: another body", "not comparable: nothing was published", "within"]
    page = (tmp_path / "results/small/README.md").read_text()
    assert "Interquartile mean over seeds and tasks" in page


def test_agents_are_cells_too(tmp_path: Path) -> None:
    small: dict[str, Any] = {"num_iterations": 4, "meta_batch_size": 2, "eval_every": 100, "device": "cpu"}
    source = AgentSource("rl2", "bandit-k5-n10", "rl2:bandit", small, {"hidden_size": 4}, num_tasks=6)
    table = small_table(cells=(TableCell("a", "rl2", source, (1, 2), published(6.7)),), notes={})
    assert (source.steps(1.0), source.steps(0.25)) == (80, 20)
    _run(tmp_path, table)
    scores = read_scores(tmp_path / "results/small", table, "full")
    (result,) = results_of(table, scores, "full")
    assert (result.seeds, result.num_tasks, result.remark) == ((1, 2), 6, "8e-05 M steps a seed")
    content = scores[table.cells[0], 1]
    assert content["config"]["rl2"]["gae_lambda"] == 0.3  # Of the preset.
    assert result.interval is not None
    assert 0.0 <= result.interval[0] <= 10.0
    _run(tmp_path, table, budget="small")
    few = read_scores(tmp_path / "results/small-small", table, "small")
    assert few[table.cells[0], 1]["env_steps"] == 20


def test_the_command_lists_and_runs_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in {type(cell.source) for name in tables.table_names() for cell in load_table(name).cells}:
        monkeypatch.setattr(kind, "speed", lambda source, seconds: 1e6)
    assert metarl("reproduce rl2-bandits --budget small --cells n=10,k=5/Random n=10,k=5/Greedy") == 0
    assert "cells: 2 within, 74 not run" in capsys.readouterr().out
    assert metarl("reproduce --list --budget small") == 0
    listed = capsys.readouterr().out
    assert "rl2-bandits: RL², Table 1: Bernoulli bandits; 0.1 of the budget" in listed
    bandits = listed[listed.index("rl2-bandits: ") : listed.index("rl2-mdps: ")]
    lines = {line.split()[0]: line.split() for line in bandits.splitlines() if line.strip()}
    assert lines["Greedy"][1:3] == ["9", "1"] and lines["RL2"][-2:] == ["on", "request"]
    assert re.search(r"^CartPole,rl2 +1 +0 +0\.6 M +1 s *$", listed, re.MULTILINE)
    assert re.search(r"^all +102 +2 +151\.4 M +\d+ s +[\d.]+ (s|min|h|days) *$", bandits, re.MULTILINE)
    assert re.search(r"^all but those on request +63 +2 ", bandits, re.MULTILINE)
    assert metarl("reproduce rl2-bandits --list --cells n=10,k=5 --budget small") == 0
    listed = capsys.readouterr().out
    assert "n=10,k=5/SNAIL" in listed and "n=100" not in listed
    score = tmp_path / "benchmarks/results/rl2-bandits-small/n=10-k=5-Greedy-seed1.json"
    score.write_text(score.read_text().replace("6", "7", 1))
    monkeypatch.setattr(reproduce_command, "MEASURING", 0.0)
    assert metarl("reproduce --list --budget small") == 0  # The tables are shown all the same.
    assert "was edited since it was written" in capsys.readouterr().out
    assert "was edited since it was written" in refused("reproduce rl2-bandits --budget small", capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reproduce", "reproduce needs the name of a table: cartpole, fewshot-glyphs, "),
        (
            "reproduce rl2-bandit",
            "unknown table 'rl2-bandit'. Did you mean 'rl2-bandits'? Valid choices: cartpole, fewshot-glyphs, ",
        ),
        ("reproduce rl2-bandits --cells Gitins", "unknown cell of rl2-bandits 'Gitins'. Did you mean 'Gittins'?"),
        ("reproduce rl2-bandits --cells n=10,k=7/TS", "Valid choices: Gittins, Greedy, OTS, RL2, ROW/COLUMN, "),
        ("reproduce rl2-bandits --budget tiny", "tiny"),
        ("reproduce rl2-bandits --seeds 4", "unknown seed of rl2-bandits '4'. Valid choices: 1."),
        ("reproduce rl2-bandits --seeds", "--seeds names no seed; leave it out to run all of them."),
        ("reproduce rl2-bandits --jobs 0", "--jobs must be 1 or more, got 0"),
    ],
)
def test_bad_words_are_one_sentence(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(words, capsys)
    assert not list(tmp_path.iterdir())


COMMITTED: list[tuple[str, Budget]] = [
    (name, budget)
    for name in tables.table_names()
    for budget in ("full", "small")
    if (RESULTS / load_table(name).folder(budget)).exists()
]
"""Tables and budgets that were run."""


def test_tables_that_were_run_are_committed() -> None:
    assert {("rl2-bandits", "full"), ("rl2-mdps", "full"), ("fewshot-sinusoid", "full")} <= set(COMMITTED)


@pytest.mark.parametrize("name", tables.table_names())
def test_a_table_is_found_by_its_name(name: str) -> None:
    assert load_table(name).name == name


@pytest.mark.parametrize(("name", "budget"), COMMITTED)
def test_committed_pages_are_made_of_committed_scores(name: str, budget: Budget, tmp_path: Path) -> None:
    """Every figure on a page stands in a score: the page is written anew and must be the same."""
    table = load_table(name)
    folder = RESULTS / table.folder(budget)
    scores = read_scores(folder, table, budget)
    if (folder / "NOTES.md").exists():
        (tmp_path / "NOTES.md").write_text((folder / "NOTES.md").read_text())
    write_page(table, scores, budget, tmp_path)
    for file in ("README.md", "table.csv", "scores.csv"):
        assert (tmp_path / file).read_text() == (folder / file).read_text(), file


def test_table_one_of_rl2_is_whole() -> None:
    table = load_table("rl2-bandits")
    strategies = [cell for cell in table.cells if not cell.on_request]
    assert len(strategies) == 63 and len(table.cells) == 63 + 9 + 4
    assert all(cell.published is not None for cell in table.cells)
    assert {cell.row for cell in table.cells} == {f"n={n},k={k}" for n in (10, 100, 500) for k in (5, 10, 50)}
