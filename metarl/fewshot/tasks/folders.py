"""Classes whose examples are image files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metarl.errors import ConfigError
from metarl.fewshot.tasks.classes import Classes, ClassTasks
from metarl.fewshot.tasks.images import Damaged, ImageFormat, cached_images
from metarl.fewshot.types import Split


def class_tasks(
    id: str,
    folder: Path,
    splits: Mapping[Split, Mapping[str, Sequence[Path]]],
    image_format: ImageFormat,
    *,
    rotations: bool = False,
    damaged: Damaged = "refuse",
) -> ClassTasks:
    """Tasks of classes of image files, decoded once (see :func:`cached_images`).

    Args:
        id: the family's name.
        folder: where the files lie.
        splits: for each split the files of its classes by name.
        image_format: what files become; in the tasks it holds the size and channels that they turn out to have.
        rotations: see :class:`ClassTasks`.
        damaged: refuse files that cannot be read, or skip them with a warning.

    Raises:
        ConfigError: for a class without images, and as :class:`ClassTasks` and :func:`read_images`.
    """
    for split, classes in splits.items():
        for name, members in classes.items():
            if not members:
                raise ConfigError(
                    f"{id}: the class {name!r} of the {split} split has no images in {folder}. Add some, or remove it."
                )
    # In one order, so that all ways to split the same files share a cache.
    files = sorted({file for classes in splits.values() for members in classes.values() for file in members})
    if not files:
        raise ConfigError(f"{id}: there are no images in {folder}; expected folders of them, one for each class.")
    images, kept = cached_images(files, folder, image_format, damaged=damaged, what=id)
    rows = {files[position]: row for row, position in enumerate(kept.tolist())}
    held: dict[Split, Classes] = {}
    for split, classes in splits.items():
        of_class = [[rows[file] for file in members if file in rows] for members in classes.values()]
        for name, found in zip(classes, of_class, strict=True):
            if not found:
                raise ConfigError(f"{id}: no image of the class {name!r} in {folder} can be read. Remove that class.")
        counts = np.asarray([len(found) for found in of_class], np.int64)
        held[split] = Classes(images[np.concatenate([*of_class, np.empty(0, np.int64)])], counts, tuple(classes))
    resolved = ImageFormat((images.shape[2], images.shape[3]), 1 if images.shape[1] == 1 else 3, image_format.ink)
    return ClassTasks(id, held, rotations=rotations, image_format=resolved)
