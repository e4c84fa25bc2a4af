"""Few-shot tasks of one's own classes: a folder of images, or an array with labels."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Mapping, Sized
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.tasks.classes import Classes, ClassTasks
from metarl.fewshot.tasks.folders import class_tasks
from metarl.fewshot.tasks.images import Damaged, ImageFormat, list_folders, list_images
from metarl.fewshot.types import Split

Fractions: TypeAlias = tuple[float, float, float]
"""Shares of the classes for training, validation and test."""

WHERE = (
    "Make a folder with one folder of images for each class, CLASS/*.png or *.jpg; or with three such folders, "
    "train/CLASS/*, validation/CLASS/* and test/CLASS/*."
)
"""What to do about missing data."""

_THIRDS: Fractions = (0.6, 0.2, 0.2)


def image_folder(
    folder: Path | str,
    fractions: Fractions | None = None,
    *,
    id: str | None = None,
    size: tuple[int, int] | None = None,
    channels: Literal[1, 3] | None = None,
    ink: bool = False,
    rotations: bool = False,
    damaged: Damaged = "refuse",
    seed: int = 0,
) -> ClassTasks:
    """Tasks of a folder that holds a folder of images for each class.

    Where it holds folders ``train``, ``validation`` (or ``val``) and ``test`` of such folders instead, these are the
    splits; the validation split may be missing.

    Args:
        folder: of the data.
        fractions: shares of the classes for training, validation and test, drawn at random; 0.6, 0.2 and 0.2 unless
            there are folders for the splits.
        id: the family's name; unless given, the folder's.
        size: height and width that images are resized to, whatever their proportions; needed if sizes differ.
        channels: 1 for grey, 3 for colour; None for 1 if all images are grey.
        ink: whether images are dark strokes on a light ground, to become 1 on 0.
        rotations: whether turned classes are further classes, see :class:`ClassTasks`.
        damaged: refuse files that cannot be read, or skip them with a warning.
        seed: of the random division.

    Raises:
        ConfigError: for a folder without such a layout, and as :class:`ClassTasks` and
            :func:`metarl.fewshot.tasks.images.read_images`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}. {WHERE}")
    id = folder.resolve().name if id is None else id
    parts: dict[str, Split] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
    found = {path.name: path for path in list_folders(folder)}
    splits: dict[Split, dict[str, list[Path]]] = {}
    is_divided = {"train", "test"} <= found.keys() <= parts.keys() and not {"validation", "val"} <= found.keys()
    if is_divided and all(list_folders(found[name]) for name in found):
        if fractions is not None:
            raise ConfigError(
                f"{folder} is divided already, into {', '.join(found)}; leave out fractions, got {fractions}."
            )
        for name, split in parts.items():
            if name in found:
                splits[split] = {path.name: _images_of(path) for path in list_folders(found[name])}
    else:
        divided = divide(list(found), fractions or _THIRDS, seed)
        splits = {split: {name: _images_of(found[name]) for name in names} for split, names in divided.items()}
    if not any(splits.values()):
        raise ConfigError(f"{folder} holds no folders of images. {WHERE}")
    image_format = ImageFormat(size, channels, ink)
    tasks = class_tasks(id, folder, splits, image_format, rotations=rotations, damaged=damaged)
    tasks.warn_of_copies()
    return tasks


def _images_of(path: Path) -> list[Path]:
    """Those of a class, which lie in its folder itself: what is in folders inside it would be left out unseen."""
    deeper = [image for inside in list_folders(path) for image in list_images(inside)]
    if deeper:
        raise ConfigError(
            f"{path} was taken for the folder of a class, but {len(deeper)} images lie in folders inside it, the first "
            f"of them {deeper[0]}. {WHERE}"
        )
    return list_images(path)


def labelled_arrays(
    images: ArrayLike,
    labels: ArrayLike,
    splits: Fractions | Mapping[Split, Collection[Hashable]] = _THIRDS,
    *,
    id: str = "arrays",
    rotations: bool = False,
    seed: int = 0,
) -> ClassTasks:
    """Tasks of an array of examples with a label each.

    Args:
        images: ``[example, height, width]``, ``[example, channel, height, width]`` or vectors ``[example, number]``;
            uint8 from 0 to 255, which become 0 to 1, or floating point of any range, which stays as it is.
        labels: ``[example]``, whole numbers or text. They only name classes: numbers may be skipped, since a task
            numbers its classes anew.
        splits: shares of the classes for training, validation and test, drawn at random, or the labels of each split;
            labels in none are left out.
        id: the family's name.
        rotations: whether turned classes are further classes, see :class:`ClassTasks`.
        seed: of the random division.

    Raises:
        ConfigError: for arrays of other shapes or kinds, for labels without examples, and as :class:`ClassTasks`.
    """
    given = labels
    images, labels = _whole("images", images), _whole("labels", labels)
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iuUS":
        raise ConfigError(
            f"labels must be whole numbers or text, one for each of the {len(images)} images, got {labels.dtype} of "
            f"the shape {labels.shape}."
        )
    _require_one_kind(given)
    images = _with_channel(images)
    values, positions = np.unique(labels, return_inverse=True)
    rows = {value: row for row, value in enumerate(values.tolist())}
    known = list(rows)
    if not isinstance(splits, Mapping):
        chosen = divide(known, splits, seed)
    else:
        for split, names in splits.items():
            absent = [name for name in names if name not in rows]
            if split not in get_args(Split):
                raise unknown_name("split", split, get_args(Split))
            if absent:
                raise ConfigError(
                    f"the {split} split names the label {absent[0]!r}, of which there is no example; labels are "
                    f"{', '.join(map(str, known[:8]))}{' ...' if len(known) > 8 else ''}."
                )
        chosen = {split: list(dict.fromkeys(names)) for split, names in splits.items()}
    held: dict[Split, Classes] = {}
    for split, names in chosen.items():
        new = np.full(len(known), -1)
        new[[rows[name] for name in names]] = np.arange(len(names))
        of_example = new[positions]
        is_in = of_example >= 0
        held[split] = Classes.group(images[is_in], of_example[is_in], tuple(map(str, names)))
    tasks = ClassTasks(id, held, rotations=rotations)
    tasks.warn_of_copies()
    return tasks


def _require_one_kind(labels: ArrayLike) -> None:
    """Refuse what an array makes text of: a class called nan is that of the labels that are missing.

    Raises:
        ConfigError: naming the first label that is not like the others.
    """
    values: Any = labels if isinstance(labels, list | tuple) else np.asarray(labels)
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return
    kinds = {True: str | bytes, False: int | np.integer}
    like = kinds[isinstance(values[0], str | bytes)] if len(values) else str
    for row, value in enumerate(values):
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(value, like) or isinstance(value, bool):
            raise ConfigError(
                f"labels must be whole numbers, or all of them text: that of the example {row} is {value!r}, and the "
                f"first one is {values[0]!r}. Name or leave out what has no label, and make the others of one kind."
            )


def divide(names: list[Any], fractions: Fractions, seed: int) -> dict[Split, list[Any]]:
    """Classes of each split, drawn at random.

    Args:
        names: of all classes.
        fractions: shares for training, validation and test.
        seed: of the draw.

    Raises:
        ConfigError: for shares that are no shares of one whole.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"fractions are the shares of classes for training, validation and test: three numbers of 0 or more whose "
            f"sum is 1, e.g. (0.6, 0.2, 0.2), got {fractions}."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    bounds = np.round(np.cumsum((0, *fractions)) * len(names)).astype(int)
    parts: list[NDArray[np.int64]] = [np.sort(order[first:last]) for first, last in itertools.pairwise(bounds)]
    return {split: [names[row] for row in part] for split, part in zip(get_args(Split), parts, strict=True)}


def _whole(name: str, values: ArrayLike) -> NDArray[Any]:
    """An array of what may be nested lists, or objects such as a table's column of text.

    Raises:
        ConfigError: for examples of shapes that differ, or a value that is no array.
    """
    try:
        found = np.asarray(values)
        if found.dtype.kind == "O":
            found = np.asarray(found.tolist())
    except ValueError as error:
        raise ConfigError(
            f"{name} must make one array, all of whose examples have one shape, and these do not: {_kinds(values)}. "
            "Resize or pad them first."
        ) from error
    if found.ndim == 0 or found.dtype.kind == "O":
        got = _kinds(found) if found.ndim else _kind(values)
        raise ConfigError(f"{name} must be an array of numbers or text, one for each example, got {got}.")
    return found


def _kinds(values: Any) -> str:
    """What the examples are, those that are alike told once."""
    found = list(dict.fromkeys(map(_kind, values)))
    return f"{', '.join(found[:3])}{' and others' if len(found) > 3 else ''}"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of the shape {value.shape}"
    return f"a {type(value).__name__} of length {len(value)}" if isinstance(value, Sized) else repr(value)


def _with_channel(images: NDArray[Any]) -> NDArray[Any]:
    """Grey images get an axis of one channel."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim not in (2, 4):
        raise ConfigError(
            "expected images [example, height, width] or [example, channel, height, width], or vectors "
            f"[example, number], got an array of the shape {images.shape}."
        )
    _, first, second, last = images.shape if images.ndim == 4 else (0, 0, 0, 0)
    square_ending = first == second > 4 and last in (2, 4)  # Grey with alpha, or colour with alpha.
    if square_ending or (last in (1, 3) and first not in (1, 3)):
        raise ConfigError(
            f"images of the shape {images.shape} have their channels last, expected [example, channel, height, width]: "
            "images.transpose(0, 3, 1, 2)."
        )
    return images
