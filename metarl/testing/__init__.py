"""Checks for task distributions, agents and few-shot learners of your own: every problem found, a sentence each."""

from metarl.testing.agents import check_agent
from metarl.testing.learners import check_learner
from metarl.testing.tasks import check_tasks

__all__ = ["check_agent", "check_learner", "check_tasks"]
