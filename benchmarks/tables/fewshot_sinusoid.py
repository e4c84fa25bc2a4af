"""MAML (Finn et al. 2017, arXiv 1703.03400v1), Table 2: regression of sinusoids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metarl.benchmarks.fewshot.source import FewShotSource
from metarl.benchmarks.papers import rows_of
from metarl.benchmarks.reproduce.table import PaperTable, TableCell

_AVERAGED = "metarl.benchmarks.fewshot.averaged"

_LEARNERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "MAML": ("maml", {}),
    "pretrain on all": ("pretrained", {}),
    "multi-task no reg": (f"{_AVERAGED}:AveragedConfig", {"num_iterations": 32}),
    "multi-task l2": (f"{_AVERAGED}:AveragedL2Config", {"num_iterations": 32}),
    "multi-task reg to mean": (f"{_AVERAGED}:AveragedToMeanConfig", {"num_iterations": 32}),
}
"""Our learners by what the paper calls them, and what their training differs by."""


def _cells() -> Iterator[TableCell]:
    paper = rows_of("MAML", "Table 2")
    for row, (learner, train) in _LEARNERS.items():
        source = FewShotSource(learner, "sinusoid", (1,), 10, test_shots=5, train=train)
        for steps in (1, 5, 10):
            column = f"{steps} grad steps"
            yield TableCell(row, column, source, (1, 2, 3), paper[column, row], measure=str(steps))


TABLE = PaperTable(
    name="fewshot-sinusoid",
    title="MAML, Table 2: sinusoids",
    about=(
        "Sinusoids of amplitudes in [0.1, 5] and phases in [0, pi], trained with 10 points and tested with 5, after 1, "
        "5 and 10 gradient steps. MAML's inner step is the 0.001 of the authors' code. The multi-task rows average the "
        "parameters of networks that were trained on single tasks, with no penalty, one on the norm, or one on the "
        "distance from the mean; their penalties and step sizes were chosen on other tasks than these."
    ),
    cells=tuple(_cells()),
    metric="mean squared error, lower is better",
    version=1,
    small=0.02,
    notes={
        "MAML": "lower, which is better: after the one step that it is trained for as in the paper, then further down.",
        "multi-task no reg": "higher. The mean of networks that each know their own task is close to zero everywhere, "
        "from which small steps lead nowhere, and larger ones were worse on the tasks that settings were chosen on.",
        "multi-task l2": "lower. The paper names no penalty; the one that was best elsewhere lets networks shrink "
        "towards zero, so that their mean is no worse than no network at all, where the paper's is.",
        "multi-task reg to mean": "lower, which is better.",
    },
)
