"""The few-shot benchmark: cells are trained once, and its page says what was run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from metarl.benchmarks.fewshot import fits, optimisers
from metarl.benchmarks.fewshot.__main__ import main
from metarl.benchmarks.fewshot.cells import Cell, read_scores

WORDS = ["--num-iterations", "2", "--seeds", "1", "2", "--test-tasks", "4", "--results", "results", "--runs", "runs"]


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fewshot", *words, *WORDS])
    main()


def test_a_page_of_regression_has_steps_and_published_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--tasks", "sinusoid", "--learners", "maml", "pretrained", "--sizes", "1-10", "--test-shots", "5")
    _run(monkeypatch, *words)
    folder = tmp_path / "results" / "fewshot-sinusoid"
    page = (folder / "README.md").read_text()
    assert "| learner | test | 0 | 1 | 2 | 3 | 5 | 10 |" in page
    assert "(0.67)" in page
    assert f"python -m metarl.benchmarks.fewshot {' '.join(words[:2])} --learners maml" in page
    scores = read_scores(folder)
    assert Cell("maml", "sinusoid", 1, 10, 5, 2) in scores
    cell = json.loads((folder / "sinusoid-1way-5shot-maml-seed1.json").read_text())
    assert np.shape(cell["scores"]) == (4, 6)
    means = np.mean([scores[key]["scores"] for key in scores if key.learner == "maml"], axis=(0, 1))
    shown = re.search(r"\| maml \| 5shot \| ([\d.]+) ±", page)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(means[0], rel=0.01)
    run = str(tmp_path / "runs" / "sinusoid-1way-5shot-maml-seed1")
    monkeypatch.setattr(sys, "argv", ["fits", run, "--output", str(folder / "fits.png")])
    fits.main()
    # Nothing is trained again; what was scored otherwise is not shown as the same.
    before = {path: path.read_bytes() for path in folder.glob("*.json")}
    _run(monkeypatch, *words)
    assert "![fits](fits.png)" in (folder / "README.md").read_text()
    assert before == {path: path.read_bytes() for path in folder.glob("*.json")}
    monkeypatch.setattr(sys, "argv", ["fewshot", *words, *WORDS[:-5], "5", *WORDS[-4:]])
    with pytest.raises(SystemExit, match="was scored on 4 tasks, and now 5 are asked for"):
        main()


def test_a_page_of_images_has_sizes_and_one_training_serves_many_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in range(30):
        (tmp_path / "letters" / f"class{name}").mkdir(parents=True)
        for number in range(17):
            pixels = rng.integers(0, 255, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "letters" / f"class{name}" / f"{number}.png")
    words = ["--tasks", "folder", "--data", "letters", "--sizes", "2-1", "3-1", "--learners", "random"]
    _run(monkeypatch, *words)
    page = (tmp_path / "results" / "fewshot-folder" / "README.md").read_text()
    assert "| learner | 2way-1shot | 3way-1shot | seeds |" in page
    assert "--data FOLDER" in page
    assert str(tmp_path) not in (tmp_path / "results/fewshot-folder/folder-2way-1shot-random-seed1.json").read_text()
    monkeypatch.setattr(sys, "argv", ["fewshot", "--sizes", "five-one"])
    with pytest.raises(SystemExit, match=r"written as ways-shots, e\.g\. 5-1, got 'five-one'"):
        main()


def test_learned_optimisers_run_beside_tuned_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "--num-iterations 1 --num-steps 20 --test-tasks 6 --tuning-tasks 5 --results results --runs runs --seeds 1"
    monkeypatch.setattr(sys, "argv", ["optimisers", *words.split(" ")])
    optimisers.main()
    folder = tmp_path / "results" / "fewshot-quadratic"
    tuned = json.loads((folder / "tuned.json").read_text())
    learned = json.loads((folder / "learned-optimiser-seed1.json").read_text())
    starts = {name: np.array(content["losses"])[:, 0] for name, content in tuned.items()}
    assert set(starts) == {"SGD", "momentum", "RMSprop", "Adam"}
    for start in starts.values():  # All begin at the same place.
        np.testing.assert_array_equal(start, np.array(learned["losses"])[:, 0])
    assert all(np.mean(content["losses"], axis=0)[-1] < 5 for content in tuned.values())
    page = (folder / "README.md").read_text()
    assert "| step 0 | step 10 | step 20 |" in page
    assert "| learned |" in page
