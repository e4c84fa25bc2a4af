"""``metarl fewshot``: train, evaluate and compare few-shot learners, and predict one's own images."""

from metarl.cli.fewshot.entry import fewshot

__all__ = ["fewshot"]
