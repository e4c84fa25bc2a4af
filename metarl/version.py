"""The version of metarl, and what it is called on the package index, where ``metarl`` is another project."""

from __future__ import annotations

from importlib import metadata

__version__ = "0.2.0"

DISTRIBUTION = "metarl-torch"
"""What ``pip install`` takes; the import name is metarl."""


def version_of(package: str) -> str:
    """The version of an installed package; of metarl its own, whatever it was installed as."""
    return __version__ if package == "metarl" else metadata.version(package)
