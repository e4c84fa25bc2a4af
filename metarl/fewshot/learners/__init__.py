"""Few-shot learners, one file each, and the names by which the command line knows them."""

from __future__ import annotations

from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.learners.anil import ANILConfig
from metarl.fewshot.learners.fomaml import FOMAMLConfig
from metarl.fewshot.learners.learned_optimiser import LearnedOptimiserConfig
from metarl.fewshot.learners.maml import MAMLConfig
from metarl.fewshot.learners.matching import MatchingConfig
from metarl.fewshot.learners.meta_lstm import MetaLSTMConfig
from metarl.fewshot.learners.meta_sgd import MetaSGDConfig
from metarl.fewshot.learners.nearest_neighbour import NearestNeighbourConfig
from metarl.fewshot.learners.pretrained import PretrainedConfig
from metarl.fewshot.learners.protonet import ProtoNetConfig
from metarl.fewshot.learners.random import RandomConfig
from metarl.fewshot.learners.reptile import ReptileConfig
from metarl.fewshot.learners.snail import SNAILConfig
from metarl.plugins import config_name, load_config

LEARNERS: dict[str, type[LearnerConfig]] = {
    "maml": MAMLConfig,
    "fomaml": FOMAMLConfig,
    "anil": ANILConfig,
    "meta-sgd": MetaSGDConfig,
    "meta-lstm": MetaLSTMConfig,
    "reptile": ReptileConfig,
    "learned-optimiser": LearnedOptimiserConfig,
    "protonet": ProtoNetConfig,
    "matching": MatchingConfig,
    "snail": SNAILConfig,
    "nearest-neighbour": NearestNeighbourConfig,
    "pretrained": PretrainedConfig,
    "random": RandomConfig,
}
"""Config classes by the names that the command line knows."""


def load_learner(name: str) -> type[LearnerConfig]:
    """The config class of a learner: one in :data:`LEARNERS`, or a user's own as ``module:attribute``.

    Raises:
        ConfigError: see :func:`metarl.plugins.load_config`.
    """
    return load_config(name, LEARNERS, LearnerConfig, "learner", "my_learners:MyConfig")  # type: ignore[type-abstract]


def learner_name(config: LearnerConfig) -> str:
    """The name by which :func:`load_learner` finds the class of ``config`` again, in this process or another one.

    Raises:
        ConfigError: if its class is neither metarl's own nor held by a module that can be imported.
    """
    return config_name(config, LEARNERS)


__all__ = [
    "LEARNERS",
    "ANILConfig",
    "FOMAMLConfig",
    "LearnedOptimiserConfig",
    "MAMLConfig",
    "MatchingConfig",
    "MetaLSTMConfig",
    "MetaSGDConfig",
    "NearestNeighbourConfig",
    "PretrainedConfig",
    "ProtoNetConfig",
    "RandomConfig",
    "ReptileConfig",
    "SNAILConfig",
    "learner_name",
    "load_learner",
]
