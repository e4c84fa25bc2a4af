"""What README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metarl.errors import ConfigError
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution
from metarl.testing import check_tasks

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0].split()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_the_environment_of_the_readme_is_a_sound_distribution_of_tasks() -> None:
    space: dict[str, object] = {}
    exec(PYTHON[0], space)
    distribution = space["pendulums"]
    assert isinstance(distribution, TaskDistribution)
    check_tasks(distribution)


def test_the_agent_of_the_readme_trains_and_adapts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(PYTHON[1], space)
    scores = space["scores"]
    assert scores.interval(1)[0] > scores.interval(0)[0] + 0.5  # type: ignore[attr-defined]
    assert (tmp_path / "runs/last-arm/metrics.jsonl").exists()


def test_every_task_name_in_a_readme_command_is_known() -> None:
    trained = [words for words in COMMANDS if words[:2] == ["metarl", "train"] and not words[2].startswith("-")]
    assert len(trained) >= 3
    for words in trained:
        if ":" not in words[3]:
            load_distribution(words[3])
    with pytest.raises(ConfigError):
        load_distribution("no-such-tasks")
