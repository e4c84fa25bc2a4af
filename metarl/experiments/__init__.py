"""Experiments: from the names of an agent and of tasks to a run."""
