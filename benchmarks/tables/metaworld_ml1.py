"""Meta-World ML1: new goals of one task; reach, push and pick-place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from metarl.benchmarks.metaworld.references import REFERENCES
from metarl.benchmarks.metaworld.source import BEST, OfficialSource, ReferenceSource
from metarl.benchmarks.metaworld.tables import AGENTS, PROTOCOL
from metarl.benchmarks.papers import Published, rows_of
from metarl.benchmarks.reproduce.table import PaperTable, TableCell

_SEEDS = {"reach-v3": (1, 2, 3), "push-v3": (1, 2, 3), "pick-place-v3": (1,)}

_LONGER = {"reach-v3": ("RL2", "RL2 recall"), "push-v3": ("RL2", "RL2 recall")}
"""Agents by task that are also trained for more steps than the official budget."""


def _beside() -> Mapping[tuple[str, str, str], tuple[Published, str]]:
    """Published numbers by task, agent and measure, and why ours are not to be compared with them."""
    garage, reason = rows_of("garage interim", "csv", "ML1 push-v2"), "version 2 of the task, many more steps"
    picked = rows_of("garage interim", "csv", "ML1 pick-place-v2")
    beck = rows_of("Beck 2022", "Table 2", "ML1 pick-place")
    authors = "10 seeds by the authors' own evaluation, through a reading note"
    return {
        ("push-v3", "MAML-TRPO", "test sampled"): (garage["test @200M", "MAML-TRPO"], reason),
        ("push-v3", "RL2", "test sampled"): (garage["test @~55M", "RL2-PPO"], reason),
        ("pick-place-v3", "MAML-TRPO", "test sampled"): (picked["test @200M", "MAML-TRPO"], reason),
        ("pick-place-v3", "RL2", "test sampled"): (picked["test @~55M", "RL2-PPO"], reason),
        ("pick-place-v3", "VariBAD + HN", "test"): (beck["meta-test", "VariBAD HN Bias-HyperInit"], authors),
    }


def _cells() -> Iterator[TableCell]:
    beside = _beside()
    for name, seeds in _SEEDS.items():
        tasks = f"ml1/{name}"
        for agent, (kind, variant) in AGENTS.items():
            preset = f"{kind}:{tasks}:{variant}" if variant else None
            source = OfficialSource(tasks, ("test",), kind, preset)
            for measure in ("test", "test sampled", BEST):
                published, reason = beside.get((name, agent, measure), (None, ""))
                on_request = agent == "VariBAD + HN" and name != "pick-place-v3"
                yield TableCell(f"{name}, {agent}", measure, source, seeds, published, reason, on_request, measure)
        for agent in _LONGER.get(name, ()):
            kind, variant = AGENTS[agent]
            preset = f"{kind}:{tasks}:{variant}" if variant else None
            longer = OfficialSource(tasks, ("test",), kind, preset, train={"num_iterations": 100})
            for measure in ("test", "test sampled", BEST):
                yield TableCell(f"{name}, {agent}, 5 M steps", measure, longer, (1,), on_request=True, measure=measure)
        for reference in REFERENCES:
            source_of_it = ReferenceSource(tasks, ("test",), reference)
            yield TableCell(f"{name}, {reference}", "test", source_of_it, (1,), measure="test")


TABLE = PaperTable(
    name="metaworld-ml1",
    title="Meta-World ML1: reach, push and pick-place",
    about=f"{PROTOCOL} Budgets are the official one, 2 M steps, where the row does not say another.",
    cells=tuple(_cells()),
    metric="success on new goals in %",
    version=1,
    small=0.02,
    small_seeds=1,
    aggregate="percent",
    requires=("metaworld", "metaworld"),
)
