"""Families of few-shot tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.tasks import miniimagenet, omniglot, own
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.tasks.digits import digits
from metarl.fewshot.tasks.glyphs import glyphs
from metarl.fewshot.tasks.quadratic import Quadratic
from metarl.fewshot.tasks.sinusoid import Sinusoid, SinusoidAndLine
from metarl.plugins import load_attribute

FEWSHOT_TASKS: dict[str, Callable[[], FewShotTasks]] = {
    "glyphs": glyphs,
    "sinusoid": Sinusoid,
    "sinusoid-and-line": SinusoidAndLine,
    "quadratic": Quadratic,
    "digits": digits,
}
"""Our own families that need no data from outside, by name; nothing is made before it is called."""

FEWSHOT_FOLDERS: dict[str, tuple[Callable[[Path], FewShotTasks], str]] = {
    "omniglot": (omniglot.omniglot, omniglot.WHERE),
    "omniglot-1200": (lambda folder: omniglot.omniglot(folder, split="1200"), omniglot.WHERE),
    "omniglot-random": (lambda folder: omniglot.omniglot(folder, split="random"), omniglot.WHERE),
    "omniglot-background": (lambda folder: omniglot.omniglot(folder, split="background"), omniglot.WHERE),
    "miniimagenet": (miniimagenet.miniimagenet, miniimagenet.WHERE),
    "folder": (own.image_folder, own.WHERE),
}
"""Families that are read from a folder: how, and what to put there."""


DESCRIPTIONS = {
    "glyphs": "characters of a font, with new alphabets to test on; needs no data",
    "sinusoid": "sinusoids of random amplitude and phase, to be regressed",
    "sinusoid-and-line": "the same, half of them lines, with noise",
    "quadratic": "quadratic functions of ten numbers, for learned optimisers (--backbone linear)",
    "digits": "scikit-learn's digits, for learned optimisers",
    "omniglot": "handwritten characters, by the lists of Vinyals et al.; --data FOLDER",
    "omniglot-1200": "the same without a validation split",
    "omniglot-random": "the same, divided without regard to alphabets",
    "omniglot-background": "the same, as Lake et al. divided it",
    "miniimagenet": "photographs of 84 x 84; --data FOLDER",
    "folder": "your own images, a folder for each class; --data FOLDER",
}
"""What each family is."""


def load_tasks(name: str, data: Path | str | None = None) -> FewShotTasks:
    """A family of few-shot tasks.

    Args:
        name: one of ours, or ``module:attribute`` for a family of one's own (the module seen from this folder).
        data: the folder of those that are read from one.

    Raises:
        ConfigError: for a name or folder that cannot be, a folder where none is read, or none where one is.
    """
    if name in FEWSHOT_FOLDERS:
        load, where = FEWSHOT_FOLDERS[name]
        if data is None:
            raise ConfigError(
                f"the tasks {name} are read from a folder of data, and none is given (--data FOLDER). {where}"
            )
        folder = Path(data).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder} to read the tasks {name} from. {where}")
        return load(folder)
    if ":" not in name and name not in FEWSHOT_TASKS:
        error = unknown_name("few-shot tasks", name, [*FEWSHOT_TASKS, *FEWSHOT_FOLDERS])
        raise ConfigError(f"{error} Tasks of your own: module:attribute, e.g. my_tasks:characters.")
    if data is not None:
        raise ConfigError(
            f"the tasks {name} read no data, got the folder {data}; only these do: {', '.join(FEWSHOT_FOLDERS)}."
        )
    if name in FEWSHOT_TASKS:
        return FEWSHOT_TASKS[name]()
    tasks = load_attribute(name, "FewShotTasks", lambda value: isinstance(value, FewShotTasks))
    assert isinstance(tasks, FewShotTasks)
    return tasks
