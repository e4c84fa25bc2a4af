"""Cells of tables whose scores are those of a few-shot learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metarl.benchmarks.cells import BENCHMARK_SEED
from metarl.benchmarks.engines import Report
from metarl.benchmarks.reproduce.costs import extrapolated
from metarl.benchmarks.reproduce.table import FolderSource
from metarl.config import TrainConfig, from_dict
from metarl.fewshot.evaluation import EVALUATION_BATCH, evaluate, score_batch
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.presets import preset_of
from metarl.fewshot.setup import Given, Setup, resolve
from metarl.fewshot.tasks.registry import FEWSHOT_FOLDERS
from metarl.fewshot.types import EpisodeConfig
from metarl.runs.files import safe_name
from metarl.runs.logger import read_metrics
from metarl.seeding import numpy_stream
from metarl.statistics import Float, number_text


@dataclass(frozen=True)
class FewShotSource(FolderSource):
    """Train a few-shot learner, and score it on test tasks of one size or several.

    A cell's measure is a size, e.g. ``20way-1shot``, or a number of adaptation steps, where there is one size; default:
    that size, after all steps. Accuracies are in per cent.

    Attributes:
        learner: its name.
        tasks: name of the family.
        ways: classes of the test tasks, and of training; several only for a learner that has ``train_ways``, whose
            training does not depend on them.
        shots: labelled examples of each class in training.
        test_shots: the same in the test; default: as in training.
        test_queries: examples of each class to be predicted in a test task, which networks that normalise by them see
            together; default: as the family's tasks have.
        train: fields of TrainConfig that differ from the preset's.
        settings: fields of the learner's config that do.
        num_tasks: test tasks to score on.
        data: folder that the tasks are read from, for families that are.
    """

    learner: str
    tasks: str
    ways: tuple[int, ...]
    shots: int
    _: KW_ONLY
    test_shots: int | None = None
    test_queries: int | None = None
    train: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    num_tasks: int = 1000
    data: str | None = None

    trained: ClassVar[bool] = True

    def steps(self, fraction: float) -> int:
        """Tasks of training, as there is no environment."""
        config = self._train_config(0, fraction)
        return config.num_iterations * config.meta_batch_size

    @property
    def kind(self) -> str:
        """Learner and size of its tasks, on which its time for one depends."""
        return f"{self.learner} {self.ways[0]}-way {self.shots}-shot"

    def speed(self, seconds: float) -> float:
        """That of meta-updates and of the scoring behind them; without the images, on glyphs of their size."""
        source = self
        if self.tasks in FEWSHOT_FOLDERS and self.data is None:
            preset = preset_of(self.learner, self.tasks, EpisodeConfig(self.ways[0], self.shots))
            train, settings = {**preset.train, **self.train}, {**preset.learner, **self.settings}
            source = dataclasses.replace(self, tasks="glyphs", train=train, settings=settings)
        setup = source._setup(0, 1.0)
        learner, size = setup.build(), setup.train_config.meta_batch_size

        def iterate(num_tasks: int) -> None:
            episode = learner.training_episode(setup.episode)
            batch = setup.tasks.sample("train", num_tasks, episode, numpy_stream(0, "speed"))
            learner.meta_update(batch.to(learner.device))

        tested = next(iter(source._tested(setup).values()))

        def score(num_tasks: int) -> None:
            batch = setup.tasks.sample("test", num_tasks, tested, numpy_stream(0, "speed"))
            score_batch(learner, batch.to(learner.device), learner.num_eval_adaptations)

        training = setup.train_config.num_iterations * extrapolated(iterate, size, seconds / 2, 1)
        batches = len(self.ways) * self.num_tasks / EVALUATION_BATCH
        scoring = batches * extrapolated(score, EVALUATION_BATCH, seconds / 2, 1)
        return source.steps(1.0) / (training + scoring)

    def run(self, seed: int, fraction: float, runs: Path, report: Report) -> dict[str, Any] | None:
        """Train with a fraction of the meta-updates, and score."""
        setup = self._setup(seed, fraction)
        this = Experiment.begin(setup, runs, self._run_name(seed, setup.train_config.num_iterations, fraction))
        if not this.train(lambda progress: report("training", progress.iteration, progress.num_iterations)):
            return None
        metrics = read_metrics(this.run.metrics)
        sizes = {}
        for size, episode in self._tested(setup).items():
            learner, _ = this.load(spec=setup.tasks.spec(episode))
            found = evaluate(
                learner,
                setup.tasks,
                episode,
                num_tasks=self.num_tasks,
                seed=BENCHMARK_SEED,
                listener=lambda done: report("test tasks", done, self.num_tasks),
            )
            scores = np.round(found.scores, 5).tolist()
            sizes[size] = {"queries": episode.queries, "steps": found.steps, "scores": scores}
        return {
            "kind": setup.kind,
            "sizes": sizes,
            "iterations": len(metrics),
            "training_seconds": this.training_seconds,
            "curve": _curve(metrics),
            "config": {name: value for name, value in this.run.read_config().items() if name != "data"},
            # Without the command line, which names folders of the machine.
            "manifest": {name: value for name, value in this.run.read_manifest().items() if name != "command"},
        }

    def values(self, content: Mapping[str, Any], measure: str) -> Float:
        """Scores ``[task]``: squared errors, or accuracies in per cent."""
        sizes, column = content["sizes"], -1
        size = measure if measure in sizes else next(iter(sizes))
        if measure and measure not in sizes:
            column = sizes[size]["steps"].index(int(measure))
        scores = np.asarray(sizes[size]["scores"], np.float64)[:, column]
        return scores if content["kind"] == "regression" else 100.0 * scores

    def remark(self, content: Mapping[str, Any], measure: str) -> str:
        """How long it was trained, and what was peculiar in the test."""
        tasks, minutes = content["config"]["train"]["meta_batch_size"], content["training_seconds"] / 60
        training = f"{content['iterations']:,} iterations of {tasks} task(s), {number_text(minutes)} min a seed"
        return training if self.test_queries is None else f"{training}; {self.test_queries} query(s) of each class"

    def reading(self, folder: str) -> FewShotSource:
        """The same, reading ``folder``."""
        return dataclasses.replace(self, data=folder)

    def _train_config(self, seed: int, fraction: float) -> TrainConfig:
        preset = preset_of(self.learner, self.tasks, EpisodeConfig(self.ways[0], self.shots))
        full = from_dict(TrainConfig, {"seed": seed, **self.train}, from_dict(TrainConfig, preset.train))
        return dataclasses.replace(full, num_iterations=max(1, round(fraction * full.num_iterations)))

    def _setup(self, seed: int, fraction: float) -> Setup:
        given = Given(self.learner, self.tasks, self.data, self.ways[0], self.shots)
        return resolve(given, train=dataclasses.asdict(self._train_config(seed, fraction)), settings=self.settings)

    def _run_name(self, seed: int, num_iterations: int, fraction: float) -> str:
        size = f"{self.ways[0]}way-{self.test_shots or self.shots}shot" if len(self.ways) == 1 else f"{self.shots}shot"
        part = "" if fraction == 1.0 else f"-of{num_iterations}"
        return safe_name(f"{self.tasks}-{size}-{self.learner}{part}-seed{seed}")

    def _tested(self, setup: Setup) -> dict[str, EpisodeConfig]:
        """Sizes of the test tasks by what they are called."""
        shots, queries = self.test_shots or self.shots, self.test_queries or setup.episode.queries
        return {
            f"{ways}way-{shots}shot": dataclasses.replace(setup.episode, ways=ways, shots=shots, queries=queries)
            for ways in self.ways
        }


def _curve(metrics: Sequence[Mapping[str, Any]], points: int = 100) -> dict[str, list[float]]:
    """Training scores over iterations, means of as many pieces as a figure shows."""
    name = next(key for key in metrics[0] if key.startswith(("train/accuracy_", "train/error_")))
    pieces = np.array_split(np.array([line[name] for line in metrics]), min(points, len(metrics)))
    ends = np.cumsum([len(piece) for piece in pieces])
    return {"iteration": ends.tolist(), "score": [round(float(piece.mean()), 5) for piece in pieces]}
