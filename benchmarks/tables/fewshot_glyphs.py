"""All few-shot learners on characters of a font, with new alphabets to test on: of no paper, and without a download."""

from __future__ import annotations

from collections.abc import Iterator

from metarl.benchmarks.fewshot.source import FewShotSource
from metarl.benchmarks.reproduce.table import PaperTable, TableCell
from metarl.fewshot.learners import LEARNERS

_SIZES = ((5, 1), (5, 5), (20, 1))

_FASTER_IN_BFLOAT16 = ("reptile", "protonet", "matching", "nearest-neighbour", "pretrained")
"""Learners that it serves: .45 to .75 of the time on the processor of the results. MAML and SNAIL gain nothing."""


def _cells() -> Iterator[TableCell]:
    for learner in LEARNERS:
        settings = {"precision": "bfloat16"} if learner in _FASTER_IN_BFLOAT16 else {}
        for ways, shots in _SIZES:
            source = FewShotSource(learner, "glyphs", (ways,), shots, settings=settings)
            yield TableCell(learner, f"{ways}-way {shots}-shot", source, (1, 2, 3))


TABLE = PaperTable(
    name="fewshot-glyphs",
    title="Few-shot learners on glyphs",
    about=(
        "Characters of the font DejaVu Sans in 28 x 28, 20 drawings of each with affine and elastic jitter of their "
        "own, alphabets that training has not seen, 1,000 test tasks. Every learner has its preset, with the same "
        "network of half the papers' filters, and budgets of minutes: what it says is which learns fast, not which is "
        "best in the end."
    ),
    cells=tuple(_cells()),
    metric="accuracy in %",
    version=2,
    small=0.02,
)
