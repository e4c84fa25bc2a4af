"""A page for every agent, with exactly the metrics that it logs, and figures that stand in committed results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers.pages import PAGES, folder_of

from metarl import Collector, make, run_trial
from metarl.agents import AGENTS
from metarl.config import from_dict
from metarl.seeding import numpy_stream

REFERENCES = ("pretrained", "oracle", "random")
PAGE_OF = {name: f"algorithms/{'references' if name in REFERENCES else name}.md" for name in AGENTS}
SECTIONS = ["Command", "Metrics", "Differences from the paper and its code", "Results"]
NUMBER = re.compile(r"-?\d[\d,]*\.\d+")


def _logged(name: str) -> set[str]:
    """Names of what a meta-update of the agent returns; of VariBAD with everything that it can decode."""
    tasks = make("bandit")
    settings = {"rollouts_per_task": 2, **({"decode_states": True} if name == "varibad" else {})}
    agent = from_dict(AGENTS[name], settings).build(tasks.spec, torch.device("cpu"), seed=1)
    collector = Collector(tasks, agent.rollouts_per_task, agent.device)
    drawn = tasks.train.sample(3, numpy_stream(1, "tasks"))
    trial = run_trial(agent, collector, drawn, agent.num_adaptations, seed=1)
    collector.close()
    return set(agent.meta_update(trial))


def test_every_agent_has_a_page_and_no_page_is_left_over() -> None:
    pages = {page for page in PAGES if page.startswith("algorithms/")} - {"algorithms/index.md"}
    assert pages == set(PAGE_OF.values())
    for name in AGENTS:
        assert f"`{name}`" in PAGES["algorithms/index.md"]


@pytest.mark.parametrize("page", sorted(set(PAGE_OF.values())))
def test_a_page_follows_the_template(page: str) -> None:
    text = PAGES[page]
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
    assert text.index("```text") < text.index("## Command")  # the equation
    assert "arxiv.org/abs/" in text.split("## Command")[0]


@pytest.mark.parametrize("name", AGENTS)
def test_a_page_lists_exactly_the_metrics_that_its_agent_logs(name: str) -> None:
    listed = set(re.findall(r"^\| `agent/(\w+)` \|", PAGES[PAGE_OF[name]], re.MULTILINE))
    assert listed == _logged(name) or (name == "random" and not _logged(name))


def _parts(text: str) -> list[str]:
    """Table rows, list items and paragraphs of a page, without its blocks of code."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.split(r"\n\n|\n(?=\||- )", prose)


QUOTING = [
    (page, part)
    for page, text in PAGES.items()
    for part in _parts(text)
    if "benchmarks/results/" in part and NUMBER.search(re.sub(r"\]\([^)]*\)", "]", part))
]


def _sources(page: str, part: str) -> str:
    """The committed results that a part of a page links to, with the remarks beside them."""
    files: set[Path] = set()
    for link in re.findall(r"\]\(([^)#]*benchmarks/results/[^)#]*)\)", part):
        path = folder_of(page) / link
        folder = path if path.is_dir() else path.parent
        files |= set(folder.glob("*.md"))
    return "\n".join(file.read_text() for file in files)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


@pytest.mark.parametrize(("page", "part"), QUOTING, ids=[f"{page}-{i}" for i, (page, _) in enumerate(QUOTING)])
def test_figures_beside_a_link_to_results_stand_in_these_results(page: str, part: str) -> None:
    known = [_value(number) for number in NUMBER.findall(_sources(page, part))]
    # What is published, and what stands in a name or a setting, is no result of ours.
    quoted = re.sub(r"\]\([^)]*\)|`[^`]*`|https?://\S+|arXiv \S+|\d+\.\d+\.\d+", "", part)
    for number in NUMBER.findall(quoted):
        rounding = 0.5 * 10.0 ** -len(number.split(".")[1]) + 1e-9
        assert any(abs(_value(number) - other) <= rounding for other in known), (
            f"{page}: {number} stands in none of the results that are linked beside it:\n{part}"
        )


def test_a_figure_that_is_made_up_is_found() -> None:
    row = "| [navigation-2d](../../benchmarks/results/navigation-2d/README.md) | -37.5 | -1.97 |"
    with pytest.raises(AssertionError, match=r"-1\.97 stands in none"):
        test_figures_beside_a_link_to_results_stand_in_these_results("algorithms/maml-trpo.md", row)
