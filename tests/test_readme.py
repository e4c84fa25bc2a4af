"""What README and the pages beside it show runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pages import PAGES, commands, run_python
from PIL import Image

from metarl.errors import ConfigError
from metarl.fewshot.learners import LEARNERS
from metarl.fewshot.tasks import FewShotTasks
from metarl.fewshot.tasks.registry import FEWSHOT_FOLDERS, FEWSHOT_TASKS
from metarl.fewshot.types import EpisodeConfig
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution
from metarl.testing import check_tasks

COMMANDS = [words for page in PAGES for words in commands(page)]


def test_the_environment_of_the_docs_is_a_sound_distribution_of_tasks() -> None:
    distribution = run_python("environments.md")["pendulums"]
    assert isinstance(distribution, TaskDistribution)
    check_tasks(distribution)


def test_the_agent_of_the_docs_trains_and_adapts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores = run_python("agents.md")["scores"]
    assert scores.interval(1)[0] > scores.interval(0)[0] + 0.5  # type: ignore[attr-defined]
    assert (tmp_path / "runs/last-arm/metrics.jsonl").exists()


def test_the_deployed_agent_of_the_docs_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_python("deploying.md")
    assert names["learner"].num_adaptations == 1  # type: ignore[attr-defined]
    assert names["memory"].any()  # type: ignore[attr-defined]
    logged = (tmp_path / "runs/watched/metrics.jsonl").read_text()
    assert '"extremes/return_1"' in logged and (tmp_path / "policy.pt2").is_file()


def test_the_adapted_model_of_the_docs_learns() -> None:
    """Encoder, head and step size together: the loss after adaptation falls well below its start."""
    torch.manual_seed(0)
    names = run_python("adaptation.md")
    losses, rate = names["losses"], names["rate"]
    assert isinstance(losses, list) and isinstance(rate, torch.Tensor)
    assert sum(losses[-30:]) < 0.4 * sum(losses[:30])
    assert abs(rate.item() - 0.05) > 1e-3


def test_the_few_shot_tasks_of_the_docs_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        (tmp_path / "photos" / f"class{number}").mkdir(parents=True)
        for side in (30, 40):
            pixels = np.full((side, side, 3), number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"class{number}" / f"{side}.png")
    np.save("images.npy", np.zeros((27, 28, 28), np.uint8))
    np.save("labels.npy", np.arange(27) % 9)
    names = run_python("fewshot-data.md")
    classes = EpisodeConfig(ways=2, shots=1, queries=1)
    for name, episode, shape in (
        ("photos", classes, (3, 2, 3, 32, 32)),
        ("arrays", classes, (3, 2, 1, 28, 28)),
        ("parabolas", EpisodeConfig(1, 10, 10), (3, 10, 1)),
    ):
        tasks = names[name]
        assert isinstance(tasks, FewShotTasks)
        assert tasks.sample("test", 3, episode, np.random.default_rng(0)).support.x.shape == shape


def test_the_network_of_the_docs_learns_sinusoids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scores = run_python("fewshot.md")["scores"]
    assert scores.intervals[-1][0] < 0.8 * scores.intervals[0][0]  # type: ignore[attr-defined]
    assert (tmp_path / "runs/sinusoids/metrics.jsonl").exists()


def test_the_docs_list_every_learner_and_their_commands_name_known_ones() -> None:
    rows = re.findall(r"^\| (`.+?) \|", PAGES["fewshot.md"], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([\w-]+)`", row)]
    assert sorted(listed) == sorted(LEARNERS)
    trained = [words for words in COMMANDS if words[:3] == ["metarl", "fewshot", "train"]]
    assert trained
    for words in trained:
        assert words[3] in LEARNERS and words[4] in {*FEWSHOT_TASKS, *FEWSHOT_FOLDERS}


def test_the_docs_list_every_family_of_few_shot_tasks() -> None:
    listed = re.findall(r"^\| `([\w-]+)` \|", PAGES["fewshot-data.md"], re.MULTILINE)
    assert sorted(listed) == sorted([*FEWSHOT_TASKS, *FEWSHOT_FOLDERS])


def test_every_task_name_in_a_readme_command_is_known() -> None:
    trained = [words for words in COMMANDS if words[:2] == ["metarl", "train"] and not words[2].startswith("-")]
    assert len(trained) >= 3
    for words in trained:
        if ":" not in words[3]:
            load_distribution(words[3])
    with pytest.raises(ConfigError):
        load_distribution("no-such-tasks")
