"""Speed benchmarks: ``python -m metarl.benchmarks.speed``."""
