"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people (Lake et al., 2015)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal, get_args

from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.tasks.classes import ClassTasks
from metarl.fewshot.tasks.folders import class_tasks
from metarl.fewshot.tasks.images import Damaged, ImageFormat, list_folders, list_images
from metarl.fewshot.types import Split

OmniglotSplit = Literal["vinyals", "1200", "random", "background"]

_PARTS = {"images_background": 964, "images_evaluation": 659}
"""Folders of the data set with the characters in each."""

_VALIDATION = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")

_LAYOUT = "images_background/ALPHABET/characterNN/*.png and images_evaluation/ALPHABET/characterNN/*.png"

WHERE = (
    "Get images_background.zip and images_evaluation.zip from https://github.com/brendenlake/omniglot (folder python), "
    f"unpack both into one folder, so that it holds {_LAYOUT}, and give that folder."
)
"""What to do about missing data."""

_FORMAT = ImageFormat((28, 28), 1, ink=True)


def omniglot(
    folder: Path | str, *, split: OmniglotSplit = "vinyals", rotations: bool = True, damaged: Damaged = "refuse"
) -> ClassTasks:
    """Tasks of Omniglot's characters at 28 x 28, ink 1 on 0.

    Four ways to split the characters:

    - ``vinyals``, the lists of Vinyals et al. (2016) as Snell et al. (2017) published them: the first 1,200 characters
      in the order of folders, background before evaluation, and the other 423 to test on. Of the 1,200, the five
      alphabets that Snell et al. validate on are the validation split (172), which leaves 1,028 to train on.
    - ``1200``: the same with all 1,200 to train on and no validation split, as for the numbers in these papers.
    - ``random``: 1,100, 100 and 423 characters drawn without regard to alphabets, as Finn et al. (2017) did; theirs
      depend on the order in which a disk listed folders, and cannot be had again.
    - ``background``: the 30 alphabets of Lake et al.'s background set, less the five above for validation (792 and
      172), and the 20 of their evaluation set (659).

    Args:
        folder: of the data set.
        split: one of these.
        rotations: see :class:`ClassTasks`; here they are usual.
        damaged: refuse files that cannot be read, or skip them with a warning.

    Raises:
        ConfigError: if the data set is not there as a whole, saying what to put where.
    """
    if split not in get_args(OmniglotSplit):
        raise unknown_name("split of Omniglot", split, get_args(OmniglotSplit))
    folder = Path(folder)
    characters: dict[str, list[Path]] = {}
    for part, expected in _PARTS.items():
        if not (folder / part).is_dir():
            raise ConfigError(f"there is no Omniglot in {folder}, which lacks the folder {part}. {WHERE}")
        alphabets = list_folders(folder / part)
        found = [character for alphabet in alphabets for character in list_folders(alphabet)]
        if len(found) != expected:
            raise ConfigError(f"{folder / part} holds {len(found)} characters, expected {expected}. {WHERE}")
        characters.update({str(path.relative_to(folder)): list_images(path) for path in found})
    name = "omniglot" if split == "vinyals" else f"omniglot-{split}"
    return class_tasks(
        name,
        folder,
        {part: {name: characters[name] for name in names} for part, names in _divide(list(characters), split).items()},
        _FORMAT,
        rotations=rotations,
        damaged=damaged,
    )


def _divide(names: list[str], split: OmniglotSplit) -> dict[Split, list[str]]:
    """The characters of each split; ``names`` are in the order of folders."""
    num_background = _PARTS["images_background"]
    if split == "random":
        random.Random(1).shuffle(names)
        return {"train": names[:1100], "validation": names[1100:1200], "test": names[1200:]}
    num_known = num_background if split == "background" else 1200
    known, test = names[:num_known], names[num_known:]
    if split == "1200":
        return {"train": known, "test": test}
    held_out = {name for name in known[:num_background] if name.split("/")[1] in _VALIDATION}
    return {
        "train": [name for name in known if name not in held_out],
        "validation": [name for name in known if name in held_out],
        "test": test,
    }
