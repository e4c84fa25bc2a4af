"""Config files that users write, in YAML or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from metarl.errors import ConfigError
from metarl.runs.files import check_numbers, read_regular


class _Loader(yaml.SafeLoader):
    """YAML's plain types, with numbers as everybody writes them: YAML 1.1 takes ``1e-3`` for a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


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
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except RecursionError:
        raise ConfigError(f"the config {path} is nested too deeply to be read.") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"the config {path} is neither JSON nor YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, Mapping):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"the config {path} must hold a mapping with agent, tasks, train, ..., got {kind}.")
    check_numbers(content, path)
    return content
