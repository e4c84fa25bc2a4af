"""``metarl fewshot compare``: all learners on the same tasks, in one table and one figure."""

from rich.console import Console


def compare(words: list[str], console: Console) -> int:
    raise NotImplementedError
