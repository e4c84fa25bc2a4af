"""Cells of tables whose scores are those of a few-shot learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metarl.benchmarks.engines import Report
from metarl.benchmarks.fewshot.cells import Cell, train_and_score
from metarl.benchmarks.reproduce.table import FolderSource
from metarl.config import TrainConfig, from_dict
from metarl.fewshot.presets import Preset, preset_of
from metarl.fewshot.types import EpisodeConfig
from metarl.statistics import Float, number_text


@dataclass(frozen=True)
class FewShotSource(FolderSource):
    """Train a few-shot learner, and score it on test tasks of one size or several.

    A cell's measure is a size, e.g. ``20way-1shot``, or a number of adaptation steps, where there is one size; default:
    that size, after all steps. Accuracies are in per cent.

    Attributes:
        learner: its name.
        tasks: name of the family.
        shots: labelled examples of each class in training.
        ways: classes of the test tasks; several only for a learner whose training does not depend on them.
        test_shots: labelled examples of each class in the test.
        train: fields of TrainConfig that differ from the preset's.
        settings: fields of the learner's config that do.
        num_tasks: test tasks to score on.
        data: folder that the tasks are read from, for families that are.
    """

    learner: str
    tasks: str
    shots: int
    ways: tuple[int, ...]
    test_shots: int
    train: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    num_tasks: int = 1000
    data: str | None = None

    trained: ClassVar[bool] = True

    def steps(self, fraction: float) -> int:
        """Tasks of training, as there is no environment."""
        config = from_dict(TrainConfig, self._train(fraction), from_dict(TrainConfig, self._preset.train))
        return config.num_iterations * config.meta_batch_size

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any] | None:
        """Train with a fraction of the meta-updates, and score."""
        contents = train_and_score(self._cells(seed, fraction), self.data, runs, self.num_tasks, report)
        if contents is None:
            return None
        return {"sizes": dict(zip(self._sizes, contents, strict=True)), "manifest": contents[0]["manifest"]}

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """Scores ``[task]``: squared errors, or accuracies in per cent."""
        sizes, size, column = content["sizes"], self._sizes[0], -1
        if measure in sizes:
            size = measure
        elif measure:
            column = sizes[size]["steps"].index(int(measure))
        scores = np.asarray(sizes[size]["scores"], np.float64)[:, column]
        return scores if sizes[size]["kind"] == "regression" else 100.0 * scores

    def remark(self, content: Mapping[str, Any]) -> str:
        """How long it was trained."""
        score = content["sizes"][self._sizes[0]]
        minutes = number_text(score["seconds"] / 60)
        tasks = score["config"]["train"]["meta_batch_size"]
        return f"{score['iterations']:,} iterations of {tasks} task(s) a seed, {minutes} min"

    def reading(self, folder: str) -> FewShotSource:
        """The same, reading ``folder``."""
        return dataclasses.replace(self, data=folder)

    @property
    def _sizes(self) -> list[str]:
        return [cell.size for cell in self._cells(0, 1.0)]

    @property
    def _preset(self) -> Preset:
        return preset_of(self.learner, self.tasks, EpisodeConfig(self.ways[0], self.shots))

    def _train(self, fraction: float) -> dict[str, Any]:
        """Fields of TrainConfig with a fraction of the meta-updates."""
        if fraction == 1.0:
            return dict(self.train)
        whole = from_dict(TrainConfig, self.train, from_dict(TrainConfig, self._preset.train)).num_iterations
        return {**self.train, "num_iterations": max(1, round(fraction * whole))}

    def _cells(self, seed: int, fraction: float) -> list[Cell]:
        train = self._train(fraction)
        variant = "" if fraction == 1.0 else f"of{train['num_iterations']}"
        return [
            Cell(self.learner, self.tasks, ways, self.shots, self.test_shots, seed, train, self.settings, variant)
            for ways in self.ways
        ]
