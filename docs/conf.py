"""How ``make docs`` builds the site.

The source folder is the repository itself, so that a link in ``docs/`` leads to the same file on the site as in a
checkout: to a page where the file is one (results, changelog), and to a copy of it otherwise.
"""

from pathlib import Path

from sphinx.application import Sphinx

from metarl import __version__

project = "metarl"
release = version = __version__
html_title = f"{project} {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "benchmarks/results/*/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "runs"]

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Class attributes stand in the docstring of their class, as Google style has them.
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

_ENTRANCE = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/index.html">\n'


def _remarks(app: Sphinx, docname: str, source: list[str]) -> None:
    """Remarks on results are reached from their results, and so stand in no table of contents."""
    if docname.endswith("/NOTES"):
        source[0] = f"---\norphan: true\n---\n{source[0]}"


def _entrance(app: Sphinx, exception: Exception | None) -> None:
    """The site's own address leads to the first page."""
    if exception is None and app.builder.format == "html":
        (Path(app.outdir) / "index.html").write_text(_ENTRANCE)


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.connect("source-read", _remarks)
    app.connect("build-finished", _entrance)
