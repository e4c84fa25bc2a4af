"""Scores of agents: on held-out tasks, by Meta-World's protocol, and in Meta-World's own evaluation."""

from metarl.evaluation.evaluator import Evaluation, evaluate
from metarl.evaluation.metaworld_upstream import OfficialAgent

__all__ = ["Evaluation", "OfficialAgent", "evaluate"]
