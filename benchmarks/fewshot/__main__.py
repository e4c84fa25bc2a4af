"""Few-shot learners on one family of tasks, beside published numbers.

``python -m metarl.benchmarks.fewshot --tasks glyphs --sizes 5-1 5-5 20-1`` trains what is missing and writes table and
figures to ``benchmarks/results/fewshot-<tasks>`` from all scores in that folder. Interrupted, the same command goes on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import tyro

from metarl.benchmarks.cells import console
from metarl.benchmarks.engines import LOCAL, Engine
from metarl.benchmarks.fewshot.cells import Cell, read_scores, run_cells
from metarl.benchmarks.fewshot.page import Scores, write_page
from metarl.errors import ConfigError, told_errors
from metarl.fewshot.setup import Given, resolve
from metarl.networks.backbones import Precision
from metarl.runs.files import safe_name


@dataclass(frozen=True)
class Options:
    """Train and score few-shot learners on one family of tasks."""

    tasks: str = "glyphs"
    """Family of tasks."""
    learners: tuple[str, ...] = ("maml", "protonet")
    """Learners, each with its preset for these tasks."""
    sizes: tuple[str, ...] = ("5-1",)
    """Sizes of tasks, as ways-shots; in regression 1-shots."""
    test_shots: int | None = None
    """Shots in the test, if not as many as in training."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of training."""
    num_iterations: int | None = None
    """Meta-updates; default: the preset's."""
    precision: Precision | None = None
    """Precision of convolutions, for all of the learners; default: the preset's."""
    data: str | None = None
    """Folder that the tasks are read from, for those that are."""
    test_tasks: int = 1000
    """Test tasks to score on."""
    results: Path = Path("benchmarks/results")
    """Scores, table and figures go to a folder in here."""
    runs: Path = Path("runs/benchmark-fewshot")
    """Where the run folders go."""
    engine: tyro.conf.OmitArgPrefixes[Engine] = LOCAL


@told_errors()
def main() -> None:
    """Run the benchmark."""
    options = tyro.cli(Options)
    if options.test_tasks < 2:
        raise ConfigError(f"--test-tasks must be 2 or more, got {options.test_tasks}.")
    train = {} if options.num_iterations is None else {"num_iterations": options.num_iterations}
    settings = {} if options.precision is None else {"precision": options.precision}
    cells = []
    for size in options.sizes:
        if not (match := re.fullmatch(r"(\d+)-(\d+)", size)):
            raise ConfigError(f"--sizes are written as ways-shots, e.g. 5-1, got {size!r}.")
        ways, shots = int(match[1]), int(match[2])
        cells += [
            Cell(learner, options.tasks, ways, shots, options.test_shots or shots, seed, train, settings)
            for learner in options.learners
            for seed in options.seeds
        ]
    folder = options.results / safe_name(f"fewshot-{options.tasks}")
    scores = run_cells(cells, options.data, folder, options.runs, options.test_tasks, options.engine)
    if len(scores) == len(cells):
        known = read_scores(folder)
        text = write_page(known, folder, f"Few-shot learning on {options.tasks}", _commands(known, options.data))
        console.print(text, soft_wrap=True, markup=False)


def _commands(scores: Scores, data: str | None) -> list[str]:
    """The commands behind scores: learners that share seeds, sizes and budget in one line."""
    lines: dict[str, list[str]] = {}
    for learner in dict.fromkeys(cell.learner for cell in scores):
        chosen = {cell: score for cell, score in scores.items() if cell.learner == learner}
        by_rest: dict[str, dict[str, None]] = {}
        for cell, score in chosen.items():
            given = Given(cell.learner, cell.tasks, data, cell.ways, cell.shots)
            words = ["--seeds", *(str(other.seed) for other in chosen if other.size == cell.size)]
            preset = resolve(given)
            if score["iterations"] != preset.train_config.num_iterations:
                words += ["--num-iterations", str(score["iterations"])]
            precision = score["config"][cell.learner].get("precision", "float32")  # Older ones had no other.
            if precision != preset.learner_config.precision:
                words += ["--precision", precision]
            if cell.test_shots != cell.shots:
                words += ["--test-shots", str(cell.test_shots)]
            words += ["--test-tasks", str(len(score["scores"]))] + (["--data", "FOLDER"] if data else [])
            by_rest.setdefault(" ".join(words), {})[f"{cell.ways}-{cell.shots}"] = None
        for rest, sizes in by_rest.items():
            lines.setdefault(f"--sizes {' '.join(sizes)} {rest}", []).append(learner)
    tasks = next(iter(scores)).tasks
    return [
        f"python -m metarl.benchmarks.fewshot --tasks {tasks} --learners {' '.join(learners)} {rest}"
        for rest, learners in lines.items()
    ]


if __name__ == "__main__":
    main()
