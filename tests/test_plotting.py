"""Figures are PNG files, or an error in words."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from scipy import stats

from metarl import plotting
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
    runs = {name: [_metrics(tmp_path / name, num_shots)] for name in ("a", "b [2]", "c_d $x")}
    learning_figure(runs, tmp_path / "x.png")
    _assert_is_figure(tmp_path / "x.png")


def test_one_iteration_is_enough_for_a_curve(tmp_path: Path) -> None:
    learning_figure({"a": [_metrics(tmp_path / "a", num_rows=1)]}, tmp_path / "x.png")
    _assert_is_figure(tmp_path / "x.png")


def test_agents_with_different_numbers_of_shots_share_one_figure(tmp_path: Path) -> None:
    rows = {"curve": [(1.0, 0.5, 1.5), (2.0, 1.5, 2.5)], "level": [(0.5, 0.4, 0.6)], "point": [(3.0, 3.0, 3.0)]}
    adaptation_figure(rows, tmp_path / "x.png", "title", "gradient steps")
    _assert_is_figure(tmp_path / "x.png")


def test_a_run_without_iterations_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"empty holds no iteration yet: nothing to plot"):
        learning_figure({"empty": [_metrics(tmp_path / "empty", num_rows=0)]}, tmp_path / "x.png")
    with pytest.raises(CheckpointError, match=r"could not read the metrics .*absent"):
        learning_figure({"absent": [tmp_path / "absent"]}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("name", ["absent/x.png", "x.docx", "."])
def test_a_figure_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot write the figure "):
        learning_figure({"a": [_metrics(tmp_path / "a")]}, tmp_path / name)


# What is drawn --------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been written."""
    figures: list[Figure] = []
    monkeypatch.setattr(plotting, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def _seed(path: Path, returns: list[float], steps: int = 10, **also: list[float]) -> Path:
    """Metrics of one run with these returns after adaptation; the last iteration was evaluated."""
    rows = [
        {
            "iteration": number,
            "env_steps": steps * (number + 1),
            "train/return_0": 0.0,
            "train/return_1": value,
            **{name.replace("__", "/"): column[number] for name, column in also.items()},
            **({"test/return_1": value + 1.0} if number == 1 else {}),
        }
        for number, value in enumerate(returns)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SEEDS = ([1.0, 2.0, 9.0], [3.0, 5.0], [2.0, 8.0, 9.0])


def test_seeds_are_one_line_with_students_interval_as_far_as_the_shortest_goes(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    """Also where they took different numbers of steps, over iterations."""
    files = [_seed(tmp_path / str(n), returns, 10 + n) for n, returns in enumerate(SEEDS)]
    learning_figure({"a (3 seeds)": files}, tmp_path / "x.png", axis="iterations")
    (axes,) = drawn[0].axes
    after, before, held_out = axes.lines
    assert np.asarray(after.get_xydata()).tolist() == [[1.0, 2.0], [2.0, 5.0]]
    assert np.asarray(before.get_ydata()).tolist() == [0.0, 0.0]
    assert np.asarray(held_out.get_xydata()).tolist() == [[2.0, 6.0]]
    half = stats.t.ppf(0.975, 2) * np.std([[1, 2], [3, 5], [2, 8]], axis=0, ddof=1) / 3**0.5
    (band,) = (part for part in axes.collections if isinstance(part, PolyCollection))
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx((np.array([2.0, 5.0]) - half).min())
    assert heights.max() == pytest.approx((np.array([2.0, 5.0]) + half).max())
    (bars,) = (part for part in axes.collections if isinstance(part, LineCollection))
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([6.0 - half[1], 6.0 + half[1]])
    assert axes.get_ylim() == pytest.approx((-0.45, 9.45))  # What the seeds did, not how wide an interval is.
    assert drawn[0].legends[0].get_title().get_text() == "mean over seeds, 95 % t interval"
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == [
        "a (3 seeds)",
        "training, shot 1",
        "training, before adaptation",
        "held-out tasks, shot 1",
    ]


def test_the_legend_says_which_shots_are_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    """Held-out tasks may be given more than training, and one agent more than another."""
    more = {"test__return_3": [4.0, 5.0]}
    runs = {"a": [_seed(tmp_path / "a", [1.0, 2.0])], "b": [_seed(tmp_path / "b", [1.0, 2.0], **more)]}
    learning_figure(runs, tmp_path / "x.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()][2:] == [
        "training, shot 1",
        "training, before adaptation",
        "held-out tasks, last shot (1, 3)",
    ]


def test_one_seed_has_no_interval(tmp_path: Path, drawn: list[Figure]) -> None:
    learning_figure({"a": [_seed(tmp_path / "a", SEEDS[0])]}, tmp_path / "x.png")
    assert not drawn[0].axes[0].collections


def test_success_has_a_panel_where_it_is_reported(tmp_path: Path, drawn: list[Figure]) -> None:
    """A run that reports none has no line in it."""
    success = {"train__success_0": [0.0, 0.1], "train__success_1": [0.5, 0.7], "test__success_1": [0.0, 0.6]}
    told = _seed(tmp_path / "a", [1.0, 2.0], **success)
    learning_figure({"a": [told], "b": [_seed(tmp_path / "b", [1.0, 2.0])]}, tmp_path / "x.png")
    returns, shares = drawn[0].axes
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["return", "success"]
    assert len(returns.lines) == 6 and len(shares.lines) == 3
    assert np.asarray(shares.lines[0].get_ydata()).tolist() == [0.5, 0.7]
    assert np.asarray(shares.lines[2].get_ydata()).tolist() == [0.6]


def test_agents_with_one_shot_are_points_with_intervals_and_names(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = {"rl2": [(7.0, 6.5, 7.5)], "random policy": [(5.0, 4.5, 5.5)]}
    adaptation_figure(rows, tmp_path / "x.png", "title", "episodes")
    (axes,) = drawn[0].axes
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [np.asarray(line.get_xydata()).tolist() for line in points] == [[[0.0, 7.0]], [[1.0, 5.0]]]
    bars = [part.get_segments()[0][:, 1].tolist() for part in axes.collections if isinstance(part, LineCollection)]
    assert bars == [[6.5, 7.5], [4.5, 5.5]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["rl2", "random\npolicy"]
