"""What a user of few-shot learning may get wrong, or find changed, is told and never passed over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.cli import main
from metarl.config import TrainConfig
from metarl.errors import CheckpointError, ConfigError
from metarl.fewshot.experiment import Experiment, Given, resolve
from metarl.fewshot.learners import MAMLConfig, RandomConfig
from metarl.fewshot.learners.maml import MAML
from metarl.fewshot.tasks import labelled_arrays, load_tasks
from metarl.fewshot.trainer import train
from metarl.fewshot.types import EpisodeConfig, FewShotSpec
from metarl.runs.folder import RunFolder

SHORT = {"num_iterations": 2, "meta_batch_size": 2, "eval_every": 1, "eval_tasks": 2}
CPU = torch.device("cpu")


def draw(root: Path, num_classes: int = 10, shift: int = 0) -> Path:
    for name in range(num_classes):
        folder = root / f"class{name}"
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(100 * name + number).integers(0, 200, (16, 16), np.uint8) + np.uint8(shift)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def begin(data: Path, runs: Path) -> Experiment:
    given = Given("protonet", "folder", str(data), ways=2, shots=1, queries=2)
    this = Experiment.start(resolve(given, train=SHORT, settings={"num_filters": 2}), runs)
    assert this.train()
    return this


def test_training_needs_no_validation_split(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((48, 16, 16), np.float32)
    tasks = labelled_arrays(images, np.arange(48) % 6, {"train": [0, 1, 2], "test": [4, 5]})
    episode = EpisodeConfig(2, 1, 2)
    learner = RandomConfig(num_filters=2).build(tasks.spec(episode), CPU, 0)
    run = RunFolder.create(tmp_path, "run")
    assert train(learner, tasks, episode, TrainConfig(**SHORT), run)  # type: ignore[arg-type]
    logged = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert logged and not any("validation" in json.dumps(line) for line in logged)
    with pytest.raises(ConfigError, match="no classes in a validation split"):
        tasks.check("validation", episode)


def test_shares_may_be_a_list() -> None:
    images = np.zeros((20, 4), np.float32)
    assert labelled_arrays(images, np.arange(20) % 10, [0.6, 0.2, 0.2]).num_classes("train") == 6  # type: ignore[arg-type]


def test_a_moved_folder_of_data_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    data = draw(tmp_path / "photos")
    run = begin(data, tmp_path / "runs").run.path
    moved = Path(shutil.move(data, tmp_path / "moved"))
    assert Experiment.open(run, data=str(moved)).load()[1] == 2
    other = draw(tmp_path / "other", num_classes=11)
    with pytest.raises(CheckpointError, match="other classes, or other numbers of examples"):
        Experiment.open(run, data=str(other)).load()


def test_other_images_of_the_same_classes_are_told(tmp_path: Path) -> None:
    run = begin(draw(tmp_path / "photos"), tmp_path / "runs").run.path
    with pytest.warns(UserWarning, match="examples of other differ from those that the run was trained on"):
        Experiment.open(run, data=str(draw(tmp_path / "other", shift=9))).load()


def test_the_folder_of_data_is_recorded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert begin(Path("photos"), tmp_path / "runs").setup.data == str(tmp_path / "photos")


def test_a_damaged_checkpoint_comes_with_the_command_that_goes_on(tmp_path: Path) -> None:
    this = begin(draw(tmp_path / "photos"), tmp_path / "runs")
    this.run.checkpoints.latest().write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="resume from it with: metarl fewshot train --resume"):
        this.load()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1", "1"], "--seeds must hold each value once, got 1 1"),
        (["--learners", "maml", "maml"], "--learners must hold each value once"),
        (["--ways", "5"], "no learner takes sinusoid of this size"),
    ],
)
def test_compare_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fewshot", "compare", "sinusoid", "--runs", str(tmp_path), "--num-iterations", "1", *words]) == 2
    assert message in capsys.readouterr().err


def test_compare_shows_no_longer_training_than_was_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["fewshot", "compare", "sinusoid", "--learners", "random", "--runs", str(tmp_path), "--test-tasks", "2"]
    assert main([*words, "--num-iterations", "3"]) == 0
    assert main([*words, "--num-iterations", "2"]) == 2
    assert "has done 3 iterations already" in capsys.readouterr().err


@pytest.mark.parametrize("outputs", [2, 3])
def test_a_network_of_other_outputs_is_refused(outputs: int) -> None:
    """The error of a regression would be broadcast, and three logits would serve two classes."""
    tasks = load_tasks("sinusoid")
    with pytest.raises(ConfigError, match=rf"must give 1 outputs .* got \(2, {outputs}\)"):
        MAML(tasks.spec(tasks.default_episode), CPU, MAMLConfig(), torch.nn.Linear(1, outputs), 0.1)


def test_a_function_that_makes_no_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_networks.py").write_text("def make():\n    return None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"the backbone broken_networks:make raised when it was called with \(1,\)"):
        MAMLConfig(backbone="broken_networks:make").build(FewShotSpec((1,), 1, "regression"), CPU, 0)
