"""MAML (Finn et al. 2017, arXiv 1703.03400), Table 4 and figure 4: 2-D navigation; ANIL's Table 2 beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metarl.benchmarks.papers import Published, rows_of
from metarl.benchmarks.reproduce.agents import AgentSource
from metarl.benchmarks.reproduce.table import PaperTable, TableCell

_TASKS = "navigation-2d"

_ROWS: Mapping[str, tuple[str, str | None, Mapping[str, Any], Mapping[str, Any]]] = {
    "MAML": ("maml-trpo", "MAML", {}, {}),
    "ANIL": ("anil", None, {}, {}),
    "pretrained": ("pretrained", "pretrained (sens0.pkl)", {}, {}),
    # One meta-update that moves nothing: the network as it is made.
    "random init": ("maml-trpo", "random init", {"num_iterations": 1}, {"max_kl": 1e-12}),
    "oracle": ("oracle", "oracle", {}, {}),
}
"""By row: agent, what the paper calls it, and what differs from its preset."""


def _published(method: str | None, steps: int) -> Published | None:
    return rows_of("MAML", "Fig 4/5 data", "2D navigation").get((f"{steps} grad steps", method or ""))


def _cells() -> Iterator[TableCell]:
    anil = rows_of("ANIL", "Table 2", "2D navigation")["MAML protocol (appendix C.4 not retrieved)", "ANIL"]
    for row, (agent, method, train, settings) in _ROWS.items():
        source = AgentSource(agent, _TASKS, None, train, settings, num_tasks=100, rollouts_per_task=40)
        for steps in range(4):
            published, reason = _published(method, steps), ""
            if (row, steps) == ("ANIL", 1):
                published, reason = anil, "after a number of steps that was not retrieved"
            if row == "oracle" and steps > 0:
                continue
            yield TableCell(row, f"{steps} steps", source, (1, 2, 3), published, reason, measure=str(steps))


TABLE = PaperTable(
    name="maml-navigation",
    title="MAML, Table 4 and figure 4: 2-D navigation",
    about=(
        "A point must go to a hidden position within 100 steps. Mean return before and after 1 to 3 gradient steps of "
        "40 episodes each, as in the authors' test; from the second step on with half the step size, as in theirs. The "
        "published numbers are those of the data that the authors plot, whose ± is a 95 % interval over 40 tasks. "
        "`random init` is the network before training."
    ),
    cells=tuple(_cells()),
    metric="return",
    version=1,
    small=0.1,
    small_seeds=1,
)
