"""Training on one process and on two, and what that predicts for 64.

``python -m metarl.benchmarks.scaling`` measures what is missing, on an otherwise idle machine, and writes table and
figure to ``benchmarks/results/scaling``. ``--quick`` takes a minute, to see that everything runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure

from metarl.benchmarks.cells import console
from metarl.benchmarks.report import notes
from metarl.benchmarks.scaling import model
from metarl.benchmarks.scaling.measure import Setting, measured
from metarl.benchmarks.scaling.model import Cost, Link
from metarl.errors import ConfigError, told_errors
from metarl.experiments import resolve
from metarl.plotting import save_figure
from metarl.runs.files import read_json, write_atomically, write_json
from metarl.runs.folder import git_state, machine
from metarl.seeding import numpy_stream
from metarl.tasks import TaskDistribution

_RANKS = (1, 2, 4, 8, 16, 32, 64)
"""Predicted for."""

_ETHERNET = Link(sum=100e-6, message=200e-6, byte=1 / 1.1e9)
"""Assumed of machines joined by 10 Gbit/s Ethernet: a message is two rounds, its length and itself."""


@dataclass(frozen=True)
class Options:
    """Measure the speed of training on one rank and on two, and predict that on more."""

    cases: tuple[str, ...] = ("maml-trpo:ml10", "rl2:ml10", "maml-trpo:navigation-2d", "rl2:navigation-2d")
    """Agents and tasks, as AGENT:TASKS."""
    iterations: int = 5
    """Iterations to measure, after a first one."""
    tasks: int | None = None
    """Tasks in one meta-update; default: the preset's."""
    quick: bool = False
    """Four tasks and one iteration; the figures mean nothing."""
    results: Path = Path("benchmarks/results/scaling")
    """Where table and figure go."""


@dataclass(frozen=True)
class Case:
    """What was measured of one agent on one task distribution.

    Attributes:
        name: ``AGENT:TASKS``.
        tasks: in one meta-update.
        rows: by what was measured: its name, cores, and findings.
        others: another number of tasks.
        other: findings of one rank with these.
    """

    name: str
    tasks: int
    rows: Mapping[str, tuple[int, Mapping[str, Any]]]
    others: int
    other: Mapping[str, Any]

    @property
    def cost(self) -> Cost:
        """For predictions."""
        return Cost.of(self.tasks, self.rows[_ONE][1], self.rows[_TWO][1], self.others, self.other)


_ONE, _TWO = "1 rank", "2 ranks"


class _Measurements:
    """What was measured, kept in a file, so that an interrupted command goes on; other code or machines begin anew."""

    def __init__(self, path: Path, iterations: int) -> None:
        self._path, self._iterations = path, iterations
        commit = (git_state() or {}).get("commit")
        made_by = {"commit": commit, "torch": torch.__version__, **machine(torch.device("cpu"))}
        self._known: dict[str, Any] = read_json(path) if path.exists() else {"made by": made_by}
        if self._known.get("made by") != made_by:
            console.print(f"{path} was measured by other code or elsewhere: measuring anew.", soft_wrap=True)
            self._known = {"made by": made_by}

    def get(self, ranks: int, setting: Setting | None = None) -> dict[str, Any]:
        """Findings of ranks in one setting."""
        what = (
            "exchange" if setting is None else ", ".join(f"{name} {value}" for name, value in asdict(setting).items())
        )
        key = f"ranks {ranks}, iterations {self._iterations}, {what}"
        if key not in self._known:
            console.print(f"measuring: {key}", soft_wrap=True, markup=False)
            self._known[key] = measured(ranks, setting, self._iterations)
            write_json(self._path, self._known)
        found: dict[str, Any] = self._known[key]
        return found


@told_errors()
def main() -> None:
    """Run the benchmark."""
    options = tyro.cli(Options)
    iterations = 1 if options.quick else options.iterations
    if iterations < 1:
        raise ConfigError(f"--iterations must be above 0, got {iterations}.")
    options.results.mkdir(parents=True, exist_ok=True)
    measurements = _Measurements(options.results / "measured.json", iterations)
    cases = []
    for name in options.cases:
        agent, separator, tasks = name.partition(":")
        if not separator:
            raise ConfigError(f"--cases are written as AGENT:TASKS, e.g. rl2:ml10, got {name!r}.")
        preset = resolve(agent, tasks)
        distribution = preset.distribution
        count = 4 if options.quick else options.tasks or preset.train_config.meta_batch_size
        if count < 2:
            raise ConfigError(f"two ranks need two tasks, got {count} of {name}.")
        rows = {
            _ONE: (1, measurements.get(1, Setting(name, count))),
            _TWO: (2, measurements.get(2, Setting(name, count))),
        }
        rows["1 rank, 2 threads"] = 2, measurements.get(1, Setting(name, count, threads=2))
        if tasks.startswith("ml"):  # Arithmetic environments have no workers.
            rows["1 rank, 2 workers"] = 2, measurements.get(1, Setting(name, count, workers=2))
        others = _other_number(distribution, count)
        cases.append(Case(name, count, rows, others, measurements.get(1, Setting(name, others))))
    link = Link(**measurements.get(2))
    _draw(cases, link, options.results / "efficiency.png")
    text = _page(cases, link, options)
    write_atomically(options.results / "README.md", text.encode())
    console.print(text, soft_wrap=True, markup=False)


def _other_number(distribution: TaskDistribution, count: int) -> int:
    """Half of the tasks, or twice as many where the distribution draws no such number.

    Raises:
        ConfigError: if it draws neither.
    """
    try:
        distribution.sample_meta_batch(count // 2, numpy_stream(0, "tasks", 0))
    except ConfigError:
        distribution.sample_meta_batch(2 * count, numpy_stream(0, "tasks", 0))
        return 2 * count
    return count // 2


def _page(cases: list[Case], link: Link, options: Options) -> str:
    here, state = machine(torch.device("cpu")), git_state() or {}
    size = "--quick" if options.quick else f"--iterations {options.iterations}"
    tasks = "" if options.quick or options.tasks is None else f" --tasks {options.tasks}"
    command = f"python -m metarl.benchmarks.scaling --cases {' '.join(case.name for case in cases)} {size}{tasks}"
    lines = [
        "# Scaling",
        "",
        f"Command: `{command}`; commit {str(state.get('commit'))[:10]}, PyTorch {torch.__version__}, {here['cores']} "
        f"cores of {here['cpu']}. Each rank has a core, one thread and, on Meta-World, a worker for each half of its "
        "tasks, unless the row says otherwise; presets; evaluation and checkpoints are left out. Efficiency: the "
        "speed-up over the first row, by core. Time in collectives, of rank 0, includes waiting for the other rank.",
        "",
        "| agent and tasks | tasks | measured | s an iteration | steps/s | efficiency | in collectives |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        first = case.rows[_ONE][1]
        for name, (cores, found) in case.rows.items():
            speed, share = found["steps"] / found["seconds"], found["share_in_collectives"]
            efficiency = speed / (cores * first["steps"] / first["seconds"])
            lines.append(
                f"| {case.name} | {case.tasks} | {name} | {found['seconds']:.3g} | {speed:,.0f} | {efficiency:.2f} | "
                f"{f'{100 * share:.1f} %' if share else ''} |"
            )
    lines += [
        "",
        "## Predicted",
        "",
        "```text",
        *(model.__doc__ or "").strip().splitlines(),
        "```",
        "",
        f"Measured between two ranks on one machine: {_words(link)}. Assumed of several machines (10 Gbit/s Ethernet): "
        f"{_words(_ETHERNET)}.",
        "",
        "| agent and tasks | fixed, s | draw, s a task | s a task | sums | messages | MB in sums |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {case.name} | {cost.fixed:.3g} | {cost.draw:.2g} | {cost.per_task:.3g} | {cost.sums:.0f} | "
            f"{cost.messages:.0f} | {cost.num_bytes / 1e6:.3g} |"
            for case, cost in ((case, case.cost) for case in cases)
        ),
        "",
    ]
    for title, efficiency in (
        ("Strong: the tasks of the first table", Cost.strong),
        ("Weak: as many on each rank", Cost.weak),
    ):
        lines += [
            f"{title}; efficiency by ranks, on one machine with as many cores / on several machines:",
            "",
            f"| agent and tasks | {' | '.join(map(str, _RANKS))} |",
            "|---|" + "---|" * len(_RANKS),
        ]
        for case in cases:
            cells = (
                " / ".join(f"{efficiency(case.cost, case.tasks, ranks, way):.2f}" for way in (link, _ETHERNET))
                for ranks in _RANKS
            )
            lines.append(f"| {case.name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, "![efficiency](efficiency.png)", "", *notes(options.results)])


def _words(link: Link) -> str:
    return f"a sum {1e6 * link.sum:.0f} us, a message {1e6 * link.message:.0f} us, a byte {1e9 * link.byte:.2f} ns"


def _draw(cases: list[Case], link: Link, path: Path) -> None:
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    for axes, title, efficiency in zip(
        figure.subplots(1, 2, sharey=True), ("strong scaling", "weak scaling"), (Cost.strong, Cost.weak), strict=True
    ):
        for number, case in enumerate(cases):
            for way, style in ((link, ":"), (_ETHERNET, "-")):
                values = [efficiency(case.cost, case.tasks, ranks, way) for ranks in _RANKS]
                label = case.name if style == "-" else None
                axes.plot(_RANKS, values, style, color=f"C{number}", label=label)
            if efficiency is Cost.strong:
                one, two = case.rows[_ONE][1]["seconds"], case.rows[_TWO][1]["seconds"]
                axes.plot([1, 2], [1.0, one / (2 * two)], "o", color=f"C{number}")
        axes.set(title=title, xlabel="ranks", xscale="log", xticks=_RANKS, xticklabels=map(str, _RANKS), ylim=(0, 1.1))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("efficiency (points: measured)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    save_figure(figure, path, dpi=130)


if __name__ == "__main__":
    main()
