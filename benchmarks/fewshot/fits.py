"""What adaptation does to a learner of sinusoids, drawn: ``python -m metarl.benchmarks.fewshot.fits RUN``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from metarl.benchmarks.cells import BENCHMARK_SEED
from metarl.errors import ConfigError, told_errors
from metarl.fewshot.experiment import Experiment
from metarl.plotting import save_figure
from metarl.seeding import derive, numpy_stream


@dataclass(frozen=True)
class Options:
    """Draw the predictions of RUN, a learner of sinusoids, before and after adaptation to test tasks."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    shots: int = 5
    """Points that it adapts to."""
    steps: tuple[int, ...] = (0, 1, 10)
    """After how many steps predictions are drawn."""
    output: Path = Path("benchmarks/results/fewshot-sinusoid/fits.png")
    """The figure; the page of that folder shows it."""


@told_errors()
def main() -> None:
    """Draw the figure."""
    options = tyro.cli(Options)
    this = Experiment.open(options.run)
    if this.setup.task_name != "sinusoid":
        raise ConfigError(f"{options.run} is a run on {this.setup.task_name}; only learners of sinusoid can be drawn.")
    if options.shots < 1 or not options.steps or min(options.steps) < 0:
        raise ConfigError(f"shots must be above 0 and steps 0 or more, got {options.shots} and {options.steps}.")
    tasks = this.setup.tasks
    # The queries of a task lie on its curve: enough of them draw it.
    episode = dataclasses.replace(this.setup.episode, shots=options.shots, queries=300)
    learner, _ = this.load(spec=tasks.spec(episode))
    batch = tasks.sample("test", 4, episode, numpy_stream(BENCHMARK_SEED, "fits"))
    grid = torch.linspace(-5.0, 5.0, 200).expand(4, -1)[..., None]
    learner.seed(derive(BENCHMARK_SEED, "fits"))
    state = learner.begin(4)
    support, predictions = batch.to(learner.device).support, {}
    for step in range(max(options.steps) + 1):
        if step in options.steps:
            predictions[step] = learner.predict(state, grid.to(learner.device)).cpu().numpy()
        if step < max(options.steps):
            state = learner.adapt(state, support)
    figure = Figure(figsize=(11.0, 3.2), layout="constrained")
    for number, axes in enumerate(figure.subplots(1, 4, sharey=True)):
        order = np.argsort(batch.query.x[number, :, 0].numpy())
        x, y = (part[number, :, 0].numpy()[order] for part in (batch.query.x, batch.query.y))
        axes.plot(x, y, color="0.6", linewidth=4, alpha=0.5, label="the task")
        points = (part[number, :, 0].numpy() for part in (batch.support.x, batch.support.y))
        axes.plot(*points, "k^", label=f"{options.shots} points")
        for step, values in predictions.items():
            label = "before adaptation" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"
            axes.plot(grid[number, :, 0], values[number, :, 0], label=label, linestyle=":" if step == 0 else "-")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    save_figure(figure, options.output, dpi=130)


if __name__ == "__main__":
    main()
