"""Figures are PNG files, or an error in words."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest

from metarl.errors import CheckpointError, ConfigError
from metarl.plotting import adaptation_figure, learning_figure


def _metrics(path: Path, num_shots: int = 2, num_rows: int = 3) -> Path:
    rows = [
        {
            "iteration": index,
            "env_steps": 10 * index,
            **{f"train/return_{shot}": float(index + shot) for shot in range(num_shots)},
            **({f"test/return_{num_shots - 1}": 2.0} if index == 1 else {}),
        }
        for index in range(num_rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _assert_is_figure(path: Path) -> None:
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 300
    assert pixels.std() > 0.01


@pytest.mark.parametrize("num_shots", [1, 2, 11])
def test_learning_curves_of_several_runs_share_one_figure(tmp_path: Path, num_shots: int) -> None:
    runs = {name: _metrics(tmp_path / name, num_shots) for name in ("a", "b [2]", "c_d $x")}
    learning_figure(runs, tmp_path / "x.png")
    _assert_is_figure(tmp_path / "x.png")


def test_one_iteration_is_enough_for_a_curve(tmp_path: Path) -> None:
    learning_figure({"a": _metrics(tmp_path / "a", num_rows=1)}, tmp_path / "x.png")
    _assert_is_figure(tmp_path / "x.png")


def test_agents_with_different_numbers_of_shots_share_one_figure(tmp_path: Path) -> None:
    rows = {"curve": [(1.0, 0.5, 1.5), (2.0, 1.5, 2.5)], "level": [(0.5, 0.4, 0.6)], "point": [(3.0, 3.0, 3.0)]}
    adaptation_figure(rows, tmp_path / "x.png", "title", "gradient steps")
    _assert_is_figure(tmp_path / "x.png")


def test_a_run_without_iterations_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"empty holds no iteration yet: nothing to plot"):
        learning_figure({"empty": _metrics(tmp_path / "empty", num_rows=0)}, tmp_path / "x.png")
    with pytest.raises(CheckpointError, match=r"could not read the metrics .*absent"):
        learning_figure({"absent": tmp_path / "absent"}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("name", ["absent/x.png", "x.docx", "."])
def test_a_figure_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot write the figure "):
        learning_figure({"a": _metrics(tmp_path / "a")}, tmp_path / name)
