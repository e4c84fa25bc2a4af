"""Few-shot learners on the benchmarks of their papers."""
