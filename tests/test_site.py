"""The documentation builds without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pages import AT_THE_TOP, PAGES, ROOT

pytest.importorskip("sphinx", reason="the site needs the extra docs: pip install '.[docs]'")


@pytest.mark.timeout(900)  # it imports all of metarl and reads every docstring, on however busy a machine
def test_the_site_builds_without_warnings_and_shows_every_page(tmp_path: Path) -> None:
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "docs/index.html" in (site / "index.html").read_text()
    for page in PAGES:
        if page not in AT_THE_TOP:
            assert (site / "docs" / page).with_suffix(".html").is_file(), page
    assert (site / "benchmarks/results/navigation-2d/README.html").is_file()
    api = "\n".join(path.read_text() for path in (site / "docs/api").glob("*.html"))
    for name in ("metarl.Agent", "metarl.tasks.TaskDistribution", "metarl.agents.RL2Config", "metarl.adaptation.adapt"):
        assert f'id="{name}"' in api, name
