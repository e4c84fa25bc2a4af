"""Published results of few-shot learners, to read ours beside; networks, budgets and tests differ."""

from __future__ import annotations

from collections.abc import Mapping

from metarl.benchmarks.papers import rows_of

_AVERAGED = "metarl.benchmarks.fewshot.averaged"

_METHODS = {
    "maml": "MAML",
    "pretrained": "pretrain on all",
    f"{_AVERAGED}:AveragedConfig": "multi-task no reg",
    f"{_AVERAGED}:AveragedL2Config": "multi-task l2",
    f"{_AVERAGED}:AveragedToMeanConfig": "multi-task reg to mean",
}
"""What MAML's paper calls learners, by our names."""

_TABLE = rows_of("MAML", "Table 2")

SINUSOID: Mapping[str, Mapping[int, float]] = {
    learner: {steps: _TABLE[f"{steps} grad steps", method].value for steps in (1, 5, 10)}
    for learner, method in _METHODS.items()
}
"""Mean squared errors on sinusoids, trained with 10 points, tested with 5, by gradient steps: Table 2 of the first
version of MAML (arXiv 1703.03400)."""

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
