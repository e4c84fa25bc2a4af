"""Published models: trained runs that come with metarl, called ``model:NAME`` wherever a run's folder is read.

Each is a folder of config.json, a checkpoint of parameters alone, and model.json, which tells its score and origin. It
is for evaluation: without the optimiser's state nothing can be trained further.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metarl.errors import CheckpointError, unknown_name
from metarl.runs.files import read_json, typed
from metarl.statistics import Interval

PREFIX = "model:"
"""What the name of a published model begins with, where it stands in the place of a folder."""

CARD = "model.json"
"""What makes a run's folder that of a published model."""

NO_RESUME = "is a published model, for evaluation only: without its optimiser's state training cannot go on"
"""Why a published model is not trained further, for messages."""


def models_folder() -> Path:
    """Where the published models lie, in a checkout as in an installed metarl."""
    # Data beside the benchmarks: found without importing them.
    spec = importlib.util.find_spec("metarl.benchmarks")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "models"


def is_published(folder: Path) -> bool:
    """Whether a run's folder is that of a published model."""
    return (folder / CARD).is_file()


def published_names() -> list[str]:
    """Names of the published models."""
    return sorted(folder.parent.name for folder in models_folder().glob(f"*/{CARD}"))


def run_path(path: Path | str) -> Path:
    """The folder that ``path`` means: of a published model for ``model:NAME``, else ``path`` itself.

    Raises:
        ConfigError: for a name that no model has.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return Path(path)
    name, names = text.removeprefix(PREFIX), published_names()
    if name not in names:
        raise unknown_name("published model", name, names)
    return models_folder() / name


@dataclass(frozen=True)
class Score:
    """How a published model did on held-out tasks.

    Attributes:
        what: ``"return"``, as ``metarl evaluate`` has it, or ``"success"`` for the share of successes by Meta-World's
            protocol.
        num_tasks: tasks, or goals of all tasks, that it is a mean over.
        seed: seed for tasks, environments and actions.
        by_shot: mean and its 95 % interval after each number of adaptations, or after the last one alone.
    """

    what: Literal["return", "success"]
    num_tasks: int
    seed: int
    by_shot: tuple[Interval, ...]

    @property
    def official(self) -> bool:
        """Whether it is of Meta-World's protocol."""
        return self.what == "success"

    @property
    def last(self) -> Interval:
        """After the last adaptation, or in the last episode of a memory."""
        return self.by_shot[-1]

    @classmethod
    def from_json(cls, content: dict[str, Any], where: Path) -> Score:
        """The score in a model.json.

        Raises:
            CheckpointError: if something is missing or of another kind.
        """
        rows = typed(content, "by_shot", list, where)
        named = [dict(zip(("mean", "low", "high"), row, strict=False)) for row in rows if isinstance(row, list)]
        by_shot = tuple(
            (typed(row, "mean", float, where), typed(row, "low", float, where), typed(row, "high", float, where))
            for row in named
        )
        if not by_shot or len(by_shot) != len(rows):
            raise CheckpointError(f"{where} is damaged: 'by_shot' must be [mean, low, high] for each shot, got {rows}.")
        what = typed(content, "what", str, where)
        if what not in ("return", "success"):
            raise CheckpointError(f"{where} is damaged: 'what' must be 'return' or 'success', got {what!r}.")
        return cls(
            "success" if what == "success" else "return",
            typed(content, "num_tasks", int, where),
            typed(content, "seed", int, where),
            by_shot,
        )


@dataclass(frozen=True)
class PublishedModel:
    """What model.json tells of a published model.

    Attributes:
        folder: the model's, whose name is its own.
        agent: the agent's name.
        tasks: id of the tasks that it was trained on.
        iteration: meta-updates behind it.
        env_steps: environment steps of its training.
        training_seed: seed of its training.
        score: on held-out tasks.
        command: what trained it.
        commit: of metarl, in a tree without changes.
        versions: of what it was trained with, by package.
    """

    folder: Path
    agent: str
    tasks: str
    iteration: int
    env_steps: int
    training_seed: int
    score: Score
    command: str
    commit: str
    versions: dict[str, str]

    @property
    def name(self) -> str:
        """What stands after ``model:``."""
        return self.folder.name

    @property
    def num_bytes(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    @property
    def evaluate_command(self) -> str:
        """The command that gives its score again."""
        chosen = "--official" if self.score.official else f"--num-tasks {self.score.num_tasks}"
        return f"metarl evaluate {PREFIX}{self.name} {chosen} --seed {self.score.seed}"

    @classmethod
    def read(cls, folder: Path) -> PublishedModel:
        """The model in a folder.

        Raises:
            CheckpointError: if its model.json cannot be read, or lacks something.
        """
        where = folder / CARD
        content = read_json(where)
        return cls(
            folder,
            typed(content, "agent", str, where),
            typed(content, "tasks", str, where),
            typed(content, "iteration", int, where),
            typed(content, "env_steps", int, where),
            typed(content, "training_seed", int, where),
            Score.from_json(typed(content, "score", dict, where), where),
            typed(content, "command", str, where),
            typed(content, "commit", str, where),
            typed(content, "versions", dict, where),
        )


def published_models() -> list[PublishedModel]:
    """All published models, by name.

    Raises:
        CheckpointError: if one of them is damaged.
    """
    return [PublishedModel.read(models_folder() / name) for name in published_names()]
