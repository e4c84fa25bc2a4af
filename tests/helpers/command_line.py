"""The command line, called in this process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metarl.cli import entry


def metarl(words: str | list[str]) -> int:
    """The exit status of a command run in this process."""
    try:
        return entry.main(words.split() if isinstance(words, str) else words)
    except SystemExit as stop:
        return int(str(stop.code))


def refused(words: str | list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that must fail prints, in one line; it leaves no run behind."""
    before = sorted(Path().glob("runs/*"))
    capsys.readouterr()
    assert metarl(words) == 2
    printed = capsys.readouterr()
    text = re.sub(r"[│\s]+", " ", printed.err + printed.out)
    assert "Traceback" not in text
    assert sorted(Path().glob("runs/*")) == before
    return text
