"""What is published says the same everywhere."""

from __future__ import annotations

import configparser

import yaml
from helpers.pages import PAGES, ROOT

import metarl
from metarl.version import DISTRIBUTION


def test_version_and_name_are_the_same_everywhere() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["name"] == DISTRIBUTION
    assert setup["metadata"]["version"] == "attr: metarl.version.__version__"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == metarl.__version__
    assert citation["license"] == setup["metadata"]["license"]
    assert f"`{DISTRIBUTION}`" in PAGES["README.md"].split("## Install")[1]


def test_pip_is_never_told_the_name_of_another_project() -> None:
    code = {str(path): path.read_text() for part in ("metarl", "examples") for path in (ROOT / part).rglob("*.py")}
    for name, text in {**PAGES, **code}.items():
        assert "metarl[" not in text and "pip install metarl " not in text, name


def test_issue_templates_are_forms() -> None:
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for path in forms:
        content = yaml.safe_load(path.read_text())
        assert path.stem == "config" or {"name", "description", "body"} <= content.keys()
