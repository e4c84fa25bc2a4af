"""Tables and figures of benchmarks, from the scores of their cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from numpy.typing import NDArray

from metarl.agents.registry import load_agent
from metarl.benchmarks.cells import Cell
from metarl.plotting import save_figure
from metarl.runs.files import write_atomically
from metarl.statistics import crossed_interval, interval_texts, number_text

Scores = Mapping[Cell, Mapping[str, Any]]

_SMOOTHED = 40
"""Curves of more iterations than these are drawn as running means over a tenth of them."""


_COLOURS = ("blue", "orange", "green", "red", "purple", "brown", "pink", "gray", "olive", "cyan")
_STYLES = cycler(linestyle=["-", "--"]) * cycler(color=[f"tab:{name}" for name in _COLOURS])
"""Ten colours, and dashes from the eleventh line on."""


def write_returns_page(scores: Scores, folder: Path, title: str, introduction: str) -> str:
    """Write ``README.md`` and ``returns.png`` into ``folder``: a row and a curve for each (tasks, agent) in ``scores``.

    Args:
        scores: from :func:`metarl.benchmarks.cells.run_cells`.
        folder: the folder of the results.
        title: the page's title.
        introduction: the command, the budget, what is compared.

    Returns:
        The page's text.
    """
    families = list(dict.fromkeys(cell.tasks for cell in scores))
    most = max(len(score["returns"][0]) for score in scores.values())
    table = [
        f"| tasks | agent | {' | '.join(f'shot {shot}' for shot in range(most))} | last shot, by seed | steps a seed |",
        "|---|---|" + "---|" * (most + 2),
    ]
    figure = Figure(figsize=(max(5.0, 2.6 * len(families)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    for tasks, axes in zip(families, panels, strict=True):
        axes.set_prop_cycle(_STYLES)
        for agent in dict.fromkeys(cell.label for cell in scores if cell.tasks == tasks):
            chosen = [score for cell, score in scores.items() if (cell.tasks, cell.label) == (tasks, agent)]
            returns = np.array([score["returns"] for score in chosen])
            shots = [crossed_interval([returns[:, :, shot]]) for shot in range(returns.shape[2])]
            texts = [f"{mean} [{low}, {high}]" for mean, low, high in map(interval_texts, shots)]
            by_seed = ", ".join(number_text(value) for value in returns[:, :, -1].mean(1))
            steps = np.mean([score["env_steps"] for score in chosen]) / 1e6
            cells = " | ".join(texts + [""] * (most - len(texts)))
            table.append(f"| {tasks} | {agent} | {cells} | {by_seed} | {number_text(steps)} M |")
            mean, low, high = (np.array(column) for column in zip(*shots, strict=True))
            axes.errorbar(range(len(mean)), mean, yerr=[mean - low, high - mean], marker="o", capsize=3, label=agent)
        axes.set(title=tasks, xlabel="shot", xticks=range(most))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("return on held-out tasks")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    save_figure(figure, folder / "returns.png", dpi=130)
    curves = _draw_curves(scores, families, folder / "learning.png")
    text = "\n".join(
        [
            f"# {title}",
            "",
            introduction,
            "",
            "Shot k is the mean return after k adaptations: gradient steps, or for memory agents episodes of the trial "
            "so far. Mean over seeds and held-out tasks with a 95 % interval, in which both are sources of error.",
            "",
            *table,
            "",
            "![returns](returns.png)",
            "",
            *curves,
            *notes(folder),
            *agent_lines(cell.agent for cell in scores),
            "",
            provenance(scores.values()),
            "",
        ]
    )
    write_atomically(folder / "README.md", text.encode())
    return text


def _draw_curves(scores: Scores, families: Sequence[str], path: Path) -> list[str]:
    """Training return of a trial's last shot over environment steps, mean over seeds; returns its lines of the page."""
    curves = {cell: score["curve"] for cell, score in scores.items() if "curve" in score}
    if not curves:
        return []
    figure = Figure(figsize=(max(6.4, 3.2 * len(families)), 4.4), layout="constrained")
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    for tasks, axes in zip(families, panels, strict=True):
        axes.set_prop_cycle(_STYLES)
        for agent in dict.fromkeys(cell.label for cell in curves if cell.tasks == tasks):
            chosen = [curve for cell, curve in curves.items() if (cell.tasks, cell.label) == (tasks, agent)]
            shortest = min(len(curve["return"]) for curve in chosen)
            # Where episodes end early, seeds differ in their steps.
            steps = np.mean([curve["env_steps"][:shortest] for curve in chosen], axis=0)
            returns = np.mean([smooth(curve["return"][:shortest]) for curve in chosen], axis=0)
            axes.plot(steps, returns, label=agent)
        axes.set(title=tasks, xlabel="environment steps, adaptation included")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("training return, last shot of a trial")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    save_figure(figure, path, dpi=130)
    return [
        "![learning](learning.png)",
        "",
        f"Curves of more than {_SMOOTHED} iterations are running means over the last tenth of them.",
        "",
    ]


def smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """Running mean over the last tenth, for long curves."""
    curve = np.array(values, np.float64)
    if len(curve) <= _SMOOTHED:
        return curve
    width = len(curve) // 10
    sums = np.cumsum(np.concatenate([np.zeros(1), curve]))
    first = np.maximum(np.arange(len(curve)) + 1 - width, 0)
    return np.asarray((sums[1:] - sums[first]) / (np.arange(len(curve)) + 1 - first), np.float64)


def agent_lines(agents: Iterable[str]) -> list[str]:
    """A line of Markdown for each agent that says when it is to be chosen."""
    kinds = {agent: load_agent(agent) for agent in dict.fromkeys(agents)}
    return [f"- `{agent}`: {kind.when}." for agent, kind in kinds.items() if kind.when]


def notes(folder: Path) -> list[str]:
    """Lines of Markdown that lead to what people wrote about the results in ``folder``, if they did."""
    return (
        ["What was seen in these runs, and tried: [NOTES.md](NOTES.md).", ""] if (folder / "NOTES.md").exists() else []
    )


def provenance(scores: Iterable[Mapping[str, Any]]) -> str:
    """One paragraph of Markdown: commits, versions and machines behind the scores."""
    known = list(scores)
    commits = {commit for score in known for commit in _commits(score)}
    places = [place for s in known for place in (s["manifest"], *s["manifest"].get("resumed_on", []))]
    machines = {
        f"{m['cpu']}, {m['cores']} cores, {m['torch_threads']} torch thread(s), {m['device']}"
        for m in (place["machine"] for place in places)
    }
    versions = {json.dumps(place["versions"]) for place in places}
    return (
        f"Commit {', '.join(sorted(commits))}; machine: {'; '.join(sorted(machines))}; "
        f"versions: {'; '.join(sorted(versions))}."
    )


def _commits(score: Mapping[str, Any]) -> Iterator[str]:
    """What a score was trained and scored with."""
    manifest = score["manifest"]
    for state in (manifest["git"], *({"commit": commit} for commit in manifest.get("resumed_at", []))):
        yield _commit(state)
    if "scored" in score:
        yield _commit(score["scored"])


def _commit(state: Mapping[str, Any] | None) -> str:
    commit = str((state or {}).get("commit") or "installed")[:10]
    return f"{commit} (with files that were changed or new)" if (state or {}).get("dirty") else commit
