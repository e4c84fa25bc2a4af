"""What the Meta-World benchmarks ``ml1`` and ``ml10`` share."""
