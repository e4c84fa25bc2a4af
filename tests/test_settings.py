"""Types of settings: each refuses what it must, by class, field and value, and lets the rest be."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from metarl.config.settings import (
    Count,
    Counts,
    Natural,
    NonNegative,
    Positive,
    PositiveShare,
    SomeCounts,
    UnitInterval,
    above,
    check_settings,
)
from metarl.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """One field of every type."""

    count: Count = 1
    natural: Natural = 0
    positive: Positive = 0.5
    non_negative: NonNegative = 0.0
    unit: UnitInterval = 1.0
    share: PositiveShare = 1.0
    counts: Counts = ()
    some: SomeCounts = (3,)
    bounded: Annotated[Positive, above(0.1)] = 0.2
    noted: Annotated[Count, "a note of another library"] = 1
    choice: Literal["left", "right"] = "left"
    fixed: Literal[True] = True
    zero: Literal[0] = 0
    free: str = ""

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 7),
        ("natural", 10**400),
        ("positive", 10**400),
        ("non_negative", 2.5),
        ("unit", 0),
        ("share", 0.1),
        ("counts", (1, 2)),
        ("some", (1,)),
        ("choice", "right"),
        ("free", "anything"),
    ],
)
def test_what_is_allowed_is_taken(name: str, value: Any) -> None:
    assert getattr(Example(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("count", (0, -1, 1.0, True, None, "1", math.inf), "be a whole number above 0"),
        ("noted", (0,), "be a whole number above 0"),
        ("natural", (-1, 0.5, False, None), "be a whole number of 0 or more"),
        ("positive", (0, -0.0, math.inf, math.nan, True, "1"), "be a finite number above 0"),
        ("non_negative", (-0.1, math.inf, math.nan), "be a finite number of 0 or more"),
        ("unit", (-0.1, 1.1, math.nan, True), "lie in [0, 1]"),
        ("share", (0, math.inf), "be a finite number above 0"),
        ("share", (1.5,), "lie in [0, 1]"),
        ("counts", ((0,), (1, 2.0), [1], 1), "be a tuple of whole numbers above 0"),
        ("some", ((0,),), "be a tuple of whole numbers above 0"),
        ("some", ((),), "hold at least one number"),
        ("bounded", (0,), "be a finite number above 0"),
        ("bounded", (0.1,), "be a finite number above 0.1"),
        ("choice", ("up", None), "be one of left, right"),
        ("fixed", (False, 1), "be True, which is fixed here"),
        ("zero", (1, False), "be 0, which is fixed here"),
    ],
)
def test_everything_else_is_refused_by_class_field_and_value(name: str, values: tuple[Any, ...], expected: str) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=re.escape(f"Example.{name} must {expected}, got {value!r}.")):
            Example(**{name: value})


def test_a_choice_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"one of left, right, got 'rigth'\. Did you mean 'right'\?"):
        Example(choice="rigth")  # type: ignore[arg-type]
