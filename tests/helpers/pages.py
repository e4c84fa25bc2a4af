"""README and the pages of the documentation: their blocks of code, their commands, and the tables in them."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from metarl.errors import MetarlError, told
from metarl.tasks import registry
from metarl.tasks.registry import registered

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
AT_THE_TOP = ("README.md", "CONTRIBUTING.md")
PAGES = {
    **{name: (ROOT / name).read_text() for name in AT_THE_TOP},
    **{str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))},
}
"""Texts by name: that of the file below ``docs/``, or one of :data:`AT_THE_TOP`."""


@dataclass(frozen=True)
class Block:
    """A block of Python.

    Attributes:
        code: what runs.
        error: what it is said to end with; None if it ends well.
    """

    code: str
    error: str | None


def folder_of(page: str) -> Path:
    """What the links of a page start from."""
    return ROOT if page in AT_THE_TOP else (DOCS / page).parent


def python_blocks(page: str) -> list[Block]:
    """A page's blocks of Python, each with the error that the next block shows."""
    fenced = re.findall(r"^```([\w{}-]*)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    found = []
    for (kind, code), (_, after) in itertools.pairwise([*fenced, ("", "")]):
        if kind == "python":
            found.append(Block(code, after.removeprefix("error: ") if after.startswith("error: ") else None))
    return found


def run_python(page: str) -> dict[str, object]:
    """Run a page's blocks, one after the other, and compare the errors that it shows; returns the names defined.

    Tasks that it registers are forgotten at the end.
    """
    blocks = python_blocks(page)
    assert blocks
    names: dict[str, object] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTRY", registered())
        for block in blocks:
            compiled = compile(block.code, page, "exec", dont_inherit=True)
            if block.error is None:
                exec(compiled, names)
                continue
            with pytest.raises(MetarlError) as raised:
                exec(compiled, names)
            assert told(raised.value).split() == block.error.split()
    return names


def module_of(page: str) -> tuple[str, str] | None:
    """File name and content of the module that a page writes, if its first block names one."""
    blocks = python_blocks(page)
    named = re.match(r"# (\w+\.py)\n", blocks[0].code) if blocks else None
    return (named[1], "\n".join(block.code for block in blocks if block.error is None)) if named else None


def commands(page: str) -> list[list[str]]:
    """The words of every command in a page's ``sh`` blocks."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                found.append(words)
    return found
