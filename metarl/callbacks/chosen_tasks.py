"""A callback that scores chosen tasks now and then."""

from __future__ import annotations

from collections.abc import Sequence

from metarl.agent import Agent
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.runs.outer_loop import Progress
from metarl.tasks.distribution import TaskDistribution
from metarl.types import Task


class EvaluateTasks:
    """Logs ``NAME/return_k``, and ``NAME/success_k`` where success is reported, on the same tasks every time.

    Args:
        distribution: poses the tasks, as the agent sees them.
        tasks: any tasks of its form.
        every: iterations between two evaluations; the last iteration has one too.
        name: what stands before the slash of the metrics' names.
        seed: seed for everything random in an evaluation.

    Raises:
        ConfigError: for a number of iterations below 1, or no tasks.
    """

    def __init__(
        self, distribution: TaskDistribution, tasks: Sequence[Task], *, every: int, name: str = "tasks", seed: int = 0
    ) -> None:
        if every < 1 or not tasks:
            raise ConfigError(f"EvaluateTasks needs tasks and every above 0, got {len(tasks)} tasks and {every!r}.")
        self._distribution, self._tasks = distribution, list(tasks)
        self._every, self._name, self._seed = every, name, seed

    def on_iteration(self, progress: Progress) -> None:
        """Add the metrics, if it is time."""
        if progress.iteration % self._every and progress.iteration != progress.num_iterations:
            return
        if not isinstance(progress.trained, Agent):
            raise ConfigError(f"EvaluateTasks scores agents, got a {type(progress.trained).__name__}.")
        scores = evaluate(progress.trained, self._distribution, tasks=self._tasks, seed=self._seed)
        progress.metrics.update(scores.metrics(self._name))
