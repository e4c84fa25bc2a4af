"""How training speeds up on more processes: ``python -m metarl.benchmarks.scaling``."""
