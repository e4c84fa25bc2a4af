"""Presets: the settings in which a learner differs from its defaults on a family of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metarl.fewshot.types import EpisodeConfig


@dataclass(frozen=True)
class Preset:
    """Fields that differ from the defaults.

    Attributes:
        source: where the settings come from.
        train: fields of :class:`metarl.config.TrainConfig`.
        learner: fields of the learner's config.
    """

    source: str
    train: Mapping[str, Any] = field(default_factory=dict)
    learner: Mapping[str, Any] = field(default_factory=dict)


_GRADIENT = ("maml", "fomaml", "anil", "meta-sgd", "meta-lstm")
_SHORT = {"eval_every": 500, "eval_tasks": 100, "checkpoint_every": 100}
"""Few-shot iterations take milliseconds: evaluations and checkpoints are further apart than in control."""

_IMAGES = {"downsample": "stride"}
"""MAML's network: strides instead of maxima, a mean over positions (arXiv 1703.03400, section 5.2)."""

DEFAULT = Preset("for CPU minutes", {"num_iterations": 2000, "meta_batch_size": 16, **_SHORT})

PRESETS: dict[str, Preset] = {
    **{
        f"{learner}:{tasks}": Preset(
            "MAML (arXiv 1703.03400) 5.1: 40-40 relu, inner step 0.01, 1 step in training, 25 tasks, 70,000 iterations",
            {"num_iterations": 70_000, "meta_batch_size": 25, **_SHORT, "eval_every": 5000},
            {"num_inner_steps": 1, "num_eval_steps": 10, "inner_lr": 0.01},
        )
        for learner in _GRADIENT
        for tasks in ("sinusoid", "sinusoid-and-line")
    },
}


def preset_of(learner: str, tasks: str, episode: EpisodeConfig) -> Preset:
    """The preset of a learner on tasks of this size: that of its number of ways, if there is one."""
    for name in (f"{learner}:{tasks}:{episode.ways}-way", f"{learner}:{tasks}"):
        if name in PRESETS:
            return PRESETS[name]
    return DEFAULT
