"""What the checks of agents and learners share: clauses of a contract, run one by one, and the problems they find."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch


class Clauses:
    """One run of a check; ``problems`` grows as it goes."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def run_all(self, clauses: Mapping[str, Callable[[], None]]) -> None:
        """Run clauses by the names of what they look at; one that raises is a problem itself."""
        for name, clause in clauses.items():
            try:
                # Whatever is drawn from the global generator is undone, so that clauses stay independent.
                with torch.random.fork_rng(devices=[]):
                    clause()
            except Exception as error:
                self.problems.append(f"{name} raised {type(error).__name__}: {error}")

    def require(self, condition: bool, problem: str) -> None:
        """Note a problem, once, unless the condition holds."""
        if not condition and problem not in self.problems:
            self.problems.append(problem)
