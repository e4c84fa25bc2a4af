"""Checks for task distributions and agents of your own: every problem found, in one sentence each."""

from metarl.testing.agents import check_agent
from metarl.testing.tasks import check_tasks

__all__ = ["check_agent", "check_tasks"]
