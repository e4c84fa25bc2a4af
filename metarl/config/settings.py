"""Types of settings that say which values are allowed, and the one check of them all.

A dataclass of settings declares ``num_epochs: Count = 5`` and calls :func:`check_settings` when it is made. A
``Literal`` names its choices; one with a single value is a setting that an algorithm fixes.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

from metarl.errors import ConfigError


@dataclass(frozen=True)
class Allowed:
    """The values that a setting may take.

    Attributes:
        expected: completes "the setting must ...".
        test: whether a value is one of them; gets values of any type.
    """

    expected: str
    test: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and -math.inf < value < math.inf


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_whole(count) and count > 0 for count in value)


def above(bound: float) -> Allowed:
    """Finite numbers greater than ``bound``."""
    return Allowed(f"be a finite number above {bound:g}", lambda value: _is_finite(value) and value > bound)


_UNIT = Allowed("lie in [0, 1]", lambda value: _is_finite(value) and 0 <= value <= 1)

Count = Annotated[int, Allowed("be a whole number above 0", lambda value: _is_whole(value) and value > 0)]
Natural = Annotated[int, Allowed("be a whole number of 0 or more", lambda value: _is_whole(value) and value >= 0)]
Seed = Annotated[
    int, Allowed("be a whole number of 0 or more and below 2^63", lambda value: _is_whole(value) and 0 <= value < 2**63)
]
Positive = Annotated[float, above(0)]
NonNegative = Annotated[float, Allowed("be a finite number of 0 or more", lambda x: _is_finite(x) and x >= 0)]
UnitInterval = Annotated[float, _UNIT]
PositiveShare = Annotated[Positive, _UNIT]
Counts = Annotated[tuple[int, ...], Allowed("be a tuple of whole numbers above 0", _are_counts)]
"""Several of them, such as the widths of layers; none at all is allowed."""
Device = Literal["auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6", "cuda:7"]
"""Where networks run; auto takes CUDA if there is any, and one of several is chosen by its number."""
SomeCounts = Annotated[Counts, Allowed("hold at least one number", lambda value: len(value) > 0)]


def check_settings(owner: object) -> None:
    """Refuse fields of ``owner``, a dataclass, whose values their types do not allow.

    A whole number that is given for a float becomes one, so that 0 and 0.0 are recorded as the same setting.

    Raises:
        ConfigError: naming class and field of the first offending value, the value, and what is expected.
    """
    for name, rules in _rules(cast(Hashable, type(owner))).items():
        value = getattr(owner, name)
        for allowed in rules:
            if not allowed.test(value):
                hint = _nearest(allowed, value)
                raise ConfigError(f"{type(owner).__name__}.{name} must {allowed.expected}, got {value!r}.{hint}")
    for name in _float_fields(cast(Hashable, type(owner))):
        # No file holds larger ones, and not every one of them is a float.
        if _is_whole(value := getattr(owner, name)) and abs(value) < 2**63:
            object.__setattr__(owner, name, float(value))


def refuse_idle(owner: Any, choice: str, values: Sequence[str | bool], names: Sequence[str]) -> None:
    """Refuse settings that differ from their defaults where they do nothing: recorded, they would tell what never was.

    Args:
        owner: a dataclass of settings.
        choice: the setting that decides whether the others act.
        values: those of its values with which they do.
        names: the others.

    Raises:
        ConfigError: naming class and field of the first such setting, its value, and with what it acts.
    """
    chosen = getattr(owner, choice)
    if chosen in values:
        return
    for field in fields(owner):
        if field.name in names and getattr(owner, field.name) != field.default:
            raise ConfigError(
                f"{type(owner).__name__}.{field.name} acts with {choice} {' or '.join(map(str, values))} alone, got "
                f"{getattr(owner, field.name)!r} with {chosen}. Leave it at {field.default!r}."
            )


@dataclass(frozen=True)
class _Choice(Allowed):
    """The values of a ``Literal``."""

    choices: tuple[Any, ...]


@functools.cache
def _float_fields(kind: type[Any]) -> list[str]:
    """Fields that hold a float, or what else their type says in its place, but for a whole number."""
    hints = get_type_hints(kind)
    kinds = {field.name: {hints[field.name], *get_args(hints[field.name])} for field in fields(kind)}
    return [name for name, types in kinds.items() if float in types and int not in types]


@functools.cache  # To read the types of a class takes a millisecond, and tables make thousands of settings.
def _rules(kind: type[Any]) -> dict[str, list[Allowed]]:
    """What the types of a dataclass's fields ask of their values."""
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, list[Allowed]] = {}
    for field in fields(kind):
        hint = hints[field.name]
        rules = [extra for extra in get_args(hint)[1:] if isinstance(extra, Allowed)] if _is_annotated(hint) else []
        plain = get_args(hint)[0] if _is_annotated(hint) else hint
        if get_origin(plain) is Literal:
            rules.append(_choice(get_args(plain)))
        if rules:
            found[field.name] = rules
    return found


def _is_annotated(hint: Any) -> bool:
    return get_origin(hint) is Annotated


def _choice(choices: tuple[Any, ...]) -> _Choice:
    def test(value: Any) -> bool:
        # True == 1, but only one of the two is what the setting takes.
        return any(type(value) is type(choice) and value == choice for choice in choices)

    (*others, last) = choices
    expected = f"be one of {', '.join(map(str, choices))}" if others else f"be {last!r}, which is fixed here"
    return _Choice(expected, test, choices)


def _nearest(allowed: Allowed, value: Any) -> str:
    if not (isinstance(allowed, _Choice) and isinstance(value, str)):
        return ""
    nearest = difflib.get_close_matches(value, [str(choice) for choice in allowed.choices], n=1, cutoff=0.4)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
