"""Published data sets from miniatures in their true layouts, and the tasks that need no data."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.cli import main
from metarl.errors import ConfigError
from metarl.fewshot.backbone import build_backbone
from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.objective import task_losses
from metarl.fewshot.tasks import FewShotTasks, load_tasks
from metarl.fewshot.tasks.classes import ClassTasks
from metarl.fewshot.tasks.miniimagenet import miniimagenet
from metarl.fewshot.tasks.omniglot import OmniglotSplit, omniglot
from metarl.fewshot.tasks.quadratic import Quadratic
from metarl.fewshot.tasks.sinusoid import Sinusoid, SinusoidAndLine
from metarl.fewshot.types import EpisodeConfig, FewShotSpec, Split

VALIDATION = {"Armenian": 41, "Bengali": 46, "Early_Aramaic": 22, "Hebrew": 22, "Mkhedruli_(Georgian)": 41}


@pytest.fixture(scope="module")
def omniglot_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 1,623 characters in the true layout, with two drawings each; every alphabet has a drawing of its own."""
    folder = tmp_path_factory.mktemp("data") / "omniglot"
    background = {**VALIDATION, **{f"Known{number}": 32 for number in range(24)}, "Latin": 24}
    evaluation = {"Angelic": 232, "Gurmukhi": 10, "Tibetan": 417}
    for part, alphabets in (("images_background", background), ("images_evaluation", evaluation)):
        for number, (alphabet, count) in enumerate(alphabets.items()):
            ground = np.full((105, 105), 255, np.uint8)
            ground[number : number + 30, 10:50] = 0
            stream = io.BytesIO()
            Image.fromarray(ground).convert("1").save(stream, "png")
            for character in range(1, count + 1):
                place = folder / part / alphabet / f"character{character:02d}"
                place.mkdir(parents=True)
                for drawer in (1, 2):
                    (place / f"{character:04d}_{drawer:02d}.png").write_bytes(stream.getvalue())
    return folder


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        ("vinyals", {"train": 1028, "validation": 172, "test": 423}),
        ("1200", {"train": 1200, "test": 423}),
        ("random", {"train": 1100, "validation": 100, "test": 423}),
        ("background", {"train": 792, "validation": 172, "test": 659}),
    ],
)
def test_omniglots_published_splits(omniglot_folder: Path, split: OmniglotSplit, sizes: dict[Split, int]) -> None:
    tasks = omniglot(omniglot_folder, split=split, rotations=False)
    assert tasks.id == ("omniglot" if split == "vinyals" else f"omniglot-{split}")
    assert {part: tasks.num_classes(part) for part in sizes} == sizes
    assert omniglot(omniglot_folder, split=split).num_classes("test") == 4 * sizes["test"]
    names = {part: tasks.class_names(part) for part in sizes}
    assert sum(map(len, names.values())) == len(set().union(*names.values())) == sum(sizes.values())
    if split in ("vinyals", "background"):
        assert {name.split("/")[1] for name in names["validation"]} == set(VALIDATION)
    if split == "vinyals":
        # The 1,200 end within an alphabet: 964 of background, 232 of Angelic, and 4 of Gurmukhi's 10 here.
        assert next(name for name in names["test"] if "Gurmukhi" in name).endswith("Gurmukhi/character05")
    if split == "random":
        assert len({name.split("/")[1] for name in names["train"]} & {name.split("/")[1] for name in names["test"]}) > 5


def test_omniglots_images_are_28_pixels_wide_with_ink_1(omniglot_folder: Path) -> None:
    tasks = load_tasks("omniglot", omniglot_folder)
    episode = EpisodeConfig(ways=20, shots=1, queries=1)
    assert tasks.spec(episode).input_shape == (1, 28, 28) and tasks.spec(episode).num_outputs == 20
    x = tasks.sample("test", 3, episode, np.random.default_rng(0)).support.x
    assert x.shape == (3, 20, 1, 28, 28) and x.min() == 0 and x.max() == 1
    assert x.mean((2, 3, 4)).numpy() == pytest.approx(np.full((3, 20), 30 * 40 / 105**2), abs=0.01)


def test_missing_omniglot_says_what_to_put_where(omniglot_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks the folder images_background\. Get images_background\.zip and"):
        omniglot(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(omniglot_folder, copy)
    shutil.rmtree(copy / "images_evaluation" / "Gurmukhi")
    with pytest.raises(ConfigError, match=r"images_evaluation holds 649 characters, expected 659\. Get"):
        omniglot(copy)
    with pytest.raises(ConfigError, match=r"unknown split of Omniglot 'vinyal'\. Did you mean 'vinyals'"):
        omniglot(omniglot_folder, split="vinyal")  # type: ignore[arg-type]


def _photo(path: Path, colour: int, suffix_format: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((84, 84, 3), colour, np.uint8)
    pixels[:, :, 1] = 200
    Image.fromarray(pixels).save(path, suffix_format)


MINI = {"train": ("n01", "n02", "n03"), "val": ("n04", "n05"), "test": ("n06", "n07")}


def _write_list(folder: Path, name: str, rows: list[tuple[str, str]]) -> None:
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "label"), *rows])


def _mini_lists(folder: Path) -> None:
    for name, classes in MINI.items():
        rows = [(f"{label}{number:08d}.jpg", label) for label in classes for number in range(4)]
        _write_list(folder, name, rows)
        for image, label in rows:
            _photo(folder / "images" / image, 20 * int(label[1:]), "jpeg")


def _mini_folders(folder: Path) -> None:
    for name, classes in MINI.items():
        for label in classes:
            for number in range(4):
                _photo(folder / name / label / f"{number}.png", 20 * int(label[1:]), "png")


@pytest.mark.parametrize("make", [_mini_lists, _mini_folders])
def test_miniimagenet_is_read_in_both_of_its_layouts(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    tasks = load_tasks("miniimagenet", tmp_path)
    assert isinstance(tasks, ClassTasks)
    assert [tasks.class_names(split) for split in ("train", "validation", "test")] == list(MINI.values())
    batch = tasks.sample("test", 8, EpisodeConfig(ways=2, shots=1, queries=3), np.random.default_rng(0))
    assert batch.support.x.shape == (8, 2, 3, 84, 84) and batch.query.x.shape == (8, 6, 3, 84, 84)
    reds = (batch.support.x[:, :, 0].mean((2, 3)) * 255).round()
    assert all(sorted(task) == pytest.approx([120, 140], abs=3) for task in reds.tolist())
    assert batch.query.x[:, :, 1].mean() == pytest.approx(200 / 255, abs=0.02)


def _mini_reds(folder: Path) -> None:
    """Classes of one red each, whose green and blue, different in every image, hide it from random features."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    reds = {"train": range(0, 256, 50), "val": (30, 220), "test": (70, 180)}
    for name, levels in reds.items():
        reds_of = {f"{red}-{number}.png": red for red in levels for number in range(6)}
        _write_list(folder, name, [(image, f"red{red}") for image, red in reds_of.items()])
        for image, red in reds_of.items():
            pixels = np.full((84, 84, 3), (red, *rng.integers(0, 256, 2)), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / image)


def test_a_learner_of_miniimagenet_is_trained_by_the_command_and_beats_the_untrained_one(tmp_path: Path) -> None:
    """From files in the true layout to scores on test classes."""
    _mini_reds(tmp_path / "mini")
    size = "--ways 2 --shots 1 --queries 3 --train-ways 4 --train-queries 3 --num-filters 4 --meta-lr 0.01"
    schedule = "--num-iterations 40 --meta-batch-size 2 --eval-every 20 --eval-tasks 4 --test-tasks 40 --device cpu"
    words = f"fewshot train protonet miniimagenet {size} {schedule}".split()
    assert main([*words, "--data", str(tmp_path / "mini"), "--runs", str(tmp_path / "runs")]) == 0
    run = tmp_path / "runs" / "protonet-miniimagenet-2way-1shot-seed1"
    rows = json.loads((run / "adaptation.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["protonet", "protonet, untrained"] and rows[0]["steps"] == [0, 1]
    (before, (mean, low, _)), (_, (_, _, untrained)) = (row["intervals"] for row in rows)
    assert before[0] == 0.5  # Of two ways, which is chance.
    assert low > untrained and mean > 0.9
    assert (run / "checkpoints" / "best.safetensors").is_file()


def test_miniimagenet_that_is_not_whole_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no miniImageNet in .*\. Lay it out in one of its two usual ways"):
        miniimagenet(tmp_path)
    _mini_lists(tmp_path)
    (tmp_path / "images" / "n0200000001.jpg").unlink()
    with pytest.raises(
        ConfigError, match=r"train\.csv lists 1 images that .* lacks, the first of them n0200000001\.jpg"
    ):
        miniimagenet(tmp_path)
    with (tmp_path / "train.csv").open("a") as file:
        file.write("n0100000000.jpg,n01\n")
    with pytest.raises(ConfigError, match=r"train\.csv lists 1 images more than once, the first .* n0100000000\.jpg"):
        miniimagenet(tmp_path)
    (tmp_path / "val.csv").write_text("file,class\n")
    (tmp_path / "train.csv").write_text("filename,label\n")
    with pytest.raises(ConfigError, match=r"val\.csv has the columns \['file', 'class'\], expected filename and label"):
        miniimagenet(tmp_path)


def test_digits_have_the_same_classes_and_other_images_in_every_split() -> None:
    pytest.importorskip("sklearn")
    tasks = load_tasks("digits")
    seen = []
    for split in ("train", "validation", "test"):
        batch = tasks.sample(split, 30, tasks.default_episode, np.random.default_rng(0))  # type: ignore[arg-type]
        assert batch.support.x.shape == (30, 400, 64) and batch.query.x.shape == (30, 120, 64)
        assert batch.support.x.min() == 0 and batch.support.x.max() == 1
        x = torch.cat([batch.support.x, batch.query.x], 1)
        assert all(len(task.unique(dim=0)) == 520 for task in x)
        seen.append({image.numpy().tobytes() for image in x.flatten(0, 1)})
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


class _AnyLearner(LearnerConfig):
    def build(self, spec: FewShotSpec, device: torch.device, seed: int) -> Learner[Any]:
        raise NotImplementedError


def test_the_mean_squared_error_on_a_quadratic_is_its_function_of_the_weights() -> None:
    tasks = Quadratic()
    batch = tasks.sample("train", 300, tasks.default_episode, np.random.default_rng(0))
    assert torch.equal(batch.support.x, batch.query.x) and torch.equal(batch.support.y, batch.query.y)
    w, y = batch.support.x / math.sqrt(10), batch.support.y / math.sqrt(10)
    assert abs(w.std() - 1) < 0.02 and abs(w.mean()) < 0.02 and abs(y.std() - 1) < 0.04
    spec = tasks.spec(tasks.default_episode)
    model = build_backbone(_AnyLearner(backbone="linear"), spec, torch.device("cpu"), 0)
    (theta,) = model.parameters()
    assert theta.shape == (1, 10)
    expected = (w @ theta[0] - y[..., 0]).square().sum(1)
    losses = task_losses(torch.stack([model(x) for x in batch.support.x]), batch.support.y, spec.kind)
    assert torch.allclose(losses, expected, rtol=1e-4)
    with pytest.raises(ConfigError, match="expected as many of both, got 10 shots and 5 queries"):
        tasks.check("train", EpisodeConfig(1, 10, 5))


def _fit(x: np.ndarray, y: np.ndarray, *features: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares: coefficients and root mean squared residual."""
    matrix = np.stack(features, 1)
    coefficients = np.linalg.lstsq(matrix, y, rcond=None)[0]
    return coefficients, float(np.sqrt(np.mean((matrix @ coefficients - y) ** 2)))


def test_sinusoids_have_the_ranges_of_maml() -> None:
    batch = Sinusoid().sample("train", 400, EpisodeConfig(1, 10, 30), np.random.default_rng(0))
    assert batch.support.x.shape == (400, 10, 1) and batch.query.y.shape == (400, 30, 1)
    inputs = torch.cat([batch.support.x, batch.query.x], 1).double().numpy()[..., 0]
    targets = torch.cat([batch.support.y, batch.query.y], 1).double().numpy()[..., 0]
    assert -5 <= inputs.min() < -4.9 and 4.9 < inputs.max() <= 5
    waves = []
    for x, y in zip(inputs, targets, strict=True):
        (along, across), residual = _fit(x, y, np.sin(x), np.cos(x))
        assert residual < 1e-5
        waves.append((math.hypot(along, across), math.atan2(-across, along)))
    amplitude, phase = np.asarray(waves).T
    assert 0.099 < amplitude.min() < 0.2 and 4.9 < amplitude.max() < 5.001
    assert -1e-3 < phase.min() < 0.05 and math.pi - 0.05 < phase.max() < math.pi + 1e-3


def test_half_of_the_mixed_tasks_are_lines_and_all_are_noisy() -> None:
    tasks = SinusoidAndLine()
    assert tasks.default_episode.shots == 5
    batch = tasks.sample("test", 600, EpisodeConfig(1, 100, 100), np.random.default_rng(0))
    lines, residuals, slopes = 0, [], []
    for x, y in zip(batch.query.x.double().numpy()[..., 0], batch.query.y.double().numpy()[..., 0], strict=True):
        _, as_wave = _fit(x, y, np.sin(x), np.cos(x))
        line, as_line = _fit(x, y, x, np.ones_like(x))
        residuals.append(min(as_wave, as_line))
        if as_line < as_wave:
            lines += 1
            slopes.append(line)
    assert abs(lines / 600 - 0.5) < 0.08
    assert np.mean(residuals) == pytest.approx(0.3, abs=0.02)
    assert 2.8 < np.abs(slopes).max() < 3.3


@pytest.mark.parametrize("tasks", [Sinusoid(), SinusoidAndLine(), Quadratic()], ids=lambda tasks: tasks.id)
def test_regression_has_no_classes_and_is_drawn_from_the_generator_alone(tasks: FewShotTasks) -> None:
    with pytest.raises(ConfigError, match="its tasks have no classes, so ways must be 1, got 5"):
        tasks.check("train", EpisodeConfig(5, 10, 10))
    one, again, other = (
        tasks.sample("train", 4, tasks.default_episode, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one.support.x, again.support.x) and torch.equal(one.query.y, again.query.y)
    assert not torch.equal(one.support.x, other.support.x)
    assert one.support.x.dtype == one.support.y.dtype == torch.float32
