"""Losses to train by and scores to judge by, for classification and regression."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metarl.fewshot.types import Kind


def task_losses(outputs: Tensor, y: Tensor, kind: Kind) -> Tensor:
    """Mean loss of each task, ``[task]``.

    Args:
        outputs: logits or predictions, ``[task, example, output]``.
        y: targets, see :class:`metarl.fewshot.types.Examples`.
        kind: cross-entropy for classification, mean squared error for regression.
    """
    if kind == "classification":
        return F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
    return (outputs - y).square().flatten(1).mean(1)


def task_scores(outputs: Tensor, y: Tensor, kind: Kind) -> Tensor:
    """Accuracy of each task, or its mean squared error in regression, ``[task]``; arguments as :func:`task_losses`.

    Logits that are not numbers name no class; torch's ``argmax`` would take them for the first.
    """
    if kind == "classification":
        return ((outputs.argmax(-1) == y) & ~outputs.isnan().any(-1)).float().mean(1)
    return task_losses(outputs, y, kind)


def score_name(kind: Kind) -> str:
    """What :func:`task_scores` gives: "accuracy", where more is better, or "error", where less is."""
    return "accuracy" if kind == "classification" else "error"
