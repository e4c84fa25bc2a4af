"""Distributions of tasks: what they are, where they are found, and how an oracle sees them."""

from metarl.tasks.distribution import BatchSampler, Sampler, Split, TaskDistribution
from metarl.tasks.registry import load_distribution, make, register, registered

__all__ = [
    "BatchSampler",
    "Sampler",
    "Split",
    "TaskDistribution",
    "load_distribution",
    "make",
    "register",
    "registered",
]
