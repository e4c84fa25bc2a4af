"""Runnable experiments: ``python -m metarl.benchmarks.<name>``."""
