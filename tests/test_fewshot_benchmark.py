"""Few-shot learners in tables, and learned optimisers: trained once, and the page says what was run."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import metarl, refused
from PIL import Image
from rich.console import Console

from metarl.benchmarks.engines import LOCAL
from metarl.benchmarks.fewshot import fits, optimisers
from metarl.benchmarks.fewshot.source import FewShotSource
from metarl.benchmarks.reproduce.run import reproduce
from metarl.benchmarks.reproduce.table import PaperTable, TableCell
from metarl.benchmarks.tables import load_table
from metarl.errors import ConfigError
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.learners import LEARNERS
from metarl.runs.folder import RunFolder

SHORT = {"num_iterations": 2, "device": "cpu", "eval_every": 2}


def _run(folder: Path, table: PaperTable) -> str:
    """Run all cells of a table; returns its page."""
    console = Console(quiet=True)
    done = reproduce(
        table, console, budget="full", cells=(), results=folder / "results", runs=folder / "runs", engine=LOCAL
    )
    assert done
    return (folder / "results" / table.name / "README.md").read_text()


def _table(*cells: TableCell, data: str = "") -> PaperTable:
    return PaperTable("short", "A short table", "Learners.", cells, "accuracy in %", 1, 0.5, data=data)


def _scores(folder: Path) -> dict[str, dict[str, object]]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "results/short").glob("*.json")}


def test_columns_of_a_row_are_steps_of_one_run_beside_published_numbers(tmp_path: Path) -> None:
    whole = load_table("fewshot-sinusoid")
    cells = [
        dataclasses.replace(cell, seeds=(1, 2), source=dataclasses.replace(cell.source, train=SHORT, num_tasks=4))
        for cell in whole.cells
        if cell.row in ("MAML", "pretrain on all")
    ]
    page = _run(tmp_path, dataclasses.replace(whole, name="short", cells=tuple(cells), notes={}))
    assert "| | 1 grad steps | 5 grad steps | 10 grad steps |" in page
    assert "(0.67)" in page and "![learning](learning.png)" in page
    assert sorted(_scores(tmp_path)) == ["MAML-seed1", "MAML-seed2", "pretrain-on-all-seed1", "pretrain-on-all-seed2"]
    found = [_scores(tmp_path)[f"MAML-seed{seed}"]["sizes"]["1way-5shot"] for seed in (1, 2)]  # type: ignore[index]
    assert np.shape(found[0]["scores"]) == (4, 6)
    shown = re.search(r"\| MAML \| [\d.]+ ± \S+ \(0\.67\)\S* ?\S? \| ([\d.]+) ±", page)
    assert shown is not None
    column = found[0]["steps"].index(5)
    assert float(shown[1]) == pytest.approx(np.mean([one["scores"] for one in found], (0, 1))[column], rel=0.1)
    # The figure of fits is drawn from a run that the table trained.
    figure = tmp_path / "fits.png"
    run = tmp_path / "runs" / "sinusoid-1way-5shot-maml-seed1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fits", str(run), "--output", str(figure)])
        fits.main()
    assert figure.stat().st_size > 5000


def test_one_training_serves_tests_of_many_ways_read_from_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in range(30):
        (tmp_path / "letters" / f"class{name}").mkdir(parents=True)
        for number in range(17):
            pixels = rng.integers(0, 255, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "letters" / f"class{name}" / f"{number}.png")
    source = FewShotSource(
        *("protonet", "folder", (2, 3), 1),
        test_queries=7,
        train={**SHORT, "meta_batch_size": 1},
        settings={"train_ways": 4},
        num_tasks=4,
    )
    cells = [TableCell("protonet", f"{ways}-way", source, (1,), measure=f"{ways}way-1shot") for ways in (2, 3)]
    table = _table(*cells, data="Classes in folders.")
    with pytest.raises(ConfigError, match=r"reads a folder of data, which --data FOLDER names\. Classes in folders\."):
        _run(tmp_path, table)
    with pytest.raises(ConfigError, match=r"there is no folder /nowhere to read the data of short from\. Classes in"):
        table.reading("/nowhere")
    page = _run(tmp_path, table.reading(str(tmp_path / "letters")))
    assert "    metarl reproduce short --data FOLDER\n" in page and "brackets" not in page
    assert "7 query(s) of each class" in page
    score = _scores(tmp_path)["protonet-seed1"]
    assert {size: np.shape(found["scores"]) for size, found in score["sizes"].items()} == {  # type: ignore[attr-defined]
        "2way-1shot": (4, 2),
        "3way-1shot": (4, 2),
    }
    assert str(tmp_path) not in json.dumps(score)
    (run,) = RunFolder.find(tmp_path / "runs")
    assert run.path.name == "folder-1shot-protonet-seed1"
    # In per cent, and what the learner of the run folder says itself.
    hits = source.values(score, "2way-1shot") * 0.14  # Of 2 x 7 queries.
    np.testing.assert_allclose(hits, np.round(hits), atol=2e-3)
    assert Experiment.open(run.path).setup.data == str(tmp_path / "letters")


def test_a_small_budget_trains_another_run(tmp_path: Path) -> None:
    source = FewShotSource("random", "glyphs", (2,), 1, train={**SHORT, "num_iterations": 8}, num_tasks=2)
    assert source.steps(1.0) == 4 * source.steps(0.25) > 0
    content = source.run(3, 0.25, tmp_path, lambda *_: None)
    assert content is not None and content["iterations"] == 2
    assert [run.path.name for run in RunFolder.find(tmp_path)] == ["glyphs-2way-1shot-random-of2-seed3"]
    assert source.remark(content, "").startswith("2 iterations of ")


def test_tables_of_learners_are_whole() -> None:
    glyphs = load_table("fewshot-glyphs")
    assert glyphs.rows == list(LEARNERS) and len(glyphs.cells) == 3 * len(LEARNERS)
    omniglot = load_table("fewshot-omniglot")
    assert len(omniglot.cells) == 24 and all(cell.published is not None for cell in omniglot.cells)
    asked = {cell.key for cell in omniglot.cells if not cell.on_request}
    assert {f"MAML, {shots}-shot/{ways}-way" for shots in (1, 5) for ways in (5, 20)} <= asked


def test_the_command_names_the_data_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, said in (
        ("fewshot-omniglot", "reads a folder of data, which --data FOLDER names. Get images_background.zip"),
        ("fewshot-sinusoid --data .", "the table fewshot-sinusoid reads no data, got the folder"),
        ("fewshot-omniglot --data nowhere", "nowhere to read the data of fewshot-omniglot from. Get images_background"),
    ):
        assert said in refused(f"reproduce {words}", capsys)
    assert metarl("reproduce fewshot-glyphs --list") == 0
    assert "snail/20-way 1-shot" in capsys.readouterr().out


def test_learned_optimisers_run_beside_tuned_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "--num-iterations 1 --num-steps 20 --test-tasks 6 --tuning-tasks 5 --results results --runs runs --seeds 1"
    monkeypatch.setattr(sys, "argv", ["optimisers", *words.split(" ")])
    optimisers.main()
    folder = tmp_path / "results" / "fewshot-quadratic"
    tuned = json.loads((folder / "tuned.json").read_text())
    learned = json.loads((folder / "learned-optimiser-seed1.json").read_text())
    by_hand = tuned["optimisers"]
    starts = {name: np.array(content["losses"])[:, 0] for name, content in by_hand.items()}
    assert set(starts) == {"SGD", "momentum", "RMSprop", "Adam"}
    for start in starts.values():  # All begin at the same place.
        np.testing.assert_array_equal(start, np.array(learned["losses"])[:, 0])
    assert all(np.mean(content["losses"], axis=0)[-1] < 5 for content in by_hand.values())
    page = (folder / "README.md").read_text()
    assert "| step 0 | step 10 | step 20 |" in page
    assert "| learned |" in page and "on 5 other functions" in page
    for option, then in (("num-iterations", 1), ("num-steps", 20), ("test-tasks", 6), ("tuning-tasks", 5)):
        changed = words.replace(f"--{option} {then}", f"--{option} {then + 1}")
        monkeypatch.setattr(sys, "argv", ["optimisers", *changed.split(" ")])
        with pytest.raises(SystemExit, match=f"was made with --{option} {then}, and now {then + 1} is asked for"):
            optimisers.main()
    assert (folder / "README.md").read_text() == page


def test_what_a_run_takes_counts_its_scoring_in() -> None:
    few, many = (
        FewShotSource("protonet", "glyphs", (2,), 1, train={**SHORT, "num_iterations": 1}, num_tasks=number)
        for number in (50, 50_000)
    )
    assert few.steps(1.0) == many.steps(1.0)
    assert few.speed(0.2) > 20.0 * many.speed(0.2)
