"""README's tables, from committed scores: ``python -m metarl.benchmarks.summary`` writes them, in a clone.

A test makes them again and compares, so that no figure of README can differ from the scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarl.benchmarks.cells import cell_of
from metarl.benchmarks.papers import rows_of
from metarl.benchmarks.reproduce.scores import read_scores
from metarl.benchmarks.reproduce.verdicts import Kind, Result, results_of
from metarl.benchmarks.tables import load_table, table_names
from metarl.errors import ConfigError, told_errors, unknown_name
from metarl.runs.files import read_json, write_atomically
from metarl.statistics import crossed_interval, interval_texts

RESULTS = Path("benchmarks/results")
"""From the root of a clone."""

README = Path("README.md")

KINDS: Sequence[Kind] = ("within", "above", "below", "not comparable", "not run")


class Figure(ABC):
    """One number of a table."""

    @abstractmethod
    def text(self, results: Path) -> str:
        """The number as README shows it, from the scores in a folder of results."""


@dataclass(frozen=True)
class Adapted(Figure):
    """Mean return over seeds and held-out tasks after some adaptations, from ``metarl.benchmarks.adaptation``.

    Attributes:
        folder: name of the results' folder.
        agent: name of the agent, or ``AGENT:VARIANT``.
        shot: adaptations before it; -1 for all.
    """

    folder: str
    agent: str
    shot: int = -1

    def text(self, results: Path) -> str:
        """Mean over the seeds of the agent's scores, with the digits that its page shows."""
        scores = [read_json(path) for path in sorted((results / self.folder).glob("*-seed*.json"))]
        mine = [score for score in scores if cell_of(score).label == self.agent]
        returns = [np.asarray(score["returns"])[:, self.shot] for score in mine]
        if not returns:
            raise ConfigError(f"{results / self.folder} holds no score of {self.agent}.")
        return interval_texts(crossed_interval([np.array(returns)]))[0]


@dataclass(frozen=True)
class Tabled(Figure):
    """A cell of a table that ``metarl reproduce`` has run."""

    table: str
    row: str
    column: str

    def text(self, results: Path) -> str:
        """Ours, with the digits that its page shows."""
        by_cell = {result.cell.key: result for result in _results(self.table, results)}
        key = f"{self.row}/{self.column}"
        if key not in by_cell:
            raise unknown_name(f"cell of {self.table}", key, by_cell)
        found = by_cell[key]
        if found.interval is None:
            raise ConfigError(f"{found.cell.key} of the table {self.table} has no score in {results}.")
        return interval_texts(found.interval)[0]


@dataclass(frozen=True)
class Reported(Figure):
    """What a paper reports, or what is known."""

    number: float

    def text(self, results: Path) -> str:
        """The number, with the digits that it was given."""
        return f"{self.number:g}"


@dataclass(frozen=True)
class Line:
    """A line of the table of results.

    Attributes:
        tasks: what README calls them.
        folder: name of the results' folder, which it links to.
        agent: what README calls it.
        after: the figure after adaptation.
        beside: what stands beside it, in words, each with its figures.
        before: the figure before adaptation.
        unit: after every figure, such as `` %``.
        more: said of the tasks, after the link.
    """

    tasks: str
    folder: str
    agent: str
    after: Figure
    beside: tuple[tuple[str, tuple[Figure, ...]], ...]
    before: Figure | None = None
    unit: str = ""
    more: str = ""

    def text(self, results: Path) -> str:
        """In Markdown."""
        beside = "; ".join(
            f"{words} {', '.join(figure.text(results) + self.unit for figure in figures)}"
            for words, figures in self.beside
        )
        before = "" if self.before is None else self.before.text(results) + self.unit
        link = f"[{self.tasks}]({RESULTS.as_posix()}/{self.folder})"
        after = self.after.text(results) + self.unit
        return f"| {link}{self.more} | {self.agent} | {before} | {after} | {beside} |"


def _lines() -> Iterator[Line]:
    yield Line(
        "cartpole-goal",
        "cartpole-goal",
        "MAML-TRPO",
        Adapted("cartpole-goal", "maml-trpo"),
        (("one policy, fine-tuned:", (Adapted("cartpole-goal", "pretrained"),)),),
        before=Adapted("cartpole-goal", "maml-trpo", 0),
    )
    maml = rows_of("MAML", "Fig 4/5 data", "2D navigation")
    yield Line(
        "navigation-2d",
        "navigation-2d",
        "MAML-TRPO",
        Adapted("navigation-2d", "maml-trpo"),
        (("MAML's paper:", tuple(Reported(maml[f"{steps} grad steps", "MAML"].value) for steps in (0, 3))),),
        before=Adapted("navigation-2d", "maml-trpo", 0),
    )
    yield Line(
        "navigation-2d",
        "navigation-2d",
        "RL² with recall",
        Adapted("navigation-2d", "rl2:recall"),
        (("without:", tuple(Adapted("navigation-2d", "rl2", shot) for shot in (0, 1))),),
        before=Adapted("navigation-2d", "rl2:recall", 0),
    )
    rl2 = rows_of("RL2", "Table 1")
    yield Line(
        "bandit",
        "bandit",
        "RL²",
        Adapted("bandit", "rl2"),
        (("RL²'s paper:", (Reported(rl2["n=10,k=5", "RL2"].value),)),),
    )
    cheetah = "locomotion-cheetah-direction"
    yield Line(
        "cheetah-direction",
        cheetah,
        "VariBAD",
        Adapted(cheetah, "varibad"),
        (("told the direction:", (Adapted(cheetah, "oracle", 0),)),),
    )
    ml1 = "metaworld-ml1"
    yield Line(
        "ML1 reach",
        ml1,
        "MAML-TRPO",
        Tabled(ml1, "reach-v3, MAML-TRPO", "test"),
        (
            ("RL²:", (Tabled(ml1, "reach-v3, RL2", "test"),)),
            ("with recall, two seeds:", (Tabled(ml1, "reach-v3, RL2 recall", "test"),)),
        ),
        unit=" %",
    )
    yield Line(
        "ML1 push",
        ml1,
        "RL²",
        Tabled(ml1, "push-v3, RL2, 5 M steps", "test"),
        (
            ("with recall, 2 M steps, two seeds:", (Tabled(ml1, "push-v3, RL2 recall", "test"),)),
            ("random:", (Tabled(ml1, "push-v3, random policy", "test"),)),
        ),
        unit=" %",
        more="; 5 M steps, one seed",
    )
    ml10 = "metaworld-ml10"
    yield Line(
        "ML10",
        ml10,
        "MAML-TRPO, layers of 128",
        Tabled(ml10, "MAML-TRPO narrow", "test"),
        (("RL²:", (Tabled(ml10, "RL2", "test"),)), ("closing every door:", (Reported(20),))),
        unit=" %",
        more=", new tasks; one seed",
    )
    sinusoid = rows_of("MAML", "Table 2")
    yield Line(
        "sinusoids",
        "fewshot-sinusoid",
        "MAML",
        Tabled("fewshot-sinusoid", "MAML", "10 grad steps"),
        (("MAML's paper:", (Reported(sinusoid["10 grad steps", "MAML"].value),)),),
        more=", few-shot, squared error",
    )
    protonet = rows_of("ProtoNets", "Tables 1-2", "Omniglot")["5-way 1-shot", "ProtoNets"]
    yield Line(
        "Omniglot",
        "fewshot-omniglot",
        "Prototypical Networks",
        Tabled("fewshot-omniglot", "Prototypical Networks, 1-shot", "5-way"),
        (("its paper:", (Reported(protonet.value),)),),
        unit=" %",
        more=", few-shot, 5-way 1-shot",
    )


def results_text(results: Path) -> str:
    """The table of results, in Markdown."""
    head = ["| tasks | agent | before adapting | after adapting | beside it |", "|---|---|---:|---:|---|"]
    return "\n".join([*head, *(line.text(results) for line in _lines())])


def tables_text(results: Path) -> str:
    """How our numbers stand to the published ones, table by table, in Markdown; tables without a score are left out."""
    lines = [f"| table | of | {' | '.join(KINDS)} |", f"|---|---|{'---:|' * len(KINDS)}"]
    for name in table_names():
        found = _results(name, results)
        compared = [result for result in found if result.cell.published is not None]
        if compared and any(result.kind != "not run" for result in found):
            counts = " | ".join(str(sum(result.kind == kind for result in compared)) for kind in KINDS)
            lines.append(f"| [{name}]({RESULTS.as_posix()}/{name}) | {load_table(name).title} | {counts} |")
    return "\n".join(lines)


def _results(name: str, results: Path) -> list[Result]:
    table = load_table(name)
    return results_of(table, read_scores(results / table.folder("full"), table, "full"), "full")


def filled(text: str, results: Path) -> str:
    """README's text with its tables made anew, each between ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Raises:
        ConfigError: if a mark is missing, or a score.
    """
    for name, table in (("results", results_text(results)), ("tables", tables_text(results))):
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, mark, rest = text.partition(begin)
        _, last, after = rest.partition(end)
        if not mark or not last:
            raise ConfigError(f"README has no marks {begin.strip()} and {end.strip()} for its table.")
        text = f"{before}{mark}{table}{last}{after}"
    return text


@told_errors()
def main() -> None:
    """Write the tables into README."""
    if not (README.is_file() and RESULTS.is_dir()):
        raise ConfigError(f"there is no {README} with {RESULTS} here: run this in the root of a clone.")
    write_atomically(README, filled(README.read_text(), RESULTS).encode())


if __name__ == "__main__":
    main()
