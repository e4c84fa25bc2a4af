"""Presets: the settings in which a learner differs from its defaults on a family of tasks."""

from __future__ import annotations

import dataclasses
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
        queries_as_shots: training tasks have as many queries of each class as shots.
    """

    source: str
    train: Mapping[str, Any] = field(default_factory=dict)
    learner: Mapping[str, Any] = field(default_factory=dict)
    queries_as_shots: bool = False

    def of_size(self, episode: EpisodeConfig) -> Preset:
        """The same for tasks of this size."""
        if not self.queries_as_shots:
            return self
        return dataclasses.replace(self, learner={**self.learner, "train_queries": episode.shots})


_SHORT = {"eval_every": 500, "eval_tasks": 100, "checkpoint_every": 100}
"""Few-shot iterations take milliseconds: evaluations and checkpoints are further apart than in control."""

_SCALED: Mapping[str, Any] = {"cosine_scale": 100.0}
"""Without it Matching Networks have 86 % of validation glyphs where they have 97 with it (5-way 1-shot,
1,000 iterations, seed 101; a factor of 10: 96)."""

DEFAULT = Preset("for CPU minutes", {"num_iterations": 2000, "meta_batch_size": 16, **_SHORT})

DEFAULTS = {
    "matching": dataclasses.replace(
        DEFAULT, source="for CPU minutes; cosines by 100, as in Chen et al. (arXiv 1904.04232)", learner=_SCALED
    )
}
"""For tasks without a preset, by learner; the others have ``DEFAULT``."""

_SINUSOID = Preset(
    "MAML (arXiv 1703.03400) 5.1: 40-40 relu, inner step 0.01, 1 step in training, 25 tasks, 70,000 iterations",
    {"num_iterations": 70_000, "meta_batch_size": 25, **_SHORT, "eval_every": 5000},
    {"num_inner_steps": 1, "num_eval_steps": 10, "inner_lr": 0.01},
)

_MAML_SINUSOID = Preset(
    "MAML (arXiv 1703.03400) 5.1, but the inner step 0.001 of its code, to which its table fits: with the paper's 0.01 "
    "further steps on 5 points go astray",
    _SINUSOID.train,
    {**_SINUSOID.learner, "inner_lr": 0.001},
)

_PRETRAINED_SINUSOID = Preset(
    "MAML (arXiv 1703.03400) 5.1, pretraining on all tasks: the same network, tasks and iterations",
    _SINUSOID.train,
    {"inner_lr": 0.01, "num_inner_steps": 10},
)


def _maml_omniglot(inner_lr: float, num_inner_steps: int, num_eval_steps: int, meta_batch_size: int) -> Preset:
    """MAML's network: strides instead of maxima, a mean over positions (section 5.2)."""
    return Preset(
        "MAML (arXiv 1703.03400) A.1: strided convolutions, 60,000 iterations; queries: one for each shot, as in its "
        "code",
        {"num_iterations": 60_000, "meta_batch_size": meta_batch_size, **_SHORT},
        {
            "downsample": "stride",
            "inner_lr": inner_lr,
            "num_inner_steps": num_inner_steps,
            "num_eval_steps": num_eval_steps,
            "train_queries": 1,
        },
        queries_as_shots=True,
    )


_OMNIGLOT = ("omniglot", "omniglot-1200", "omniglot-random", "omniglot-background")

PRESETS: dict[str, Preset] = {
    **{
        f"{learner}:{tasks}": _SINUSOID
        for learner in ("anil", "meta-sgd", "meta-lstm")
        for tasks in ("sinusoid", "sinusoid-and-line")
    },
    **{
        f"{learner}:{tasks}": _MAML_SINUSOID
        for learner in ("maml", "fomaml")
        for tasks in ("sinusoid", "sinusoid-and-line")
    },
    **{f"pretrained:{tasks}": _PRETRAINED_SINUSOID for tasks in ("sinusoid", "sinusoid-and-line")},
    **{
        f"{learner}:{tasks}": _maml_omniglot(0.4, 1, 3, 32)
        for learner in ("maml", "fomaml", "anil", "meta-sgd")
        for tasks in _OMNIGLOT
    },
    **{
        f"{learner}:{tasks}:20-way": _maml_omniglot(0.1, 5, 5, 16)
        for learner in ("maml", "fomaml", "anil", "meta-sgd")
        for tasks in _OMNIGLOT
    },
    **{
        f"reptile:{tasks}": Preset(
            "openai/supervised-reptile's command for Omniglot 5-way 1-shot with transduction; 100,000 iterations",
            {"num_iterations": 100_000, "meta_batch_size": 10, **_SHORT},
            {"downsample": "stride", "train_shots": 15, "inner_batch_size": 25, "num_inner_steps": 3}
            | {"num_eval_steps": 5, "anneal_iterations": 100_000},
        )
        for tasks in _OMNIGLOT
    },
    **{
        f"protonet:{tasks}": Preset(
            "Prototypical Networks (arXiv 1703.05175) 3.1: 60-way training tasks with 5 queries of each class",
            {"num_iterations": 10_000, "meta_batch_size": 1, **_SHORT},
            {"train_ways": 60, "train_queries": 5},
        )
        for tasks in _OMNIGLOT
    },
    **{
        f"{learner}:{tasks}": Preset(
            f"networks as in {paper}; 10,000 iterations of 16 tasks with 5 queries of each class as in training "
            "Prototypical Networks, what an hour of one core can in 5-way 1-shot",
            {"num_iterations": 10_000, "meta_batch_size": 16, **_SHORT},
            {"train_queries": 5, **settings},
        )
        for learner, paper, settings in (
            ("matching", "Matching Networks (arXiv 1606.04080) 4.1.1, cosines by 100 (arXiv 1904.04232)", _SCALED),
            ("snail", "SNAIL (arXiv 1707.03141) 5.1", {}),
        )
        for tasks in _OMNIGLOT
    },
    **{
        f"{learner}:glyphs": Preset(
            "MAML's for Omniglot with half the filters, a quarter of the tasks and a larger step, for CPU minutes",
            {"num_iterations": 1000, "meta_batch_size": 8, **_SHORT},
            {**_maml_omniglot(0.4, 1, 3, 32).learner, "train_queries": 3, "num_filters": 32, "meta_lr": 0.003},
        )
        for learner in ("maml", "fomaml", "meta-sgd")
    },
    **{
        f"{learner}:glyphs:20-way": Preset(
            "MAML's for Omniglot with half the filters, a quarter of the tasks and a larger step, for CPU minutes",
            {"num_iterations": 500, "meta_batch_size": 4, **_SHORT},
            {**_maml_omniglot(0.1, 5, 5, 16).learner, "num_filters": 32, "meta_lr": 0.003},
        )
        for learner in ("maml", "fomaml", "meta-sgd")
    },
    **{
        f"anil:glyphs{ways}": Preset(
            "MAML's for Omniglot with half the filters, but five steps of 0.4, since a head alone moves less: 97 % on "
            "validation characters (5-way 5-shot), 82 % (20-way), where one of 0.4 and five of 0.1 had 90 and 58 % "
            "of test characters; for CPU minutes",
            {"num_iterations": iterations, "meta_batch_size": tasks, **_SHORT},
            {**_maml_omniglot(0.4, 5, 5, 16).learner, "train_queries": queries, "num_filters": 32, "meta_lr": 0.003},
        )
        for ways, iterations, tasks, queries in (("", 1000, 8, 3), (":20-way", 500, 4, 1))
    },
    "reptile:glyphs": Preset(
        "supervised-reptile's for Omniglot with half the filters, and gradient descent inside: 86 % on validation "
        "characters after 600 iterations, with Adam at 0.003 79 %, at its 0.001 66 %",
        {"num_iterations": 1500, "meta_batch_size": 5, **_SHORT},
        {"downsample": "stride", "num_inner_steps": 5, "num_eval_steps": 20, "num_filters": 32}
        | {"inner_rule": "sgd", "inner_lr": 0.1, "anneal_iterations": 1500},
    ),
    "protonet:glyphs": Preset(
        "Prototypical Networks' for Omniglot with half the filters and a third of the ways, for CPU minutes",
        {"num_iterations": 1000, "meta_batch_size": 1, **_SHORT},
        {"train_ways": 20, "train_queries": 5, "num_filters": 32},
    ),
    **{
        f"matching:glyphs{ways}": Preset(
            "the network of the other learners on glyphs, for CPU minutes; cosines by 100 (arXiv 1904.04232)",
            {"num_iterations": 1000, "meta_batch_size": tasks, **_SHORT},
            {"num_filters": 32, **_SCALED},
        )
        for ways, tasks in (("", 8), (":20-way", 2))
    },
    "snail:glyphs": Preset(
        "the network of the other learners on glyphs, for CPU minutes",
        {"num_iterations": 1500, "meta_batch_size": 4, **_SHORT},
        {"num_filters": 32},
    ),
    "snail:glyphs:20-way": Preset(
        "the network of the other learners on glyphs, for CPU minutes; at first it learns nothing for a long time",
        {"num_iterations": 2000, "meta_batch_size": 2, **_SHORT},
        {"num_filters": 32},
    ),
    **{
        f"pretrained:glyphs{ways}": Preset(
            "the network of the other learners on glyphs, for CPU minutes; 50 steps of 0.05 for the head, "
            "after which validation characters stay where they are (larger steps fall back at first, by 30 %)",
            {"num_iterations": 1000, "meta_batch_size": tasks, **_SHORT},
            {"num_filters": 32, "fine_tune": "head", "inner_lr": 0.05, "num_inner_steps": 50},
        )
        for ways, tasks in (("", 8), (":20-way", 2))
    },
    **{
        f"nearest-neighbour:glyphs{ways}": Preset(
            "the network of the other learners on glyphs, for CPU minutes",
            {"num_iterations": 1000, "meta_batch_size": tasks, **_SHORT},
            {"num_filters": 32},
        )
        for ways, tasks in (("", 8), (":20-way", 2))
    },
    "random:glyphs": Preset("the network of the other learners on glyphs", {"num_iterations": 1}, {"num_filters": 32}),
    "meta-lstm:glyphs": Preset(
        "MAML's network for Omniglot with half the filters, one task at a time as in Ravi and Larochelle (section 4), "
        "for CPU minutes",
        {"num_iterations": 1000, "meta_batch_size": 1, **_SHORT},
        {**_maml_omniglot(0.4, 2, 3, 1).learner, "train_queries": 3, "num_filters": 32},
    ),
    "learned-optimiser:glyphs": Preset(
        "one hidden layer of 20 units as in Andrychowicz et al. (arXiv 1606.04474) 3.2, 10 steps, for CPU minutes",
        {"num_iterations": 150, "meta_batch_size": 1, **_SHORT},
        {"backbone": "mlp", "hidden_sizes": (20,), "num_inner_steps": 10, "num_eval_steps": 10, "unroll": 10},
    ),
    "learned-optimiser:quadratic": Preset(
        "Andrychowicz et al. (arXiv 1606.04474) and its code: 128 functions, 100 steps, unrolled over 20",
        {"num_iterations": 2000, "meta_batch_size": 128, **_SHORT},
        {"backbone": "linear"},
    ),
}


def preset_of(learner: str, tasks: str, episode: EpisodeConfig) -> Preset:
    """The preset of a learner on tasks of this size: that of its number of ways, if there is one, or its default."""
    for name in (f"{learner}:{tasks}:{episode.ways}-way", f"{learner}:{tasks}"):
        if name in PRESETS:
            return PRESETS[name].of_size(episode)
    return DEFAULTS.get(learner, DEFAULT)
