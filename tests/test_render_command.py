"""``metarl render``: the same task before and after adaptation, from a run folder to an MP4."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from helpers.graphics import missing_library
from PIL import Image

from metarl.cli import entry as cli
from metarl.cli import render as render_command
from metarl.cli.task_choice import choose_task
from metarl.envs import metaworld
from metarl.envs.metaworld.task_sets import by_name
from metarl.errors import ConfigError
from metarl.experiments import Experiment

_TRAIN = "--num-iterations 1 --meta-batch-size 1 --eval-tasks 1 --device cpu --seed 1"
_SMALL = {
    "rl2": f"{_TRAIN} --hidden-size 4 --num-epochs 1 --episodes-per-trial 3 --num-minibatches 1",
    "maml-trpo": f"{_TRAIN} --hidden-sizes 4 --rollouts-per-task 2 --cg-iterations 1",
}


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", [*sys.path])


def _metarl(words: str) -> int:
    try:
        return cli.main(words.split())
    except SystemExit as stop:
        return int(str(stop.code))


def _run(agent: str, tasks: str) -> Path:
    assert _metarl(f"train {agent} {tasks} {_SMALL[agent]}") == 0
    (run,) = Path("runs").glob(f"{agent}-*")
    return run


def _refused(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert _metarl(words) == 2
    printed = capsys.readouterr()
    text = re.sub(r"[│\s]+", " ", printed.err + printed.out)
    assert "Traceback" not in text
    return text


def _frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(("agent", "after"), [("rl2", "after 2 episodes"), ("maml-trpo", "after 3 gradient steps")])
def test_a_run_becomes_a_video_of_both_episodes(agent: str, after: str, capsys: pytest.CaptureFixture[str]) -> None:
    """60 steps a second, so that every second step is shown: of 7 these are 0, 2, 4, 6 and 7, held for a second."""
    run = _run(agent, "helpers.painted:painted")
    capsys.readouterr()
    assert _metarl(f"render {run} --video both.mp4 --goal 1") == 0
    printed = capsys.readouterr().out
    assert "test/painted test task 1, iteration 1; every reward replayed as it was recorded" in printed
    lines = [line.strip() for line in printed.splitlines()]
    assert sum(line.startswith("before adaptation: return ") for line in lines) == 1
    assert sum(line.startswith(f"{after}: return ") for line in lines) == 1
    frames = _frames(Path("both.mp4"))
    steps = int(re.findall(r"in (\d) steps", printed)[0])
    shown = [*range(0, steps, 2), steps]
    assert len(frames) == len(shown) + 30
    brightness = [frame[70:100, 5:50].mean() for frame in frames]
    assert np.allclose(brightness[: len(shown)], [10 * step for step in shown], atol=4)


def test_the_video_lies_in_the_run_folder_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    run = _run("rl2", "helpers.painted:painted")
    assert _metarl(f"render {run} --split train --num-adaptations 1 --sample --seed 3") == 0
    printed = capsys.readouterr().out
    assert "after 1 episode: return" in printed
    assert (run / "test-painted-train-task-0.mp4").is_file()


def test_a_path_that_ends_in_gif_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    """With the frames of the MP4, the last of which is held for a second."""
    run = _run("rl2", "helpers.painted:painted")
    for suffix in ("mp4", "gif"):
        assert _metarl(f"render {run} --video both.{suffix} --goal 1") == 0
    moving = _frames(Path("both.mp4"))[:-30]
    with Image.open("both.gif") as image:
        assert image.n_frames == len(moving) and image.info["duration"] >= 30
        width, height = image.size  # H.264 takes even sizes alone.
        assert (height + height % 2, width + width % 2) == moving[0].shape[:2]
        image.seek(image.n_frames - 1)
        assert image.info["duration"] >= 1000
        last = np.asarray(image.convert("RGB")).astype(float)
    assert np.abs(last[70:] - moving[-1][70:height, :width]).mean() < 8
    assert "Video: both.gif" in capsys.readouterr().out


def test_the_networks_run_on_the_device_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the run was trained on, and what is not there is refused before anything is played."""
    run = _run("rl2", "helpers.painted:painted")
    asked: list[str] = []
    original = Experiment.build

    def build(self: Experiment) -> Any:
        asked.append(self.train_config.device)
        return original(self)

    monkeypatch.setattr(Experiment, "build", build)
    for device in ("cpu", "auto"):
        assert _metarl(f"render {run} --video both.mp4 --device {device}") == 0
        assert asked.pop() == device
    assert _metarl(f"render {run} --video both.mp4") == 0
    assert asked.pop() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(render_command, "run_trial", None)
    assert "torch sees no CUDA device here" in _refused(f"render {run} --device cuda", capsys)
    assert "invalid choice" in _refused(f"render {run} --device tpu", capsys)


def test_bad_requests_are_refused_before_anything_is_played(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run("rl2", "helpers.painted:painted")
    monkeypatch.setattr(render_command, "run_trial", None)
    assert "ends in .mp4 or .gif, got 'both.avi'" in _refused(f"render {run} --video both.avi", capsys)
    assert "there is no folder nowhere" in _refused(f"render {run} --video nowhere/both.mp4", capsys)
    assert "--goal must be 0 or more, got -1" in _refused(f"render {run} --goal -1", capsys)
    assert "--num-adaptations must be 0 or more" in _refused(f"render {run} --num-adaptations -1", capsys)
    assert "have no names, got --task 'reach-v3'" in _refused(f"render {run} --task reach-v3", capsys)
    assert f"--seed must be 0 or more and below 2^63, got {2**63}" in _refused(f"render {run} --seed {2**63}", capsys)
    assert "give one of them" in _refused(f"render {run} --best --checkpoint x", capsys)
    assert "runs/elsewhere does not exist" in _refused("render runs/elsewhere", capsys)
    unpainted = _refused(f"render {run} --tasks helpers.painted:unpainted", capsys)
    assert "test/unpainted cannot be rendered" in unpainted and "make_render_env" in unpainted
    assert "ml1/..., ml10, ml25, ml45" in unpainted and "locomotion/..." in unpainted


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_played(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run("rl2", "helpers.painted:painted")
    monkeypatch.setattr(render_command, "run_trial", None)

    def read_only(path: Path, *arguments: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", read_only)
    for video, folder, advice in (("", f"{run}", "Give"), (" --video both.gif", ".", "Name")):
        assert f"cannot write into {folder}: Read-only file system. {advice} another place" in _refused(
            f"render {run}{video}", capsys
        )


def test_tasks_that_change_the_working_directory_change_neither_run_nor_video(tmp_path: Path) -> None:
    run = _run("rl2", "helpers.painted:painted")
    (tmp_path / "else").mkdir()
    Path("wandering.py").write_text("import os\nfrom helpers.painted import painted\nos.chdir('else')\n")
    newest = f"{run}/checkpoints/iteration-00000001.safetensors"
    assert _metarl(f"render {run} --tasks wandering:painted --video both.gif --checkpoint {newest}") == 0
    assert Path.cwd() == tmp_path / "else"
    assert (tmp_path / "both.gif").is_file() and not list((tmp_path / "else").iterdir())


def test_arithmetic_environments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run = _run("rl2", "cartpole-goal")
    assert "cartpole-goal cannot be rendered" in _refused(f"render {run}", capsys)


# Meta-World ---------------------------------------------------------------------------------------------------------

CUSTOM = metaworld.custom(["reach-v3", "drawer-open-v3"], ["door-close-v3"])


def _chosen(**settings: object) -> tuple[str, str, int]:
    given: Any = {"name": None, "split": None, "goal": 0, **settings}
    task, name = choose_task(CUSTOM, **given, seed=0, stream="render")
    table = CUSTOM.sample.task_set.goals  # type: ignore[attr-defined]
    ((split, index),) = (
        (split, [goal is task for goal in goals[task["env_name"]]].index(True))
        for split, goals in (("train", by_name(table.train)), ("test", by_name(table.test)))
        if task["env_name"] in goals
    )
    return name, split, index


def test_a_meta_world_task_is_found_by_name_in_the_split_that_has_it() -> None:
    assert _chosen(name="door-close-v3", goal=7) == ("door-close-v3 test goal 7", "test", 7)
    assert _chosen(name="reach-v3", goal=49) == ("reach-v3 train goal 49", "train", 49)
    assert _chosen(split="test") == ("door-close-v3 test goal 0", "test", 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "custom has 3 tasks; choose one by --task: door-close-v3, drawer-open-v3, reach-v3"),
        ({"name": "reach"}, "unknown task of custom 'reach'. Did you mean 'reach-v3'"),
        ({"name": "reach-v3", "split": "test"}, "unknown test task of custom 'reach-v3'.*choices: door-close-v3"),
        ({"name": "reach-v3", "goal": 50}, "reach-v3 has 50 train goals: --goal must be below that, got 50"),
    ],
)
def test_a_meta_world_task_that_is_not_there_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _chosen(**settings)


def test_a_meta_world_run_becomes_a_video_or_an_error_names_the_missing_library(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("short.py").write_text(
        "import dataclasses\n"
        "from metarl.envs.metaworld import task_distribution\n"
        "reach = dataclasses.replace(task_distribution('ml1/reach-v3'), horizon=9)\n"
    )
    run = _run("rl2", "short:reach")
    capsys.readouterr()
    if missing_library():
        printed = _refused(f"render {run} --task reach-v3 --video reach.mp4", capsys)
        assert "apt-get install libegl1 libgl1" in printed and "apt-get install libosmesa6" in printed
        return
    assert _metarl(f"render {run} --task reach-v3 --video reach.mp4") == 0
    assert "reach-v3 test goal 0, iteration 1; every reward replayed" in capsys.readouterr().out
    frames = _frames(Path("reach.mp4"))
    assert frames[0].shape == (544, 960, 3)
    left, right = frames[0][70:, :480], frames[0][70:, 480:]
    # The same goal, the same beginning: both sides show the same picture at first, and no blank one.
    assert np.abs(left.astype(float) - right).mean() < 2 and left.std() > 20
