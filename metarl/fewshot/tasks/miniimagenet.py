"""miniImageNet: 100 classes of ImageNet with 600 images each, at 84 x 84 (Vinyals et al., 2016)."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from metarl.errors import ConfigError
from metarl.fewshot.tasks.classes import ClassTasks
from metarl.fewshot.tasks.folders import class_tasks
from metarl.fewshot.tasks.images import Damaged, ImageFormat, list_folders, list_images
from metarl.fewshot.types import Split

_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
"""Splits by the names of their files and folders."""

WHERE = (
    "Lay it out in one of its two usual ways: images/*.jpg with train.csv, val.csv and test.csv of Ravi and Larochelle "
    "(columns filename and label; from https://github.com/twitter-research/meta-learning-lstm, folder "
    "data/miniImagenet), or train/CLASS/*, val/CLASS/* and test/CLASS/*. The images are ImageNet's, whose licence "
    "forbids to pass them on: get them from https://image-net.org."
)
"""What to do about missing data."""


def miniimagenet(folder: Path | str, *, damaged: Damaged = "refuse") -> ClassTasks:
    """Tasks of miniImageNet in colour at 84 x 84; its splits are 64, 16 and 20 classes.

    The splits are those of the data: the lists of Ravi and Larochelle (2017), or folders.

    Args:
        folder: of the data set, in one of its usual layouts.
        damaged: refuse files that cannot be read, or skip them with a warning.

    Raises:
        ConfigError: if the data set is not there, saying what to put where; for a list that names missing images.
    """
    folder = Path(folder)
    if all((folder / f"{name}.csv").is_file() for name in _SPLITS) and (folder / "images").is_dir():
        splits = {split: _listed(folder, folder / f"{name}.csv") for name, split in _SPLITS.items()}
    elif all((folder / name).is_dir() for name in _SPLITS):
        splits = {
            split: {path.name: list_images(path) for path in list_folders(folder / name)}
            for name, split in _SPLITS.items()
        }
    else:
        raise ConfigError(f"there is no miniImageNet in {folder}. {WHERE}")
    return class_tasks("miniimagenet", folder, splits, ImageFormat((84, 84), 3), damaged=damaged)


def _listed(folder: Path, path: Path) -> dict[str, list[Path]]:
    """Images by class, as a list of file names and labels says."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise ConfigError(f"{path} has the columns {reader.fieldnames}, expected filename and label. {WHERE}")
        rows = [(row["filename"], row["label"]) for row in reader]
    if repeated := [name for name, times in Counter(name for name, _ in rows).items() if times > 1]:
        raise ConfigError(
            f"{path} lists {len(repeated)} images more than once, the first of them {repeated[0]}; expected each once, "
            "as an image would be a labelled example of a task and asked for in it as well."
        )
    there = {image.name for image in list_images(folder / "images")}
    missing = [name for name, _ in rows if name not in there]
    if missing:
        raise ConfigError(
            f"{path} lists {len(missing)} images that {folder / 'images'} lacks, the first of them {missing[0]}; "
            f"expected all {len(rows)}. {WHERE}"
        )
    classes: dict[str, list[Path]] = {}
    for name, label in rows:
        classes.setdefault(label, []).append(folder / "images" / name)
    return classes
