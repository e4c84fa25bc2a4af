"""README's tables are made of committed scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarl.benchmarks.summary import README, RESULTS, Adapted, Tabled, filled, tables_text
from metarl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def test_readme_says_what_the_scores_say() -> None:
    text = (ROOT / README).read_text()
    assert filled(text, ROOT / RESULTS) == text, "run python -m metarl.benchmarks.summary"
    assert "| [rl2-mdps](benchmarks/results/rl2-mdps) |" in text


def test_figures_are_means_over_the_seeds_of_one_agent(tmp_path: Path) -> None:
    for agent, seed, returns in (("a", 1, "[[1, 2], [3, 4]]"), ("a", 2, "[[5, 6], [7, 8]]"), ("b", 1, "[[50, 60]]")):
        path = tmp_path / "tasks" / f"tasks-{agent}-seed{seed}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'{{"agent": "{agent}", "tasks": "tasks", "seed": {seed}, "returns": {returns}}}')
    assert float(Adapted("tasks", "a").text(tmp_path)) == 5.0
    assert float(Adapted("tasks", "a", 0).text(tmp_path)) == 4.0
    with pytest.raises(ConfigError, match="holds no score of c"):
        Adapted("tasks", "c").text(tmp_path)


def test_scores_and_marks_that_are_missing_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MAML/10 grad steps of the table fewshot-sinusoid has no score"):
        Tabled("fewshot-sinusoid", "MAML", "10 grad steps").text(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown cell of fewshot-sinusoid 'MAML/10 steps'\. Did you mean"):
        Tabled("fewshot-sinusoid", "MAML", "10 steps").text(tmp_path)
    with pytest.raises(ConfigError, match="no marks <!-- results -->"):
        filled("# metarl", ROOT / RESULTS)
    assert tables_text(tmp_path).count("\n") == 1
