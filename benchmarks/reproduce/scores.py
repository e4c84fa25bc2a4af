"""Scores of a table's cells on disk: one file for each cell and seed, which says what it belongs to.

A digest of the content tells a file that was edited; files of another table, version or budget are not taken for ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metarl.benchmarks.reproduce.table import Budget, PaperTable, TableCell
from metarl.errors import CheckpointError, ConfigError, folded
from metarl.runs.files import read_json, shown, typed, write_json
from metarl.statistics import Float

Scores = Mapping[tuple[TableCell, int], Mapping[str, Any]]
"""Contents of scores by cell and seed."""

_DIGEST = "digest"


def write_score(
    folder: Path, table: PaperTable, budget: Budget, cell: TableCell, seed: int, content: Mapping[str, Any]
) -> None:
    """Write what a cell's source said of a seed, with what it belongs to.

    Raises:
        CheckpointError: if the file cannot be written.
        ConfigError: if it holds what JSON cannot.
    """
    belongs = {"table": table.name, "version": table.version, "budget": budget, "cell": cell.run_key, "seed": seed}
    whole = {**belongs, **content}
    write_json(folder / cell.score_name(seed), {**whole, _DIGEST: _digest(whole)}, indent=None)


def read_scores(folder: Path, table: PaperTable, budget: Budget) -> dict[tuple[TableCell, int], dict[str, Any]]:
    """All scores in a folder, in the table's order; none if there is no folder.

    Raises:
        CheckpointError: for a file that is damaged, or was edited.
        ConfigError: for a score of another table, version or budget, or of no cell of this table.
    """
    names = {(cell, seed): cell.score_name(seed) for cell in table.cells for seed in cell.seeds}
    known = {name: (cell.run_key, seed) for (cell, seed), name in names.items()}
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = _read(path)
        _require_same(path, content, table, budget)
        if path.name not in known:
            raise ConfigError(
                f"{shown(path)} is the score of no cell of {table.name}, whose rows are {', '.join(table.rows)} and "
                f"whose columns are {', '.join(folded(table.columns))}: move it elsewhere."
            )
        key, seed = typed(content, "cell", str, path), typed(content, "seed", int, path)
        if (key, seed) != known[path.name]:
            raise ConfigError(
                f"{shown(path)} holds the score of {key} with seed {seed}, and its name is that of "
                f"{known[path.name][0]} with seed {known[path.name][1]}: name it as it was, or remove it."
            )
        found[path.name] = content
    return {place: found[name] for place, name in names.items() if name in found}


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    said = typed(content, _DIGEST, str, path)
    if said != _digest({name: value for name, value in content.items() if name != _DIGEST}):
        raise CheckpointError(
            f"{shown(path)} was edited since it was written: its digest is not that of its content. Restore it, or "
            "remove it to run its cell again."
        )
    return content


def _require_same(path: Path, content: Mapping[str, Any], table: PaperTable, budget: Budget) -> None:
    for name, here in (("table", table.name), ("version", table.version), ("budget", budget)):
        there = typed(content, name, type(here), path)
        if there != here:
            raise ConfigError(
                f"{shown(path.parent)} holds scores of {name} {there}, and now {name} {here} of {table.name} is asked "
                "for: name another folder with --results."
            )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def values_by_seed(scores: Scores, cell: TableCell) -> tuple[tuple[int, ...], Float]:
    """The seeds of a cell that are done and measured, and their scores ``[seed, task]``.

    Raises:
        ConfigError: if seeds were scored on different numbers of tasks.
    """
    by_seed = {seed: cell.values(scores[cell, seed]) for seed in cell.seeds if (cell, seed) in scores}
    by_seed = {seed: values for seed, values in by_seed.items() if len(values)}
    lengths = [str(len(values)) for values in by_seed.values()]
    if len(set(lengths)) > 1:
        raise ConfigError(f"seeds of {cell.key} were scored on {', '.join(lengths)} tasks.")
    return tuple(by_seed), np.array(list(by_seed.values()))


def seconds_of(score: Mapping[str, Any]) -> float:
    """What a score took: its last call, or all of its training where that went on over several."""
    return max(score["seconds"] or 0.0, score.get("training_seconds") or 0.0)
