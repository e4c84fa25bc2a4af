"""Families of few-shot tasks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from metarl.errors import ConfigError, unknown_name
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.tasks.omniglot import WHERE as WHERE_OMNIGLOT
from metarl.fewshot.tasks.omniglot import omniglot
from metarl.fewshot.tasks.sinusoid import Sinusoid, SinusoidAndLine
from metarl.plugins import load_attribute

FEWSHOT_TASKS: dict[str, Callable[[], FewShotTasks]] = {
    "sinusoid": Sinusoid,
    "sinusoid-and-line": SinusoidAndLine,
}
"""Our own families that need no data from outside, by name; nothing is made before it is called."""

FEWSHOT_FOLDERS: dict[str, tuple[Callable[[Path], FewShotTasks], str]] = {
    "omniglot": (omniglot, WHERE_OMNIGLOT),
    "omniglot-1200": (lambda folder: omniglot(folder, split="1200"), WHERE_OMNIGLOT),
    "omniglot-random": (lambda folder: omniglot(folder, split="random"), WHERE_OMNIGLOT),
    "omniglot-background": (lambda folder: omniglot(folder, split="background"), WHERE_OMNIGLOT),
}
"""Families that are read from a folder: how, and what to put there."""


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
            raise ConfigError(f"the tasks {name} are read from a folder of data, and none is given. {where}")
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


def descriptions() -> dict[str, str]:
    """What each family is, in a line, by name."""
    return {
        name: (inspect.getdoc(load) or "").split("\n")[0]
        for name, load in (*FEWSHOT_TASKS.items(), *((name, load) for name, (load, _) in FEWSHOT_FOLDERS.items()))
    }
