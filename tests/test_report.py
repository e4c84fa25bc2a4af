"""Tables of scores: small numbers have digits, and in 80 characters no line of a cell breaks."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from metarl.agent import AgentConfig
from metarl.agents import MAMLTRPOConfig, RL2Config
from metarl.cli.report import Row, show_adaptation
from metarl.config import TrainConfig
from metarl.evaluation.evaluator import Evaluation
from metarl.evaluation.metaworld_scores import OfficialScores, TaskScores, print_table
from metarl.experiments import Experiment
from metarl.runs.folder import RunFolder
from metarl.tasks.registry import load_distribution

LABELS = (
    "maml-trpo",
    "single policy, not adapted",
    "single policy, fine-tuned",
    "maml-trpo, untrained",
    "random policy",
)


def scores(
    num_shots: int, scale: float, success: bool = True, num_tasks: int = 30, num_distinct: int | None = None
) -> Evaluation:
    rng = np.random.default_rng(num_shots)
    returns = scale * rng.normal(-50.0, 30.0, (num_tasks, num_shots))
    share = rng.uniform(0, 1, (num_tasks, num_shots)) if success else None
    return Evaluation(returns, share, 20, 1000, 0, num_tasks if num_distinct is None else num_distinct)


def shown(
    tmp_path: Path, shots: list[int], scale: float = 1.0, agent: AgentConfig | None = None, **settings: object
) -> str:
    """What is printed on a console of 80 characters."""
    config = MAMLTRPOConfig() if agent is None else agent
    experiment = Experiment("maml-trpo", "bandit", TrainConfig(), config, RunFolder(tmp_path))
    rows = [Row(label, scores(number, scale, **settings)) for label, number in zip(LABELS, shots, strict=False)]  # type: ignore[arg-type]
    file = io.StringIO()
    console = Console(file=file, width=80)
    show_adaptation(experiment, load_distribution("bandit"), rows, tmp_path / "x", {}, console)
    return file.getvalue()


def cells(printed: str) -> list[list[str]]:
    """The cells of every line of the tables' bodies."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if line[:1] == "│"]


INTERVAL = r"-?[\d.]+(e[-+]\d+)?\.\.-?[\d.]+(e[-+]\d+)?"


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4, 1e-8])
@pytest.mark.parametrize("shots", [[4, 1, 4, 4, 1], [11, 1, 11], [1], [2]])
def test_no_interval_breaks_in_80_characters(tmp_path: Path, shots: list[int], scale: float) -> None:
    """Every value is a whole number or a whole interval, and each label's intervals are all there."""
    printed = shown(tmp_path, shots, scale)
    assert max(map(len, printed.splitlines()[:-1])) <= 80 and "…" not in printed
    values = [cell for line in cells(printed) for cell in line[1:] if cell]
    intervals = [cell for cell in values if re.fullmatch(INTERVAL, cell)]
    assert all(cell in intervals or float(cell) is not None for cell in values)
    # Of returns, and of success.
    assert len(intervals) == 2 * sum(shots) and len(values) == 4 * sum(shots)


def test_four_shots_stand_in_one_table_and_eleven_below_each_other(tmp_path: Path) -> None:
    assert shown(tmp_path, [4, 1, 4, 4, 1], success=False).count("┃ after") == 1
    printed = shown(tmp_path, [11, 1, 11], success=False)
    headers = [line for line in printed.splitlines() if line.startswith("┃")]
    found = [int(number) for line in headers for number in re.findall(r"\d+", line)]
    assert found == list(range(11)) and len(headers) == 3


def test_small_returns_keep_their_digits(tmp_path: Path) -> None:
    printed = shown(tmp_path, [1], 1e-3)
    assert not re.search(r"\b-?0\.0\b", printed)
    assert re.search(r"-0\.0\d{3}", printed)


def test_success_is_shown_where_it_was_reported_alone(tmp_path: Path) -> None:
    assert "Success in % on 30 held-out tasks of bandit" in shown(tmp_path, [4, 1])
    assert "Success" not in shown(tmp_path, [4, 1], success=False)


def test_episodes_of_memory_agents_are_counted_from_one(tmp_path: Path) -> None:
    printed = shown(tmp_path, [2], agent=RL2Config(), success=False, num_tasks=1000)
    header = next(line for line in printed.splitlines() if line.startswith("┃"))
    assert [cell.strip() for cell in header.strip("┃").split("┃")] == ["in episode:", "1", "2"]
    assert "1,000 held-out tasks" in printed


def test_tasks_that_were_drawn_again_are_told(tmp_path: Path) -> None:
    assert "Return on 30 held-out tasks (2 distinct) of bandit" in " ".join(
        shown(tmp_path, [2], num_distinct=2).split()
    )
    assert {row["distinct_tasks"] for row in json.loads((tmp_path / "x.json").read_text())["rows"]} == {2}


def test_one_task_has_no_interval_over_tasks(tmp_path: Path) -> None:
    printed = shown(tmp_path, [4, 1], num_tasks=1)
    assert "Return on 1 held-out task of bandit" in printed and "one task has no interval over tasks" in printed
    values = [cell for line in cells(printed) for cell in line[1:] if cell]
    assert len(values) == 2 * (4 + 1) and not any(re.fullmatch(INTERVAL, value) for value in values)
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert all(interval[1:] == [None, None] for row in rows for interval in row["intervals"])
    assert all(interval[0] is not None for row in rows for interval in row["intervals"])


def test_the_official_table_keeps_its_intervals_whole_in_80_characters() -> None:
    """Long names of tasks break instead."""
    names = [f"{name}-with-a-rather-long-name-v3" for name in ("reach", "button-press-topdown-wall")]
    by_task = {name: TaskScores((0.5, 1.0, 0.1), (0.001, 0.002, 0.003), 100, 0) for name in names}
    settings = {
        **{"task_set": "ml10", "split": "test", "protocol": "p", "adaptation_episodes": 10, "evaluation_episodes": 3},
        **{"deterministic": True, "versions": {}, "reward_version": "v2", "goals_seed": 0},
    }
    file = io.StringIO()
    upstream = dict.fromkeys([*names, "mean"], 0.5)
    print_table(OfficialScores(settings, by_task, upstream), "rl2", Console(file=file, width=80))
    rows = cells(file.getvalue())
    intervals = [cell for line in rows for cell in line if ".." in cell]
    assert len(intervals) == 3 and all(re.fullmatch(r"[\d.]+ \.\. [\d.]+", cell) for cell in intervals)
    assert any("0.00200" in line for line in rows)
    assert all("…" not in cell for line in rows for cell in line)
