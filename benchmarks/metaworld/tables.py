"""What the tables of ML10, ML25 and ML45 share: their rows and columns, with what papers report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from metarl.benchmarks.metaworld.references import REFERENCES
from metarl.benchmarks.metaworld.runs import Split
from metarl.benchmarks.metaworld.source import BEST, OfficialSource, ReferenceSource
from metarl.benchmarks.papers import Published
from metarl.benchmarks.reproduce.table import PaperTable, TableCell

Beside = Mapping[tuple[str, str], tuple[Published, str]]
"""By row and column, a published number and why ours is not to be compared with it."""

AGENTS: Mapping[str, tuple[str, str]] = {
    "MAML-TRPO": ("maml-trpo", ""),
    "MAML-TRPO narrow": ("maml-trpo", "narrow"),
    "RL2": ("rl2", ""),
    "RL2 recall": ("rl2", "recall"),
    "RL2 + HN": ("rl2", "hypernetwork"),
    "VariBAD + HN": ("varibad", "hypernetwork"),
}
"""Agent and variant of its preset by row; narrow: layers of 128; HN: a hypernetwork makes the head's weights."""

MAXIMUM = "the mean of the maxima over training, of 10 seeds, by sampled actions"
"""What Meta-World's own paper reports."""


def several_tasks_table(
    tasks: str, single: Mapping[Split, tuple[str, ...]], beside: Beside, *, about: str, on_request: bool
) -> PaperTable:
    """The table of a task set of several kinds of tasks.

    Args:
        tasks: ``"ml10"``, ``"ml25"`` or ``"ml45"``.
        single: tasks of each split that have a column of their own.
        beside: published numbers.
        about: what the page says beside what all of them say.
        on_request: whether agents are trained only if they are asked for.
    """
    alone = (f"{split} {name}" for split, names in single.items() for name in names)
    measures = ("test", "test sampled", "train", "train sampled", BEST, *alone)

    def cells() -> Iterator[TableCell]:
        for row, (agent, variant) in AGENTS.items():
            preset = f"{agent}:{tasks}:{variant}" if variant else None
            source = OfficialSource(tasks, ("train", "test"), agent, preset)
            for measure in measures:
                published, reason = beside.get((row, measure), (None, ""))
                yield TableCell(row, measure, source, (1,), published, reason, on_request, measure)
        for row in REFERENCES:
            reference = ReferenceSource(tasks, ("train", "test"), row)
            for measure in measures:
                if "sampled" not in measure and measure != BEST:
                    yield TableCell(row, measure, reference, (1,), measure=measure)

    return PaperTable(
        name=f"metaworld-{tasks}",
        title=f"Meta-World {tasks.upper()}",
        about=f"{PROTOCOL} {about}",
        cells=tuple(cells()),
        metric="success in %",
        version=1,
        small=0.02,
        aggregate="percent",
        requires=("metaworld", "metaworld"),
    )


DOOR_CLOSE = (
    "Solving door-close alone, which an agent that pushes in one direction does, gives 20 % on the test tasks: that is "
    "their floor."
)

PROTOCOL = (
    "By the official protocol: every goal of the split, 10 adaptation episodes, then 3 by the mode of the policy, "
    "success at any step. *Sampled* is the success of 3 more episodes by sampled actions, as garage's evaluation acts, "
    f"from the same state. *{BEST[0].upper()}{BEST[1:]}* is the highest success of a meta-batch in training, which is "
    "near to what papers that report maxima do. The scripted expert alone is shown the goals."
)
"""How all tables of Meta-World are scored."""
