"""Scores by Meta-World's protocol: what they are of, their intervals, and how they are written down."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from metarl.errors import CheckpointError, ConfigError, NonFiniteError
from metarl.runs.files import read_json, write_atomically
from metarl.statistics import Interval, mean_of_intervals, number_text, share_interval

FLOORS = {("ml10", "test"): (0.2, "what solving door-close alone gives")}
"""Success by (task set, split) that means nothing, and where it comes from."""


@dataclass(frozen=True)
class SampledScores:
    """How an agent did on the goals of one task by sampled actions, in episodes beside those of the protocol.

    Attributes:
        success: share of episodes with success, for each goal.
        returns: mean return, for each goal.
        num_env_steps: cost in environment steps, without adaptation, which the protocol has paid for.
    """

    success: tuple[float, ...]
    returns: tuple[float, ...]
    num_env_steps: int

    @property
    def interval(self) -> Interval:
        """Mean success, with its 95 % interval over goals."""
        return share_interval(np.array(self.success))

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {"success": self.success, "returns": self.returns, "env_steps": self.num_env_steps}


@dataclass(frozen=True)
class TaskScores:
    """How an agent did on the goals of one task.

    Attributes:
        success: share of evaluation episodes with success, for each goal.
        returns: mean return of the evaluation episodes, for each goal.
        num_env_steps: cost in environment steps, adaptation included.
        num_invalid: episodes whose simulation diverged; they count as no success.
        sampled: the same by sampled actions, if it was asked for.
    """

    success: tuple[float, ...]
    returns: tuple[float, ...]
    num_env_steps: int
    num_invalid: int
    sampled: SampledScores | None = None

    @property
    def interval(self) -> Interval:
        """Mean success, with its 95 % interval over goals."""
        return share_interval(np.array(self.success))


def joined(parts: Sequence[TaskScores]) -> TaskScores:
    """The scores of several groups of one task's goals, in their order."""
    sampled = [part.sampled for part in parts if part.sampled is not None]
    return TaskScores(
        tuple(value for part in parts for value in part.success),
        tuple(value for part in parts for value in part.returns),
        sum(part.num_env_steps for part in parts),
        sum(part.num_invalid for part in parts),
        SampledScores(
            tuple(value for part in sampled for value in part.success),
            tuple(value for part in sampled for value in part.returns),
            sum(part.num_env_steps for part in sampled),
        )
        if sampled
        else None,
    )


@dataclass(frozen=True)
class OfficialScores:
    """Scores by the protocol.

    Attributes:
        settings: everything that they depend on: tasks, split, protocol, seed, versions, and what the caller adds.
        by_task: scores by name of the task, in upstream's order.
        upstream: metaworld's own figures by name of the task, and ``"mean"``, if they were asked for.
    """

    settings: dict[str, Any]
    by_task: dict[str, TaskScores]
    upstream: dict[str, float] | None = None

    @property
    def interval(self) -> Interval:
        """Success, the mean over tasks, with its 95 % interval over goals."""
        return mean_of_intervals([scores.interval for scores in self.by_task.values()])

    @property
    def sampled(self) -> dict[str, SampledScores]:
        """Scores by sampled actions by name of the task; empty where they were not asked for."""
        return {name: scores.sampled for name, scores in self.by_task.items() if scores.sampled is not None}

    @property
    def sampled_interval(self) -> Interval | None:
        """As :attr:`interval`, by sampled actions; None where they were not asked for."""
        intervals = [scores.interval for scores in self.sampled.values()]
        return mean_of_intervals(intervals) if intervals else None

    @property
    def num_env_steps(self) -> int:
        """Cost in environment steps."""
        return sum(scores.num_env_steps for scores in self.by_task.values())

    @property
    def num_invalid(self) -> int:
        """Episodes whose simulation diverged."""
        return sum(scores.num_invalid for scores in self.by_task.values())

    @property
    def floor(self) -> tuple[float, str] | None:
        """Success that means nothing on these tasks, and why; None if none is known."""
        return FLOORS.get((self.settings["task_set"], self.settings["split"]))

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {
            "settings": self.settings,
            "success": self.interval,
            **({} if self.sampled_interval is None else {"sampled_success": self.sampled_interval}),
            "env_steps": self.num_env_steps,
            "invalid_episodes": self.num_invalid,
            "by_task": {
                name: {
                    "success": scores.success,
                    "returns": scores.returns,
                    "env_steps": scores.num_env_steps,
                    "invalid_episodes": scores.num_invalid,
                    **({} if scores.sampled is None else {"sampled": scores.sampled.to_json()}),
                }
                for name, scores in self.by_task.items()
            },
            "upstream": self.upstream,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> OfficialScores:
        """The inverse of :meth:`to_json`."""

        def sampled(entry: Mapping[str, Any]) -> SampledScores | None:
            known = entry.get("sampled")
            if known is None:
                return None
            return SampledScores(tuple(known["success"]), tuple(known["returns"]), known["env_steps"])

        by_task = {
            name: TaskScores(
                tuple(entry["success"]),
                tuple(entry["returns"]),
                entry["env_steps"],
                entry["invalid_episodes"],
                sampled(entry),
            )
            for name, entry in content["by_task"].items()
        }
        return cls(dict(content["settings"]), by_task, content["upstream"])


def save(scores: OfficialScores, path: Path) -> None:
    """Write scores as JSON with a digest of them, in one step.

    Raises:
        ConfigError: if the file cannot be written.
        NonFiniteError: if a score is NaN or infinite.
    """
    content = scores.to_json()
    try:
        text = json.dumps({**content, "sha256": _digest(content)}, indent=1, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"a score for {path} is NaN or infinite; rewards must be finite.") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{text}\n".encode())
    except OSError as error:
        raise ConfigError(f"cannot write the scores {path}: {error.strerror or error}.") from error


def read(path: Path, settings: Mapping[str, Any] | None = None) -> OfficialScores | None:
    """The scores in a file; None if there are none, or with ``settings`` none that were scored with just these.

    A file that is not as :func:`save` wrote it, damaged or edited, is passed over with a warning.
    """
    if not path.exists():
        return None
    try:
        content = read_json(path)
        digest = content.pop("sha256", None)
        if digest != _digest(content):
            raise CheckpointError(f"{path} is damaged or was edited: its content does not match its sha256.")
    except CheckpointError as error:
        warnings.warn(f"{error} All tasks are scored again.", RuntimeWarning, stacklevel=3)
        return None
    known = OfficialScores.from_json(content)
    same = settings is None or known.settings == json.loads(json.dumps(settings))
    return known if same else None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def print_table(scores: OfficialScores, label: str, console: Console) -> None:
    """Print scores by task."""
    settings = scores.settings
    table = Table(
        title=f"{label} on {settings['task_set']}, {settings['split']} goals\n{settings['protocol']}",
        caption="success, mean over goals with its 95 % interval, in %",
    )
    for name in _columns(scores, "success"):
        # An interval stays in one line: where the console is narrow, names of tasks break.
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=name != "task", overflow="fold")
    for row in _rows(scores):
        table.add_row(*row)
    console.print(table)
    for line in footnotes(scores):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def markdown(scores: OfficialScores, label: str) -> str:
    """Scores by task as Markdown."""
    settings = scores.settings
    header = _columns(scores, "success %")
    lines = [
        f"{label} on {settings['task_set']}, {settings['split']} goals: {settings['protocol']}.",
        "",
        f"| {' | '.join(header)} |",
        f"|---|{'---:|' * (len(header) - 1)}",
        *(f"| {' | '.join(row)} |" for row in _rows(scores)),
        "",
        *(f"- {line}" for line in footnotes(scores)),
    ]
    return "\n".join(lines) + "\n"


def footnotes(scores: OfficialScores) -> list[str]:
    """What must stand beside the figures: floor, cost, reward version, packages."""
    settings = scores.settings
    lines = []
    if scores.floor is not None:
        share, reason = scores.floor
        lines.append(f"The floor is {100 * share:.0f} %: {reason}.")
    if scores.upstream is not None:
        lines.append(
            "Upstream's figure is that of metaworld.evaluation.metalearning_evaluation, which counts the episodes that "
            "end first, and ends them with success."
        )
    lines.append(
        f"{settings['adaptation_episodes']} adaptation and {settings['evaluation_episodes']} evaluation episodes for "
        f"each goal, {'acting by the mode in the latter' if settings['deterministic'] else 'all of them sampled'}; "
        f"it cost {scores.num_env_steps:,} environment steps; {scores.num_invalid} episodes were invalid."
    )
    if scores.sampled:
        cost = sum(entry.num_env_steps for entry in scores.sampled.values())
        lines.append(
            f"Sampled: {settings['evaluation_episodes']} more episodes for each goal from the same state, by sampled "
            f"actions, which are not the protocol's; they cost {cost:,} steps more."
        )
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    lines.append(f"Reward version {settings['reward_version']}, goals' seed {settings['goals_seed']}; {versions}.")
    return lines


def percent(interval: Interval) -> tuple[str, str]:
    """A success rate and its interval, in percent."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.1f}", f"{low:.1f} .. {high:.1f}"


def _columns(scores: OfficialScores, success: str) -> list[str]:
    return [
        *("task", "goals", success, "95 % interval", "return"),
        *(["sampled"] * bool(scores.sampled)),
        *(["upstream's figure"] * bool(scores.upstream)),
    ]


def _rows(scores: OfficialScores) -> list[tuple[str, ...]]:
    upstream = scores.upstream or {}

    def row(
        name: str, goals: int, interval: Interval, returns: float, sampled: Interval | None, key: str
    ) -> tuple[str, ...]:
        by_samples = () if sampled is None else (percent(sampled)[0],)
        beside = (f"{100 * upstream[key]:.1f}",) if scores.upstream else ()
        return (name, str(goals), *percent(interval), number_text(returns), *by_samples, *beside)

    rows = [
        row(
            name,
            len(entry.success),
            entry.interval,
            float(np.mean(entry.returns)),
            None if entry.sampled is None else entry.sampled.interval,
            name,
        )
        for name, entry in scores.by_task.items()
    ]
    returns = float(np.mean([np.mean(entry.returns) for entry in scores.by_task.values()]))
    goals = sum(len(entry.success) for entry in scores.by_task.values())
    return [*rows, row("mean over tasks", goals, scores.interval, returns, scores.sampled_interval, "mean")]
