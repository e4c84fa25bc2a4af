"""Published models: a folder each, and what makes one of a finished run.

``python -m metarl.benchmarks.models RUN NAME`` writes ``benchmarks/models/NAME``; :mod:`metarl.runs.published` finds
them.
"""
