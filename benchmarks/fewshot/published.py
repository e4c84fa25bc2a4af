"""Published results of few-shot learners, to read ours beside; networks, budgets and tests differ."""

from __future__ import annotations

from collections.abc import Mapping

SINUSOID: Mapping[str, Mapping[int, float]] = {
    # MAML (arXiv 1703.03400), Table 2 of its first version: mean squared error after 1, 5 and 10 steps.
    "maml": {1: 0.67, 5: 0.38, 10: 0.35},
    "pretrained": {1: 2.41, 5: 2.23, 10: 2.19},
    "metarl.benchmarks.fewshot.averaged:AveragedConfig": {1: 4.19, 5: 3.85, 10: 3.69},
    "metarl.benchmarks.fewshot.averaged:AveragedL2Config": {1: 7.18, 5: 5.69, 10: 5.60},
    "metarl.benchmarks.fewshot.averaged:AveragedToMeanConfig": {1: 2.91, 5: 2.72, 10: 2.71},
}
"""Mean squared errors on sinusoids, trained with 10 points, tested with 5, by gradient steps."""

_SIZES = ("5way-1shot", "5way-5shot", "20way-1shot", "20way-5shot")

OMNIGLOT: Mapping[str, Mapping[str, str]] = {
    learner: dict(zip(_SIZES, values, strict=True))
    for learner, values in {
        "protonet": ("98.8", "99.7", "96.0", "98.9"),
        "matching": ("98.1", "98.9", "93.8", "98.5"),
        "maml": ("98.7 ± 0.4", "99.9 ± 0.1", "95.8 ± 0.3", "98.9 ± 0.2"),
        "fomaml": ("98.3 ± 0.5", "99.2 ± 0.2", "89.4 ± 0.5", "97.9 ± 0.1"),
        "reptile": ("97.7 ± 0.0", "99.5 ± 0.1", "89.4 ± 0.1", "97.1 ± 0.3"),
        "snail": ("99.1 ± 0.2", "99.8 ± 0.1", "97.6 ± 0.3", "99.4 ± 0.2"),
    }.items()
}
"""Accuracies in per cent on Omniglot: arXiv 1703.05175, 1606.04080, 1703.03400, 1803.02999 (FOMAML and Reptile, both
transductive), 1707.03141."""
