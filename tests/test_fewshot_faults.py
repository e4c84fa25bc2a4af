"""What a user of few-shot learning may get wrong, or find changed, is told and never passed over."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.cli import main
from metarl.config import TrainConfig
from metarl.errors import CheckpointError, ConfigError
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.learners import MAMLConfig, RandomConfig
from metarl.fewshot.learners.maml import MAML
from metarl.fewshot.setup import Given, resolve
from metarl.fewshot.tasks import labelled_arrays, load_tasks, sampled_tasks
from metarl.fewshot.trainer import restore, train
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


def test_data_that_is_gone_is_told_with_the_option_that_says_where_it_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw(tmp_path / "photos")
    run = begin(data, tmp_path / "runs").run.path
    shutil.move(data, tmp_path / "moved")
    for words in (["evaluate", str(run)], ["train", "--resume", str(run)], ["predict", str(run), str(data), "x.png"]):
        assert main(["fewshot", *words]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"was trained on data in {data}, and there is no such folder now" in told and "--data FOLDER" in told
        assert "CLASS" not in told  # How to lay out what was there already is of no help.
    assert main(["fewshot", "evaluate", str(run), "--data", str(tmp_path / "none")]) == 2
    assert f"there is no folder {tmp_path / 'none'}" in " ".join(capsys.readouterr().err.split())


def test_paths_are_those_of_the_folder_in_which_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a user's own module does to the working directory."""
    draw(tmp_path / "photos")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "wandering_learners.py").write_text(
        f"import os\nfrom metarl.fewshot.learners import RandomConfig as Config\nos.chdir({str(elsewhere)!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    size = ["--ways", "2", "--shots", "1", "--queries", "2", "--num-iterations", "1", "--test-tasks", "2"]

    def typed(*words: str) -> int:
        monkeypatch.chdir(tmp_path)
        sys.modules.pop("wandering_learners", None)
        return main(["fewshot", *words])

    own = ["--learners", "wandering_learners:Config", "--data", "photos"]
    assert typed("compare", "folder", *own, *size, "--runs", "results") == 0
    assert Path.cwd() == elsewhere
    (folder,) = (tmp_path / "results").iterdir()
    assert (folder / "comparison.json").is_file()
    run = f"results/{folder.name}/wandering_learners-Config-seed1"
    assert typed("evaluate", run, "--num-tasks", "2", "--trust-tasks", "--data", "photos") == 0
    checkpoint = str(Path(run) / "checkpoints" / "iteration-00000001.safetensors")
    words = ["photos/class0/1.png", "--trust-tasks", "--checkpoint", checkpoint]
    capsys.readouterr()
    assert typed("predict", run, "photos", *words) == 2
    # It was found and read: an untrained network has as many outputs as it was built for.
    assert "was trained for 2 classes" in " ".join(capsys.readouterr().err.split())
    assert not list(elsewhere.iterdir())


def test_other_images_of_the_same_classes_are_told(tmp_path: Path) -> None:
    run = begin(draw(tmp_path / "photos"), tmp_path / "runs").run.path
    with pytest.warns(UserWarning, match="examples of other differ from those that the run was trained on"):
        Experiment.open(run, data=str(draw(tmp_path / "other", shift=9))).load()


@pytest.mark.parametrize("text", ["x**3 + rng.normal()", "x**2 * np.random.normal() + rng.normal()"])
def test_a_function_that_draws_other_tasks_than_it_did_is_told(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since it was changed, or since it never drew from its generator alone."""

    def write(y: str) -> None:
        (tmp_path / "drawn_tasks.py").write_text(
            "import numpy as np\n"
            "from metarl.fewshot.tasks import sampled_tasks\n"
            "def draw(rng, episode, split):\n"
            "    x = rng.uniform(-1, 1, (episode.shots + episode.queries, 1))\n"
            f"    y = {y}\n"
            "    return x[:episode.shots], y[:episode.shots], x[episode.shots:], y[episode.shots:]\n"
            "drawn = sampled_tasks(draw, (1,), 'regression')\n"
        )
        sys.modules.pop("drawn_tasks", None)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    write("x**2 + rng.normal()" if "random" not in text else text)
    tasks = load_tasks("drawn_tasks:drawn")
    episode, config = tasks.default_episode, TrainConfig(**SHORT)  # type: ignore[arg-type]
    learner = RandomConfig().build(tasks.spec(episode), CPU, 0)
    run = RunFolder.create(tmp_path, "run")
    train(learner, tasks, episode, config, run)
    _, content = run.checkpoints.load_latest()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore(learner, content, tasks, episode, config)
    write(text)
    with pytest.warns(UserWarning, match="the function of sampled draws other tasks than those that the run was"):
        restore(learner, content, load_tasks("drawn_tasks:drawn"), episode, config)
    other = sampled_tasks(lambda rng, episode, split: (), (1,), "regression", id="other")
    assert other.digests == {}
    with pytest.raises(CheckpointError, match="tasks is 'sampled' there and 'other' here"):
        restore(learner, content, other, episode, config)


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
        (["--learners"], "--learners needs at least one; leave it out to compare all: maml, fomaml"),
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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["reptile", "quadratic"],
            "size of its own (ways 1, shots 10, queries 1), which quadratic cannot have: the",
        ),
        (["reptile", "quadratic"], "Learners that train on such tasks: learned-optimiser, maml, pretrained, random"),
        (
            ["protonet", "glyphs", "--train-ways", "9999"],
            "cannot have: 9999 ways are more than the 2133 classes",
        ),
        (["maml", "quadratic", "--queries", "3"], "error: the queries of quadratic are its shots"),
    ],
)
def test_sizes_that_a_learner_trains_on_are_told_apart_from_those_of_the_test(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["fewshot", "train", *words, "--runs", str(tmp_path)]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("learner", ["learned-optimiser", "maml", "pretrained", "random"])
def test_what_is_said_to_take_quadratics_does(learner: str) -> None:
    resolve(Given(learner, "quadratic"), settings={"backbone": "linear"}).check()


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
