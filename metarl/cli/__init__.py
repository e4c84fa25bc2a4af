"""The command line: train, evaluate, plot, render, list, check."""

from metarl.cli.entry import main

__all__ = ["main"]
