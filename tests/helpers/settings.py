"""The settings of a kind of config, as its types declare them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


def hints(kind: type[Any]) -> dict[str, Any]:
    """Types by name of the setting."""
    found = get_type_hints(kind)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def is_fixed(hint: Any) -> bool:
    """Whether a setting of this type has one value alone."""
    return get_origin(hint) is Literal and len(get_args(hint)) == 1


def settable(kinds: Mapping[str, type[Any]], fixed: bool) -> list[tuple[str, str]]:
    """Names of kinds and of their settings, those that are fixed or the others."""
    return [(kind, name) for kind in kinds for name, hint in hints(kinds[kind]).items() if is_fixed(hint) == fixed]


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def committed_scores(kind: Literal["agent", "learner"]) -> list[Path]:
    """Files of scores under ``benchmarks/results`` with the config of a run: of agents, or of few-shot learners."""
    configs = {path: json.loads(path.read_text()).get("config") for path in sorted(RESULTS.rglob("*.json"))}
    found = {path: config for path, config in configs.items() if config is not None}
    assert all(("agent" in config) != ("learner" in config) for config in found.values())
    return [path for path, config in found.items() if kind in config]
