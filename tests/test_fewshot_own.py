"""Tasks of one's own data, and finding tasks by name."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.errors import ConfigError
from metarl.fewshot.tasks import image_folder, labelled_arrays, load_tasks, sampled_tasks
from metarl.fewshot.tasks.images import ImageFormat
from metarl.fewshot.tasks.own import divide
from metarl.fewshot.tasks.registry import FEWSHOT_FOLDERS, FEWSHOT_TASKS
from metarl.fewshot.types import EpisodeConfig, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SMALL = EpisodeConfig(ways=2, shots=1, queries=2)


def _folder(folder: Path, classes: Mapping[str, int], count: int = 3, side: int = 6) -> Path:
    """Classes of grey images, each of one grey level."""
    for name, level in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((side, side), level, np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_a_folder_of_class_folders_is_divided_by_fractions(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "mine", {f"class{number}": 10 * number for number in range(10)})
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("no image")
    tasks = image_folder(folder)
    assert tasks.id == "mine" and tasks.image_format == ImageFormat((6, 6), 1)
    names = [tasks.class_names(split) for split in SPLITS]
    assert [len(of_split) for of_split in names] == [6, 2, 2]
    assert sorted(name for of_split in names for name in of_split) == sorted(f"class{number}" for number in range(10))
    batch = tasks.sample("test", 5, SMALL, np.random.default_rng(0))
    levels = {int(name.removeprefix("class")) * 10 for name in names[2]}
    assert {round(level * 255) for level in batch.query.x.unique().tolist()} == levels
    assert [image_folder(folder).class_names(split) for split in SPLITS] == names
    assert [image_folder(folder, seed=1).class_names(split) for split in SPLITS] != names
    tasks = image_folder(folder, (0.5, 0.0, 0.5), size=(4, 4), channels=3, ink=True, rotations=True, id="other")
    assert tasks.id == "other" and tasks.input_shape == (3, 4, 4) and tasks.num_classes("train") == 20
    with pytest.raises(ConfigError, match="no classes in a validation split; there are some in train, test"):
        tasks.check("validation", SMALL)


@pytest.mark.parametrize("validation", ["validation", "val", None])
def test_a_folder_may_be_divided_already(tmp_path: Path, validation: str | None) -> None:
    folder = tmp_path / "mine"
    parts = [part for part in ("train", validation, "test") if part is not None]
    for number, part in enumerate(parts):
        _folder(folder / part, {f"{part}{kind}": 50 * number + kind for kind in range(2 + number)})
    tasks = image_folder(folder)
    assert tasks.class_names("train") == ("train0", "train1")
    assert tasks.class_names("test")[:2] == ("test0", "test1")
    if validation is not None:
        assert tasks.class_names("validation") == tuple(f"{validation}{kind}" for kind in range(3))
    with pytest.raises(ConfigError, match=r"is divided already, into .*; leave out fractions, got \(0\.5, 0, 0\.5\)"):
        image_folder(folder, (0.5, 0, 0.5))


def test_classes_called_train_and_test_are_classes(tmp_path: Path) -> None:
    tasks = image_folder(_folder(tmp_path, {"train": 1, "test": 2, "plane": 3}), (1, 0, 0))
    assert tasks.class_names("train") == ("plane", "test", "train")
    with pytest.raises(ConfigError, match="no classes in a test split"):
        tasks.check("test", SMALL)


def test_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere\. Make a folder with one folder of images"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no folders of images\. Make a folder"):
        image_folder(tmp_path / "empty")
    with pytest.raises(ConfigError, match="one has 1 class, and telling classes apart needs at least 2"):
        image_folder(_folder(tmp_path / "one", {"a": 1}))
    hollow = _folder(tmp_path / "hollow", {"a": 1, "b": 2})
    (hollow / "c").mkdir()
    with pytest.raises(ConfigError, match=r"the class 'c' of the \w+ split has no images in .*hollow\. Add some, or"):
        image_folder(hollow)
    deep = _folder(tmp_path / "deep" / "valid", {"a": 1, "b": 2}).parent
    with pytest.raises(ConfigError, match=r"valid was taken for the folder of a class, but 6 images lie in folders in"):
        image_folder(deep)
    mixed = _folder(_folder(tmp_path / "mixed", {"a": 1, "b": 2}), {"c": 3}, side=9)
    with pytest.raises(ConfigError, match=r"the images of mixed have 2 sizes: 6 are of 6 x 6, but .* is of 9 x 9"):
        image_folder(mixed)
    assert image_folder(mixed, size=(5, 5)).input_shape == (1, 5, 5)
    shared = tmp_path / "shared"
    _folder(shared / "train", {"a": 1, "b": 2})
    _folder(shared / "test", {"b": 2, "c": 3})
    with pytest.raises(
        ConfigError, match=r"the splits train and test share 1 of their classes: b. Expected test classes that"
    ):
        image_folder(shared)


def test_images_that_are_in_two_splits_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    _folder(folder / "train", {"a": 1, "b": 2})
    _folder(folder / "test", {"c": 3, "d": 2})
    with pytest.warns(
        UserWarning, match="3 examples of the test split are the same as some of the train .* 'd' and 'b'"
    ):
        image_folder(folder)
    images, labels = _arrays()
    with pytest.warns(UserWarning, match="examples of the test split are the same as some of the train split"):
        labelled_arrays(
            np.concatenate([images, images]),
            np.concatenate([labels, labels + 100]),
            {"train": np.unique(labels).tolist(), "test": np.unique(labels + 100).tolist()},
        )


def test_images_that_are_there_twice_in_a_split_are_told() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (12, 4, 4)).astype(np.uint8), np.repeat(["a", "b", "c"], 4)
    splits: dict[Split, list[str]] = {"train": ["a", "b", "c"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labelled_arrays(images, labels, splits)
    images[2] = images[1]
    with pytest.warns(UserWarning, match=r"1 examples of the train split are copies of others .* in the class 'a'\."):
        labelled_arrays(images, labels, splits)
    images[2] = images[9]
    with pytest.warns(UserWarning, match=r"are copies of others in it, .* in the classes 'a' and 'c'\. Remove them"):
        labelled_arrays(images, labels, splits)


def test_damaged_images_are_left_out_if_asked_and_a_class_of_them_is_told(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "mine", {"a": 10, "b": 20, "c": 30})
    (folder / "b" / "1.png").write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"1 of the 9 images of mine cannot be read: .*1\.png"):
        image_folder(folder)
    with pytest.warns(UserWarning, match=r"skipped 1 of the 9 images of mine: .*1\.png"):
        tasks = image_folder(folder, (1, 0, 0), damaged="skip")
    with pytest.raises(ConfigError, match="the class 'b' in the train split of mine has 2"):
        tasks.check("train", SMALL)
    with pytest.warns(UserWarning, match=r"skipped 1 of the 9 images of mine: .*1\.png \(when it was decoded\)"):
        again = image_folder(folder, (1, 0, 0), damaged="skip")
    batch = again.sample("train", 20, EpisodeConfig(3, 1, 1), np.random.default_rng(0))
    assert {round(level * 255) for level in batch.support.x.unique().tolist()} == {10, 20, 30}
    assert torch.equal(batch.support.x, batch.query.x)
    for number in (0, 2):
        (folder / "b" / f"{number}.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="skipped 3"), pytest.raises(ConfigError, match="no image of the class 'b'"):
        image_folder(folder, damaged="skip")


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    """Five classes whose labels skip numbers; an image's pixels are its label."""
    labels = np.tile([7, 3, 40, 3000, -1], 4)
    return np.repeat(labels, 16).reshape(-1, 4, 4).astype(np.float64), labels


def test_labels_may_skip_numbers_and_come_in_any_order() -> None:
    images, labels = _arrays()
    tasks = labelled_arrays(images, labels)
    assert tasks.input_shape == (1, 4, 4)
    assert [tasks.num_classes(split) for split in SPLITS] == [3, 1, 1]
    tasks = labelled_arrays(images, labels, {"train": [40, 7], "test": (3, -1, 3)})
    assert tasks.class_names("train") == ("40", "7") and tasks.class_names("test") == ("3", "-1")
    batch = tasks.sample("test", 30, SMALL, np.random.default_rng(0))
    assert batch.support.y.max() == 1 and set(batch.support.x.unique().tolist()) == {-1.0, 3.0}
    assert (batch.query.x.flatten(2) == batch.support.x.repeat_interleave(2, 1).flatten(2)).all()


def test_labels_may_be_a_column_of_a_table() -> None:
    """Libraries of tables hold text as objects."""
    names = np.asarray(["cat", "dog", "cow", "cat", "dog", "cow"], dtype=object)
    tasks = labelled_arrays(np.zeros((6, 3)), names, {"train": ["dog", "cat", "cow"]})
    assert tasks.class_names("train") == ("dog", "cat", "cow")


def test_labels_may_be_text_and_examples_vectors_or_have_channels() -> None:
    names = np.asarray(["cat", "dog", "cat", "dog", "cow", "cow"])
    tasks = labelled_arrays(np.zeros((6, 3)), names, {"train": ["dog", "cat", "cow"]})
    assert tasks.input_shape == (3,) and tasks.class_names("train") == ("dog", "cat", "cow")
    images = np.zeros((6, 3, 8, 8), np.uint8)
    assert labelled_arrays(images, names, (1, 0, 0), rotations=True).num_classes("train") == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(3, int)}, "one for each of the 20 images, got int64 of the shape (3,)"),
        ({"labels": np.linspace(0, 1, 20)}, "labels must be whole numbers or text"),
        ({"labels": np.zeros(20, int)}, "arrays has 1 class, and telling classes apart needs at least 2"),
        ({"images": np.zeros((20, 8, 8, 3))}, "channels last, expected [example, channel, height, width]: images.tr"),
        (
            {"images": [np.zeros((4, 4)), np.zeros((4, 5))] * 10},
            "images must make one array, all of whose examples have one shape, and these do not: an array of the shape "
            "(4, 4), an array of the shape (4, 5). Resize or pad them first.",
        ),
        ({"images": [[1, 2], [1, 2, 3]] * 10}, "a list of length 2, a list of length 3. Resize or pad"),
        ({"labels": [[1], [1, 2]] * 10}, "labels must make one array"),
        ({"labels": [None] * 20}, "labels must be an array of numbers or text, one for each example, got None."),
        ({"images": 3}, "images must be an array of numbers or text, one for each example, got 3."),
        ({"images": np.zeros(20)}, "got an array of the shape (20,)"),
        ({"images": np.zeros((20, 4, 4), int)}, "images must be uint8 (0 to 255) or floating point, got int64"),
        ({"images": np.full((20, 4, 4), np.nan)}, "12 examples of the train split hold NaN or an infinity"),
        ({"images": np.full((20, 4, 4), 1e300)}, "hold NaN or an infinity, as float32"),
        ({"images": np.zeros((20, 8, 8, 4), np.uint8)}, "have their channels last"),
        ({"labels": ["a", "b", float("nan"), "c"] * 5}, "that of the example 2 is nan, and the first one is 'a'"),
        ({"labels": np.array(["a", "b", np.nan, "c"] * 5, object)}, "that of the example 2 is nan"),
        ({"labels": [1, 2, "3", 4] * 5}, "that of the example 2 is '3', and the first one is 1"),
        ({"labels": [0, 1, True, 3] * 5}, "that of the example 2 is True"),
        ({"splits": (0.5, 0.2, 0.2)}, "three numbers of 0 or more whose sum is 1, e.g. (0.6, 0.2, 0.2), got (0.5, 0.2"),
        (
            {"splits": {"train": [7, 3], "test": [3, 40]}},
            "the splits train and test share 1 of their classes: 3. Expected",
        ),
        (
            {"splits": {"train": [7, 4]}},
            "the train split names the label 4, of which there is no example; labels are -1",
        ),
        ({"splits": {"tset": [7, 3]}}, "unknown split 'tset'. Did you mean 'test'?"),
    ],
)
def test_arrays_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    images, labels = _arrays()
    with pytest.raises(ConfigError) as caught:
        labelled_arrays(**{"images": images, "labels": labels, **change})
    assert message in str(caught.value)


def test_classes_are_divided_at_random_in_the_given_shares() -> None:
    names = [str(number) for number in range(100)]
    parts = divide(names, (0.5, 0.3, 0.2), 0)
    assert [len(parts[split]) for split in SPLITS] == [50, 30, 20]
    assert sorted(itertools.chain(*parts.values()), key=int) == names and parts["train"] != names[:50]
    assert divide(names, (0.5, 0.3, 0.2), 0) == parts != divide(names, (0.5, 0.3, 0.2), 1)


def _signs(rng: np.random.Generator, episode: EpisodeConfig, split: Split) -> tuple[np.ndarray, ...]:
    """Numbers around the class index, in no order."""

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.permutation(np.repeat(np.arange(episode.ways), count))
        return (y + 0.1 * rng.standard_normal(len(y)))[:, None], y

    return *draw(episode.shots), *draw(episode.queries)


def test_a_function_that_draws_a_task_makes_a_family() -> None:
    tasks = sampled_tasks(_signs, (1,))
    episode = EpisodeConfig(ways=3, shots=2, queries=4)
    assert tasks.default_episode == EpisodeConfig() and tasks.spec(episode).num_outputs == 3
    one, again = (tasks.sample("train", 5, episode, np.random.default_rng(0)) for _ in range(2))
    assert torch.equal(one.query.x, again.query.x)
    assert one.support.x.shape == (5, 6, 1) and one.support.y.tolist() == [[0, 0, 1, 1, 2, 2]] * 5
    assert (one.support.x[..., 0].round() == one.support.y).all() and (one.query.x[..., 0].round() == one.query.y).all()
    assert one.query.x.dtype == torch.float32 and one.query.y.dtype == torch.int64


def test_bytes_that_a_function_draws_become_0_to_1_as_everywhere() -> None:
    images = np.array([[0], [255]], np.uint8)
    tasks = sampled_tasks(lambda rng, episode, split: (images, [0, 1], images.astype(float), [0, 1]), (1,))
    batch = tasks.sample("train", 1, EpisodeConfig(2, 1, 1), np.random.default_rng(0))
    assert batch.support.x.flatten().tolist() == [0.0, 1.0] and batch.query.x.flatten().tolist() == [0.0, 255.0]


def test_a_function_that_draws_regression_makes_a_family() -> None:
    def draw(rng: np.random.Generator, episode: EpisodeConfig, split: Split) -> tuple[np.ndarray, ...]:
        x = rng.standard_normal((episode.shots + episode.queries, 3))
        y = np.stack([x.sum(1), -x.sum(1)], 1)
        return x[: episode.shots], y[: episode.shots], x[episode.shots :], y[episode.shots :]

    tasks = sampled_tasks(draw, (3,), "regression", num_outputs=2, id="sums")
    batch = tasks.sample("test", 4, EpisodeConfig(1, 5, 7), np.random.default_rng(0))
    assert batch.support.x.shape == (4, 5, 3) and batch.query.y.shape == (4, 7, 2)
    assert torch.allclose(batch.query.x.sum(2), batch.query.y[..., 0], atol=1e-6)
    with pytest.raises(ConfigError, match="sums needs ways of 1, since regression has no classes, got 5"):
        tasks.check("test", EpisodeConfig())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "must return four arrays, inputs and targets of the support set and of the query set, got NoneType"),
        ((np.zeros((2, 2)), [0, 1], np.zeros((2, 1)), [0, 1]), "shapes (2, 1) and (2,) for EpisodeConfig(ways=2, "),
        ((np.zeros((2, 1)), [0, 1], np.zeros((2, 1)), [0, 2]), "whole numbers from 0 to 1, got int64 from 0 to 2"),
        ((np.zeros((2, 1)), [0, 1], np.zeros((2, 1)), [1, 1]), "the query set must hold 1 examples of each class for"),
        ((np.zeros((2, 1)), [0.0, 1.0], np.zeros((2, 1)), [0, 1]), "the support set must be whole numbers from 0 to 1"),
        (
            (np.zeros((2, 1)), [0, 1], [[1.0], [1.0, 2.0]], [0, 1]),
            "of the query set must be arrays of numbers, all examples of one shape, of the shapes (2, 1) and (2,) for",
        ),
        ((np.zeros((2, 1)), [0, 1], ["a", "b"], [0, 1]), "of the query set must be arrays of numbers"),
        ((np.zeros((2, 1)), [0, 1], np.full((2, 1), np.nan), [0, 1]), "the query set holds NaN or an infinity"),
    ],
)
def test_what_a_function_draws_is_checked(result: Any, message: str) -> None:
    tasks = sampled_tasks(lambda rng, episode, split: result, (1,))
    with pytest.raises(ConfigError) as caught:
        tasks.sample("train", 1, EpisodeConfig(2, 1, 1), np.random.default_rng(0))
    assert message in str(caught.value)


def test_kinds_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown kind of tasks 'regresion'"):
        sampled_tasks(_signs, (1,), "regresion")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave out num_outputs=3"):
        sampled_tasks(_signs, (1,), num_outputs=3)


def test_tasks_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"glyphs", "sinusoid", "sinusoid-and-line", "quadratic", "digits"} == FEWSHOT_TASKS.keys()
    assert {"omniglot", "miniimagenet", "folder"} <= FEWSHOT_FOLDERS.keys()
    assert load_tasks("sinusoid").id == "sinusoid"
    assert load_tasks("folder", str(_folder(tmp_path / "mine", {"a": 1, "b": 2}))).id == "mine"
    monkeypatch.chdir(tmp_path)
    Path("fewshot_tasks_of_mine.py").write_text(
        "from metarl.fewshot.tasks import sampled_tasks\n"
        "mine = sampled_tasks(lambda rng, episode, split: (), (1,), id='mine')\n"
        "other = 3\n"
    )
    assert load_tasks("fewshot_tasks_of_mine:mine").id == "mine"
    with pytest.raises(ConfigError, match="expected a FewShotTasks, found int"):
        load_tasks("fewshot_tasks_of_mine:other")
    for name, data, message in (
        ("omniglott", None, "unknown few-shot tasks 'omniglott'. Did you mean 'omniglot'? Valid choices: digits, "),
        ("omniglott", None, "Tasks of your own: module:attribute, e.g. my_tasks:characters."),
        (
            "omniglot",
            None,
            "the tasks omniglot are read from a folder of data, and none is given (--data FOLDER). ",
        ),
        ("miniimagenet", "nowhere", "there is no folder nowhere to read the tasks miniimagenet from. Lay it out"),
        ("glyphs", "mine", "the tasks glyphs read no data, got the folder mine; only these do: omniglot, "),
        ("fewshot_tasks_of_mine:mine", "mine", "read no data, got the folder mine"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_tasks(name, data)
        assert message in str(caught.value)


def test_digits_name_their_extra() -> None:
    code = (
        "import sys\nsys.modules['sklearn'] = None\nfrom metarl.fewshot.tasks import load_tasks\nload_tasks('digits')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = "digits needs the package scikit-learn, which is not installed: pip install 'metarl-torch[digits]'"
    assert told in result.stderr
