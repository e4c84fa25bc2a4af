"""A task's digest is its content: nothing of it is left out, and nothing else enters."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
import os
import pathlib
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from metarl.digest import task_digest
from metarl.errors import ConfigError


class Slim:
    """Its text leaves something out."""

    def __init__(self, g: float) -> None:
        self.g = g

    def __repr__(self) -> str:
        return "Slim()"


class Slotted:
    __slots__ = ("g",)

    def __init__(self, g: float) -> None:
        self.g = g


@dataclasses.dataclass
class Reach:
    goal: Any


@dataclasses.dataclass
class Push:
    goal: Any


Colour = enum.Enum("Colour", "RED BLUE")
Pair = collections.namedtuple("Pair", "a b")


def _changed(array: np.ndarray[Any, Any], value: Any) -> np.ndarray[Any, Any]:
    other = array.copy()
    other[len(other) // 2] = value
    return other


_LETTERS = np.array(["F"] * 3000)
_OBJECTS = np.array(["x"] * 3000, dtype=object)
_DAYS = np.arange("2000-01-01", "2008-01-01", dtype="datetime64[D]")
_ROWS = np.zeros(3000, [("a", "f8"), ("b", "i4")])

DIFFERENT: list[tuple[Any, Any]] = [
    (_LETTERS, _changed(_LETTERS, "H")),
    (_LETTERS.astype(bytes), _changed(_LETTERS.astype(bytes), b"H")),
    (_OBJECTS, _changed(_OBJECTS, "y")),
    (np.zeros(3000), _changed(np.zeros(3000), 1e-300)),
    (np.zeros(3000, complex), _changed(np.zeros(3000, complex), 1j)),
    (_DAYS, _changed(_DAYS, np.datetime64("1999-01-01"))),
    (_ROWS, _changed(_ROWS, (0.0, 7))),
    (np.zeros((2, 3)), np.zeros((3, 2))),
    (2**53, 2**53 + 1),
    (np.array([2**62]), np.array([2**62 + 1])),
    (np.array([2**64 - 1], np.uint64), np.array([2**64 - 2], np.uint64)),
    (Slim(1.0), Slim(2.0)),
    (Slotted(1.0), Slotted(2.0)),
    (Reach(1.0), Push(1.0)),
    (Reach(Slim(1.0)), Reach(Slim(2.0))),
    ({1: 2.0}, {"1": 2.0}),
    ({1: 2.0, 2: 1.0}, {1: 1.0, 2: 2.0}),
    ({"a"}, {"b"}),
    ({"a", "b"}, {"ab"}),
    (frozenset({1, 2}), (1, 2)),
    (["ab", "c"], ["a", "bc"]),
    ("ab", b"ab"),
    (Colour.RED, Colour.BLUE),
    (pathlib.Path("a.xml"), pathlib.Path("b.xml")),
    (Fraction(1, 3), Fraction(1, 4)),
    (datetime.date(2000, 1, 1), datetime.date(2000, 1, 2)),
    ({"reward": lambda x: x}, {"reward": lambda x: -x}),
    (lambda x: x + 1, lambda x: x + 2),
    (functools.partial(max, 1), functools.partial(max, 2)),
    (np.random.default_rng(1), np.random.default_rng(2)),
    (torch.zeros(3000), torch.zeros(3000).index_fill(0, torch.tensor(1500), 1.0)),
    ([[]], []),
    ([{}, {"wall": 1}], [{"wall": 1}, {}]),
    ({"obj": {"x": 1}, "y": 2}, {"obj": {"x": 1, "y": 2}}),
    ({"a": None}, {"a": "None!"}),
]


@pytest.mark.parametrize(("left", "right"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_other_content_has_another_digest(left: Any, right: Any) -> None:
    assert task_digest(left) != task_digest(right)


def _scaled(factor: float) -> Any:
    return lambda x: factor * x


EQUAL: list[tuple[Any, Any]] = [
    (1, 1.0),
    (np.float32(1), True),
    (0.0, -0.0),
    (np.zeros(3, np.int64), np.zeros(3, np.float32)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1: "a", ("x", 2): "b"}, {("x", 2): "b", 1: "a"}),
    ({"kettle", "hinge", "burner"}, {"burner", "kettle", "hinge"}),
    ((1, 2), [1, 2]),
    (np.array(["a", "b"]), np.array(["a", "b"], "<U9")),
    (Slim(1.0), Slim(1.0)),
    (Slotted(1.0), Slotted(1.0)),
    (Reach({"a": Slim(1.0)}), Reach({"a": Slim(1.0)})),
    (_scaled(2.0), _scaled(2.0)),
    (np.random.default_rng(1), np.random.default_rng(1)),
    (Pair(1, 2), (1, 2)),
]


@pytest.mark.parametrize(("left", "right"), EQUAL, ids=range(len(EQUAL)))
def test_equal_content_has_an_equal_digest(left: Any, right: Any) -> None:
    assert task_digest(left) == task_digest(right)


def test_closures_count_with_what_they_hold() -> None:
    assert task_digest(_scaled(2.0)) != task_digest(_scaled(3.0))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"force": 10.0, "length": 0.5}, "e04f77300a1700bb"),
        ({"env_name": "reach-v3", "rand_vec": np.array([0.1, 0.2])}, "dff0441897820cf2"),
        ([1, 2.5, "a"], "d7a7a67ecedad064"),
        ({"p": np.eye(2), "q": None}, "252124e39cd60f10"),
    ],
)
def test_numbers_text_and_arrays_keep_their_digests(task: Any, expected: str) -> None:
    """The splits behind committed results follow from them."""
    assert task_digest(task).hex()[:16] == expected


def test_a_structure_that_holds_itself_has_a_digest() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert task_digest(loop) != task_digest([1])


def test_what_has_no_content_is_refused() -> None:
    with open(os.devnull) as file, pytest.raises(ConfigError, match=r"TextIOWrapper.*expected numbers, text, arrays"):
        task_digest({"log": file})
    with pytest.raises(ConfigError, match="generator"):
        task_digest({"stream": (number for number in range(3))})


_SETS = """
from metarl.digest import task_digest
words = ["microwave", "kettle", "light switch", "slide cabinet", "hinge cabinet"]
print(task_digest({"open": set(words), "of": frozenset(words[:3]), "by": {word: 1 for word in words}}).hex())
"""


def test_the_order_of_sets_in_a_process_does_not_matter() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", _SETS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_data_frames_count_with_columns_index_and_values() -> None:
    frame = pandas.DataFrame({"date": [f"day {i}" for i in range(500)], "close": np.arange(500.0)})
    changes = [
        frame.assign(close=_changed(np.arange(500.0), -1.0)),
        frame.assign(date=[f"day {i}" for i in range(499)] + ["late"]),
        frame.rename(columns={"close": "open"}),
        frame.set_index(pandas.Index(np.arange(500) + 1)),
    ]
    assert task_digest(frame) == task_digest(frame.copy())
    assert len({task_digest(other) for other in (frame, *changes)}) == 5
    assert task_digest(frame["close"]) != task_digest(changes[0]["close"])
