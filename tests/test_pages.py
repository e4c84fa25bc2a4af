"""What README and the documentation show is true: code runs, commands parse, links lead somewhere."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
from helpers.pages import AT_THE_TOP, DOCS, PAGES, ROOT, commands, folder_of, module_of, python_blocks, run_python

from metarl.cli import main
from metarl.experiments import Experiment, resolve

LOOKED_AT = {"environments.md", "agents.md", "adaptation.md", "fewshot.md", "fewshot-data.md"}
"""Pages whose code tests/test_readme.py runs, and looks at what it gives."""

OTHERS = ("make", "source", "ray", "tensorboard")
"""First words of commands that are not metarl's."""


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page) and page not in LOOKED_AT])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(page)


def test_a_page_that_shows_another_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "```python\nimport metarl\nmetarl.make('none')\n```\n\n```text\nerror: all is well\n```\n"
    monkeypatch.setitem(PAGES, "made-up.md", shown)
    with pytest.raises(AssertionError):
        run_python("made-up.md")


class _Parsed(Exception):
    """A command's words were taken."""


@pytest.fixture
def parse_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end as soon as the real parser has taken all their words; runs and modules that they name exist."""
    parse = tyro.cli

    def stop(*arguments: Any, **options: Any) -> Any:
        parsed = parse(*arguments, **options)
        if options.get("return_unknown_args"):
            return parsed
        raise _Parsed

    monkeypatch.chdir(tmp_path)
    for module in filter(None, map(module_of, PAGES)):
        (tmp_path / module[0]).write_text(module[1])
    setup = resolve("rl2", "bandit", train={"num_iterations": 1, "meta_batch_size": 2, "eval_tasks": 2})
    Experiment.start(setup, name="rl2-bandit-seed1").train()
    monkeypatch.setattr(tyro, "cli", stop)


def _parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command up to the end of its parsing."""
    if words[0] == "python":
        monkeypatch.setattr(sys, "argv", words[2:])
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        main(words[1:])


def _own(words: list[str]) -> list[str] | None:
    """The part of a command that is metarl's, as ``metarl ...`` or ``python -m metarl...``."""
    while words and "=" in words[0]:
        words = words[1:]
    if "torchrun" in words[:1]:
        return ["metarl", *words[words.index("-m") + 2 :]]
    if "--" in words and words[0] == "ray":
        words = words[words.index("--") + 1 :]
    return words if words[0] in ("metarl", "python") else None


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
@pytest.mark.usefixtures("parse_only")
def test_the_commands_of_a_page_are_understood(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands(page):
        own = _own(words)
        if own is None:
            assert words[0] in OTHERS, words
            continue
        try:
            _parse(own, monkeypatch)
        except _Parsed:
            continue
        except SystemExit:
            pytest.fail(f"{' '.join(words)}: {capsys.readouterr()}")
        pytest.fail(f"{' '.join(words)} ended before its options were read: {capsys.readouterr()}")


@pytest.mark.usefixtures("parse_only")
def test_a_command_that_is_not_understood_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("metarl train rl2 bandit --no-such-flag 1", "python -m metarl.benchmarks.adaptation --nothing"):
        with pytest.raises(SystemExit):
            _parse(words.split(), monkeypatch)


def test_the_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = [words[1] for page in PAGES for words in commands(page) if words[0] == "make"]
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


QUICK = [
    (page, words)
    for page in PAGES
    for words in commands(page)
    if words[:2] in (["metarl", "list"], ["metarl", "check"])
    or words[:3] == ["metarl", "fewshot", "list"]
    or (words[:2] == ["metarl", "train"] and words[-1] in ("2", "10") and "--num-iterations" in words)
]


@pytest.mark.parametrize(("page", "words"), QUICK, ids=[" ".join(words) for _, words in QUICK])
def test_quick_commands_run(page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if module := module_of(page):
        (tmp_path / module[0]).write_text(module[1])
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        assert main(words[1:]) == 0
    finally:
        for name in ("my_tasks", "my_agents", "my_networks"):
            sys.modules.pop(name, None)


def test_the_list_of_the_quickstart_is_what_is_printed() -> None:
    """In a process of its own: pages register tasks."""
    command = [sys.executable, "-m", "metarl", "list"]
    listed = subprocess.run(command, env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, check=True)
    printed = "\n".join(line.rstrip() for line in listed.stdout.splitlines())
    assert printed.strip() in PAGES["quickstart.md"]


def test_every_link_leads_to_a_file() -> None:
    links = [
        (page, link)
        for page, text in PAGES.items()
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
        if not link.startswith("http")
    ]
    assert len(links) >= 100
    for page, link in links:
        assert (folder_of(page) / link).exists(), f"{page} links to {link}"
        inside = DOCS in (folder_of(page) / link).resolve().parents
        assert page == "README.md" or inside or (folder_of(page) / link).is_file(), f"{page}: {link} is a folder"


def test_every_page_has_a_place_in_the_table_of_contents() -> None:
    listed = set()
    for page, text in PAGES.items():
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {((folder_of(page) / name).resolve().relative_to(DOCS)) for name in names if name[0] != "/"}
    pages = {Path(page).with_suffix("") for page in PAGES if page not in (*AT_THE_TOP, "index.md")}
    assert {Path(name) for name in listed} == pages
