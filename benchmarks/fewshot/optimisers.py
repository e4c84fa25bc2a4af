"""Learned optimisers against SGD, momentum, RMSprop and Adam with tuned rates (Andrychowicz et al., 2016, section 3).

``python -m metarl.benchmarks.fewshot.optimisers --tasks quadratic`` trains what is missing; table and figure go to
``benchmarks/results/fewshot-<tasks>``. Rates are tuned on validation functions, each for the lowest loss after the last
step; all are then run on the same test functions from the same starts.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metarl.adaptation import SGD, Adam, RMSprop, UpdateRule
from metarl.benchmarks.cells import BENCHMARK_SEED, console
from metarl.benchmarks.engines import LOCAL, Engine, Job, Report, run_jobs
from metarl.benchmarks.report import notes, provenance
from metarl.errors import ConfigError, told_errors
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.learners.learned_optimiser import LearnedOptimiser
from metarl.fewshot.setup import Given, Setup, resolve
from metarl.fewshot.types import Split
from metarl.plotting import save_figure
from metarl.runs.files import read_json, safe_name, write_atomically
from metarl.seeding import derive, numpy_stream
from metarl.statistics import crossed_interval, number_text

Curves = NDArray[np.float64]

_RATES = tuple(float(rate) for rate in np.logspace(-4, 1, 26))
"""Five for each factor of ten."""

_TUNING_SEED = 5_000_011
"""Draws the functions that rates are tuned on; neither training nor test uses it."""

BASELINES: Mapping[str, Callable[[float], UpdateRule]] = {
    "SGD": lambda rate: SGD(rate),
    "momentum": lambda rate: SGD(rate, momentum=0.9),
    "RMSprop": lambda rate: RMSprop(rate),
    "Adam": lambda rate: Adam(rate),
}
"""Optimisers by hand, by their rate."""


@dataclass(frozen=True)
class Options:
    """Train learned optimisers and run them beside tuned ones."""

    tasks: str = "quadratic"
    """Family of functions: quadratic or digits."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of training."""
    num_iterations: int | None = None
    """Meta-updates; default: the preset's."""
    num_steps: int = 100
    """Steps of all optimisers."""
    test_tasks: int = 500
    """Test functions."""
    tuning_tasks: int = 100
    """Functions that rates are tuned on."""
    results: Path = Path("benchmarks/results")
    """Scores, table and figure go to a folder in here."""
    runs: Path = Path("runs/benchmark-fewshot")
    """Where the run folders go."""
    engine: tyro.conf.OmitArgPrefixes[Engine] = LOCAL


def curves(learner: LearnedOptimiser, setup: Setup, split: Split, num_tasks: int, num_steps: int, seed: int) -> Curves:
    """Losses ``[function, step]`` on the query set before the first step and after each, from starts of ``seed``."""
    batch = setup.tasks.sample(split, num_tasks, setup.episode, numpy_stream(seed, "tasks", 0)).to(learner.device)
    learner.seed(derive(seed, "learner", 0))
    state = learner.begin(num_tasks)
    losses = []
    with torch.no_grad():
        for step in range(num_steps + 1):
            losses.append(learner.losses(state.model, batch.query))
            if step < num_steps:
                state = learner.step(state, batch.support, second_order=False)
    return torch.stack(losses, 1).double().cpu().numpy()


def tuned(learner: LearnedOptimiser, setup: Setup, options: Options) -> dict[str, tuple[float, Curves]]:
    """For each optimiser by hand its best rate, and its losses on the test functions."""
    other = copy.deepcopy(learner)
    found = {}
    for name, make in BASELINES.items():
        finals = []
        for rate in _RATES:
            other.rule = make(rate)
            tried = curves(other, setup, "validation", options.tuning_tasks, options.num_steps, _TUNING_SEED)
            final = float(tried[:, -1].mean())
            finals.append(final if np.isfinite(final) else np.inf)
        best = int(np.argmin(finals))
        if best in (0, len(_RATES) - 1):
            raise ConfigError(f"the best rate of {name}, {_RATES[best]:g}, lies at the end of those that were tried.")
        other.rule = make(_RATES[best])
        found[name] = _RATES[best], curves(other, setup, "test", options.test_tasks, options.num_steps, BENCHMARK_SEED)
    return found


@told_errors()
def main() -> None:
    """Run the benchmark."""
    options = tyro.cli(Options)
    train = {} if options.num_iterations is None else {"num_iterations": options.num_iterations}
    folder = (options.results / safe_name(f"fewshot-{options.tasks}")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {seed: folder / f"learned-optimiser-seed{seed}.json" for seed in options.seeds}
    runs = options.runs.absolute()
    baselines = folder / "tuned.json"
    _require_same_options(options, [path for path in paths.values() if path.exists()], baselines)
    jobs = [
        Job(f"seed {seed}", _run, (seed, train, path, runs, options))
        for seed, path in paths.items()
        if not path.exists()
    ]
    if not run_jobs(jobs, options.engine, (folder, runs), console):
        return
    scores = [read_json(path) for path in paths.values()]
    if not baselines.exists():
        setup = resolve(Given("learned-optimiser", options.tasks), train={"seed": options.seeds[-1], **train})
        learner = setup.build()
        assert isinstance(learner, LearnedOptimiser)
        by_hand = {
            name: {"rate": rate, "losses": np.round(losses, 6).tolist()}
            for name, (rate, losses) in tuned(learner, setup, options).items()
        }
        content = {"tuning_tasks": options.tuning_tasks, "optimisers": by_hand}
        write_atomically(baselines, (json.dumps(content) + "\n").encode())
    console.print(_write_page(scores, read_json(baselines), folder, options), soft_wrap=True, markup=False)


def _require_same_options(options: Options, scores: list[Path], baselines: Path) -> None:
    """Refuse other options than those by which there are scores already: they would be passed over.

    Raises:
        ConfigError: naming the file, and both values.
    """
    found: list[tuple[Path, str, int, int | None]] = []
    for path in scores:
        score = read_json(path)
        found.append((path, "num-iterations", score["iterations"], options.num_iterations))
        found.append((path, "test-tasks", len(score["losses"]), options.test_tasks))
        found.append((path, "num-steps", len(score["losses"][0]) - 1, options.num_steps))
    if baselines.exists():
        content = read_json(baselines)
        losses = next(iter(content["optimisers"].values()))["losses"]
        found.append((baselines, "tuning-tasks", content["tuning_tasks"], options.tuning_tasks))
        found.append((baselines, "test-tasks", len(losses), options.test_tasks))
        found.append((baselines, "num-steps", len(losses[0]) - 1, options.num_steps))
    for path, name, then, now in found:
        if now not in (None, then):
            raise ConfigError(
                f"{path} was made with --{name} {then}, and now {now} is asked for. Ask for the same, name another "
                "folder with --results, or remove the file to make it anew."
            )


def _run(seed: int, train: Mapping[str, int], path: Path, runs: Path, options: Options, report: Report) -> bool:
    setup = resolve(Given("learned-optimiser", options.tasks), train={"seed": seed, **train})
    this = Experiment.begin(setup, runs, safe_name(f"{options.tasks}-learned-optimiser-seed{seed}"))
    if not this.train(lambda progress: report("training", progress.iteration, progress.num_iterations)):
        return False
    learner, iteration = this.load()
    assert isinstance(learner, LearnedOptimiser)
    losses = curves(learner, setup, "test", options.test_tasks, options.num_steps, BENCHMARK_SEED)
    content = {
        "learner": "learned-optimiser",
        "tasks": options.tasks,
        "seed": seed,
        "iterations": iteration,
        "losses": np.round(losses, 6).tolist(),
        "config": this.run.read_config(),
        "manifest": {name: value for name, value in this.run.read_manifest().items() if name != "command"},
    }
    write_atomically(path, (json.dumps(content) + "\n").encode())
    return True


def _write_page(scores: list[dict[str, Any]], baselines: Mapping[str, Any], folder: Path, options: Options) -> str:
    losses = {
        f"{name}, rate {content['rate']:.2g}": np.array([content["losses"]])
        for name, content in baselines["optimisers"].items()
    }
    losses["learned"] = np.array([score["losses"] for score in scores])
    last = losses["learned"].shape[2] - 1
    steps = [step for step in (0, 10, 20, 50, 100, 200) if step <= last]
    lines = [f"| optimiser | {' | '.join(f'step {step}' for step in steps)} |", "|---|" + "---|" * len(steps)]
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, values in losses.items():
        intervals = [crossed_interval([values[:, :, step]]) for step in range(last + 1)]
        texts = [
            f"{number_text(mean)} [{number_text(low)}, {number_text(high)}]"
            for mean, low, high in (intervals[step] for step in steps)
        ]
        lines.append(f"| {name} | {' | '.join(texts)} |")
        axes.plot([mean for mean, _, _ in intervals], label=name, linewidth=2.5 if name == "learned" else 1.2)
    axes.set(xlabel="step", ylabel="loss on test functions", yscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    save_figure(figure, folder / "losses.png", dpi=130)
    iterations = {score["iterations"] for score in scores}
    seeds = " ".join(str(score["seed"]) for score in scores)
    text = "\n".join(
        [
            f"# Learned optimisers on {options.tasks}",
            "",
            "Command:",
            "",
            f"    python -m metarl.benchmarks.fewshot.optimisers --tasks {options.tasks} --seeds {seeds} "
            f"--num-iterations {' '.join(map(str, sorted(iterations)))}",
            "",
            f"Mean loss over {losses['learned'].shape[1]} test functions, and over training seeds for the learned one, "
            "with 95 % intervals. Other rates are the best of 26 between 1e-4 and 10, by the loss after the last step "
            f"on {baselines['tuning_tasks']} other functions; momentum is 0.9, RMSprop's and Adam's further numbers "
            "are those of torch.",
            "",
            *lines,
            "",
            "![losses](losses.png)",
            "",
            *notes(folder),
            provenance(scores),
            "",
        ]
    )
    write_atomically(folder / "README.md", text.encode())
    return text


if __name__ == "__main__":
    main()
