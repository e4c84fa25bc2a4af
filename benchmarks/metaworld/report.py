"""The page of a Meta-World benchmark: one table from all scores in its folder, with references, floor and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from metarl.benchmarks.report import agent_lines, notes, provenance, smooth
from metarl.evaluation.metaworld_scores import OfficialScores, footnotes, percent
from metarl.experiments import resolve
from metarl.plotting import save_figure
from metarl.runs.files import read_json, write_atomically
from metarl.statistics import Float, crossed_share_interval, number_text

Split = Literal["train", "test"]
Scores = Mapping[str, Any]


def write_success_page(
    folder: Path,
    tasks: str,
    command: str,
    splits: Sequence[Split],
    references: Mapping[tuple[str, Split], OfficialScores],
) -> str:
    """Write ``README.md`` and ``curves.png`` into ``folder`` from every cell's score in it.

    Args:
        folder: the folder of the results.
        tasks: id of the distribution.
        command: the benchmark's module and the options that name its tasks.
        splits: that were scored.
        references: scores of policies that do not adapt, by name and split.

    Returns:
        The page's text.
    """
    groups = _groups(folder, tasks)
    _draw_curves(groups, folder / "curves.png", tasks)
    text = "\n".join(
        [
            f"# Meta-World {tasks}",
            "",
            *(f"    python -m {command} {_options(scores)}" for scores in groups.values()),
            "",
            f"Success in %, mean over goals and tasks of the {' and of the '.join(splits)} split, with its 95 % "
            "interval over goals and, where there are several, training seeds. Sampled: success of every seed by "
            "sampled actions, from the same state, where the protocol takes the mode.",
            "",
            *_summary(groups, splits, references),
            "",
            *(line for split in splits for line in _by_task(groups, split, references)),
            *(f"- {line}" for line in _notes(groups, splits)),
            "",
            "![curves](curves.png)",
            "",
            *notes(folder),
            *(
                f"- `{label}` differs from its preset by {json.dumps(differing)}."
                for label, scores in groups.items()
                if (differing := _differing(scores[0]))
            ),
            *agent_lines(scores[0]["agent"] for scores in groups.values()),
            "",
            provenance(score for scores in groups.values() for score in scores),
            "",
        ]
    )
    write_atomically(folder / "README.md", text.encode())
    return text


def _groups(folder: Path, tasks: str) -> dict[str, list[Scores]]:
    """The scores of all seeds by agent and variant."""
    groups: dict[str, list[Scores]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        score = read_json(path)
        if score["tasks"] == tasks and "official" in score:
            label = f"{score['agent']} {score['variant']}".strip()
            groups.setdefault(label, []).append(score)
    return {label: sorted(scores, key=lambda score: int(score["seed"])) for label, scores in groups.items()}


def _official(score: Scores, split: str) -> OfficialScores:
    return OfficialScores.from_json(score["official"][split])


def _success(scores: Sequence[OfficialScores], name: str) -> Float:
    """Success of every seed on every goal of a task, ``[seed, goal]``."""
    return np.array([entry.by_task[name].success for entry in scores])


def _summary(
    groups: Mapping[str, Sequence[Scores]],
    splits: Sequence[Split],
    references: Mapping[tuple[str, Split], OfficialScores],
) -> list[str]:
    columns = [name for split in splits for name in (f"{split} success", "95 % interval", "by seed", "sampled")]
    lines = [f"| agent | steps a seed | {' | '.join(columns)} |", f"|---|---:|{'---:|' * len(columns)}"]
    for label, scores in groups.items():
        steps = float(np.mean([score["env_steps"] for score in scores])) / 1e6
        cells = []
        for split in splits:
            official = [_official(score, split) for score in scores]
            by_seed = ", ".join(percent(entry.interval)[0] for entry in official)
            groups_of_goals = [_success(official, name) for name in official[0].by_task]
            cells += [*percent(crossed_share_interval(groups_of_goals)), by_seed, _sampled_by_seed(official)]
        lines.append(f"| {label} | {number_text(steps)} M | {' | '.join(cells)} |")
    for name in dict.fromkeys(name for name, _ in references):
        cells = [cell for split in splits for cell in (*percent(references[name, split].interval), "", "")]
        lines.append(f"| {name} | | {' | '.join(cells)} |")
    return lines


def _sampled_by_seed(scores: Sequence[OfficialScores]) -> str:
    """Success by sampled actions of every seed; a dash where it was not measured, as in older scores."""
    intervals = [entry.sampled_interval for entry in scores]
    return ", ".join("-" if interval is None else percent(interval)[0] for interval in intervals)


def _by_task(
    groups: Mapping[str, Sequence[Scores]], split: Split, references: Mapping[tuple[str, Split], OfficialScores]
) -> list[str]:
    """Success by task, where there are several."""
    shown = {label: [_official(score, split) for score in scores] for label, scores in groups.items()}
    shown |= {name: [scores] for (name, of_split), scores in references.items() if of_split == split}
    names = list(next(iter(shown.values()))[0].by_task)
    if len(names) == 1:
        return []
    lines = [f"| {split} task | {' | '.join(shown)} |", f"|---|{'---:|' * len(shown)}"]
    for name in names:
        cells = []
        for scores in shown.values():
            mean, limits = percent(crossed_share_interval([_success(scores, name)]))
            by_samples = [entry.sampled[name].success for entry in scores if name in entry.sampled]
            cells.append(f"{mean} ({limits})" + (f"; sampled {100 * np.mean(by_samples):.1f}" if by_samples else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _notes(groups: Mapping[str, Sequence[Scores]], splits: Sequence[Split]) -> list[str]:
    notes = []
    for split in splits:
        all_scores = [_official(score, split) for scores in groups.values() for score in scores]
        notes += [f"{split}: {scores.settings['protocol']}." for scores in all_scores]
        notes += [f"{split}: {line}" for scores in all_scores for line in footnotes(scores)]
    return list(dict.fromkeys(notes))


def _options(scores: Sequence[Scores]) -> str:
    """The command's options behind the scores of one agent."""
    score = scores[0]
    words = ["--agent", score["agent"], "--seeds", *(str(entry["seed"]) for entry in scores)]
    if score["variant"]:
        words += ["--variant", score["variant"]]
    changed = dict(score["changed"])
    if changed.pop("num_iterations", None) is not None:
        words += ["--steps", str(int(score["env_steps"]))]
    if "meta_batch_size" in changed:
        words += ["--meta-batch-size", str(changed.pop("meta_batch_size"))]
    for name, value in changed.items():
        flag = f"--agent.{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--agent.no-{name.replace('_', '-')}")
        else:
            words += [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
    goals = next(iter(score["official"].values()))["settings"]
    if not goals["protocol"].startswith("the official"):
        words += ["--goals", str(goals["goals_per_task"])]
    return " ".join(words)


def _differing(score: Scores) -> dict[str, Any]:
    """Settings of a run that are not its preset's, whether they were asked for or the preset has changed since."""
    preset = json.loads(json.dumps(resolve(score["agent"], score["tasks"]).to_json()))
    preset, ran = ({**config["train"], **config[score["agent"]]} for config in (preset, score["config"]))
    return {name: value for name, value in ran.items() if name != "seed" and preset.get(name, value) != value}


def _draw_curves(groups: Mapping[str, Sequence[Scores]], path: Path, tasks: str) -> None:
    """Training return and success of the last episodes of a trial over environment steps: each seed, and their mean."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for index, (label, scores) in enumerate(groups.items()):
        color = mpl.color_sequences["tab10"][index % 10]
        shortest = min(len(score["curve"]["env_steps"]) for score in scores)
        steps = np.array(scores[0]["curve"]["env_steps"][:shortest])
        for axes, name in zip(panels, ("return", "success"), strict=True):
            curves = np.array([smooth(score["curve"][name][:shortest]) for score in scores])
            if len(curves) > 1:
                axes.plot(steps, curves.T, color=color, alpha=0.35, linewidth=0.8)
            axes.plot(steps, curves.mean(0), color=color, linewidth=2.0, label=f"{label}, {len(curves)} seed(s)")
    for axes, name in zip(panels, ("return", "success"), strict=True):
        axes.set(xlabel="environment steps, adaptation included", ylabel=f"training {name}, last rollout of a trial")
        axes.grid(alpha=0.3)
    panels[1].set_ylim(-0.02, 1.02)
    figure.suptitle(f"Meta-World {tasks}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    save_figure(figure, path, dpi=130)
