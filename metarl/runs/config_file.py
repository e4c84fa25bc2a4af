"""Config files that users write, in YAML or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from metarl.errors import ConfigError
from metarl.runs.files import check_numbers, read_regular

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """YAML's plain types, with numbers as everybody writes them.

    YAML 1.1 takes ``1e-3`` for a string, ``010`` for 8 and ``1:40`` for 100. The last two are strings here, which
    settings refuse that are numbers.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As the base class does, of whose nodes the last of two values by the same key would be taken, silently."""
        node = super().compose_mapping_node(anchor)
        _require_once([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_INT, _FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][\d_]*|0x[\da-fA-F_]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^([-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+|[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def _require_once(keys: Sequence[Any]) -> None:
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise _RepeatedError(key)


def _from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _require_once([key for key, _ in pairs])
    return dict(pairs)


class _RepeatedError(ValueError):
    """A mapping has two values by one key."""


def read_config_file(path: Path) -> Mapping[str, Any]:
    """The mapping in a JSON or YAML file.

    Raises:
        ConfigError: if it cannot be read, or holds something else.
    """
    try:
        text = read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"cannot read the config {path}: {reason}.") from error
    try:
        is_json = path.suffix == ".json"
        content = json.loads(text, object_pairs_hook=_from_pairs) if is_json else yaml.load(text, _Loader)
    except _RepeatedError as error:
        raise ConfigError(
            f"the config {path} has {error.args[0]!r} twice in one mapping; expected once: put both together."
        ) from None
    except RecursionError:
        raise ConfigError(f"the config {path} is nested too deeply to be read.") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"the config {path} is neither JSON nor YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, Mapping):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"the config {path} must hold a mapping with agent, tasks, train, ..., got {kind}.")
    check_numbers(content, path)
    return content
