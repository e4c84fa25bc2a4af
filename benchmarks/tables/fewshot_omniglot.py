"""Omniglot in the four sizes that all papers report, each learner beside its own paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from metarl.benchmarks.fewshot.source import FewShotSource
from metarl.benchmarks.papers import Published, rows_of
from metarl.benchmarks.reproduce.table import PaperTable, TableCell
from metarl.fewshot.tasks.omniglot import WHERE

_SIZES = ((5, 1), (5, 5), (20, 1), (20, 5))

_SETTINGS = {"precision": "bfloat16"}
"""Convolutions alone; on the processor of the results it is 1.5 to 2 times as fast."""

_LEARNERS = {
    "MAML": "maml",
    "FOMAML": "fomaml",
    "Reptile": "reptile",
    "Matching Networks": "matching",
    "SNAIL": "snail",
}
"""Our learners by row, but for Prototypical Networks."""

_ITERATIONS: Mapping[str, Mapping[tuple[int, int], int]] = {
    "MAML": {(5, 1): 10_000, (5, 5): 4000, (20, 1): 4000, (20, 5): 1000},
    "FOMAML": {(5, 1): 10_000},
    "Reptile": {(5, 1): 10_000},
    "Matching Networks": {(5, 1): 5000},
    "SNAIL": {(5, 1): 10_000},
}
"""Meta-updates by row and size, what two cores can; other sizes run on request, with as many as 5-way 1-shot."""

_PROTONET_ITERATIONS = 4000


def _test_queries(row: str, shots: int) -> int | None:
    """Queries of each class in a test task of the published number, where the network normalises by them.

    MAML's code, which Reptile's authors ran for first-order MAML too, predicts as many as there are shots, and
    Reptile's one. The fewer they are, the more they tell of each other: one of each class is in the batch.
    """
    return {"MAML": shots, "FOMAML": shots, "Reptile": 1}.get(row)


def _published(row: str, ways: int, shots: int) -> Published:
    """What a learner's own paper has; first-order MAML is in Reptile's, and Reptile is transductive as ours."""
    short, long = f"{ways}w{shots}s", f"{ways}-way {shots}-shot"
    paper, table, setting, method = {
        "Prototypical Networks": ("ProtoNets", "Tables 1-2", long, "ProtoNets"),
        "Matching Networks": ("Matching Nets", "Tables 1-2", long, "Matching Nets (mini: FCE)"),
        "MAML": ("MAML", "Table 1", short, "MAML"),
        "FOMAML": ("Reptile", "Table 2", short, "FOMAML+T"),
        "Reptile": ("Reptile", "Table 2", short, "Reptile+T"),
        "SNAIL": ("SNAIL", "Table 1", short, "SNAIL"),
    }[row]
    return rows_of(paper, table, "Omniglot")[setting, method]


def _cells() -> Iterator[TableCell]:
    # Their training does not depend on the ways of the test: one run for the columns of a row.
    for shots in (1, 5):
        train = {"num_iterations": _PROTONET_ITERATIONS}
        source = FewShotSource("protonet", "omniglot", (5, 20), shots, train=train, settings=_SETTINGS)
        for ways in (5, 20):
            published = _published("Prototypical Networks", ways, shots)
            row = f"Prototypical Networks, {shots}-shot"
            yield TableCell(row, f"{ways}-way", source, (1,), published, measure=f"{ways}way-{shots}shot")
    for row, learner in _LEARNERS.items():
        for ways, shots in _SIZES:
            iterations = _ITERATIONS[row]
            train = {"num_iterations": iterations.get((ways, shots), iterations[5, 1])}
            settings = dict(_SETTINGS) | ({"anneal_iterations": train["num_iterations"]} if row == "Reptile" else {})
            yield TableCell(
                f"{row}, {shots}-shot",
                f"{ways}-way",
                FewShotSource(
                    learner,
                    "omniglot",
                    (ways,),
                    shots,
                    test_queries=_test_queries(row, shots),
                    train=train,
                    settings=settings,
                ),
                (1,),
                _published(row, ways, shots),
                on_request=(ways, shots) not in _ITERATIONS[row],
            )


TABLE = PaperTable(
    name="fewshot-omniglot",
    title="Omniglot",
    about=(
        "1,028 characters to train on, 172 to look at meanwhile and 423 to test on (the papers' last training is on "
        "the first two together), rotations by 90 degrees as new classes, the four-layer convolutional network of the "
        "papers with its convolutions in bfloat16 (accuracies in float32 were not compared), 1,000 test tasks. The "
        "budget is what two cores can, where the papers train for 60,000 meta-updates and more. Learners that "
        "normalise by the test examples have as many of them as in their papers, one of each class to one for each "
        "shot, as their accuracy depends on it."
    ),
    cells=tuple(_cells()),
    metric="accuracy in %",
    version=2,
    small=0.02,
    published_tasks=1000,
    data=WHERE,
)
