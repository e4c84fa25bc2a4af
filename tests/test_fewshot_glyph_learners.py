"""Learners on characters of new alphabets: better than chance, than themselves unadapted, and than untrained."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from helpers.fewshot_runs import built, scores, train

from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.learners import LEARNERS, learner_name
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
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.tasks.registry import load_tasks
from metarl.fewshot.types import EpisodeConfig

EPISODE = EpisodeConfig(ways=3, shots=1, queries=5)
glyphs = functools.cache(functools.partial(load_tasks, "glyphs"))


def _tasks() -> FewShotTasks:
    return glyphs()


def _name(value: object) -> str | None:
    """Of a learner; other values have pytest's names."""
    if not isinstance(value, LearnerConfig):
        return None
    return learner_name(value) + ("-full-context" if getattr(value, "full_context", False) else "")


_STRIDE: dict[str, Any] = {"downsample": "stride", "num_filters": 16, "inner_lr": 0.4, "num_inner_steps": 1}
_SGD: dict[str, Any] = {"downsample": "stride", "num_filters": 16, "num_inner_steps": 5, "inner_rule": "sgd"}
_META_LSTM: dict[str, Any] = {"downsample": "stride", "inner_lr": 0.3, "num_inner_steps": 2, "num_eval_steps": 3}
_UNROLLED: dict[str, Any] = {"downsample": "stride", "num_filters": 4, "unroll": 10}


@pytest.mark.parametrize(
    ("config", "num_iterations"),
    [
        (MAMLConfig(**_STRIDE, num_eval_steps=3), 80),
        (FOMAMLConfig(**_STRIDE, num_eval_steps=3), 80),
        (ANILConfig(**_STRIDE, num_eval_steps=3), 60),
        (MetaSGDConfig(**_STRIDE, num_eval_steps=3), 80),
        (ReptileConfig(**_SGD, inner_lr=0.1, num_eval_steps=10), 80),
        (MetaLSTMConfig(**_META_LSTM, num_filters=8, meta_lr=3e-3), 60),
        (LearnedOptimiserConfig(**_UNROLLED, num_inner_steps=10, num_eval_steps=10, meta_lr=1e-2), 40),
        (ProtoNetConfig(num_filters=8), 40),
        (MatchingConfig(num_filters=8), 80),
        (MatchingConfig(num_filters=8, full_context=True, num_reads=2), 60),
        (
            SNAILConfig(num_filters=8, feature_size=16, key_sizes=(16, 16), value_sizes=(16, 16), tc_filters=16),
            300,
        ),
    ],
    ids=_name,
)
def test_a_little_training_beats_chance_and_the_untrained_network_on_new_alphabets(
    config: LearnerConfig, num_iterations: int
) -> None:
    """An untrained network with its labelled examples is above chance already, by far with gradient steps."""
    learner = built(config, _tasks(), EPISODE)
    untrained = scores(learner, _tasks(), EPISODE, num_tasks=50)[1]
    train(learner, _tasks(), EPISODE, num_iterations, meta_batch_size=4)
    before, after = scores(learner, _tasks(), EPISODE, num_tasks=50)
    assert before == pytest.approx(1 / 3, abs=0.06)
    assert after > max(before, untrained) + 0.06


@pytest.mark.parametrize(
    ("config", "num_iterations"),
    [
        (NearestNeighbourConfig(num_filters=8), 20),
        (PretrainedConfig(num_filters=8, inner_lr=0.5, fine_tune="head"), 100),
    ],
    ids=_name,
)
def test_references_beat_chance_on_new_alphabets(config: LearnerConfig, num_iterations: int) -> None:
    """Telling all training classes apart takes longer to be worth more than random features: see the slow test."""
    learner = built(config, _tasks(), EPISODE)
    train(learner, _tasks(), EPISODE, num_iterations, meta_batch_size=4)
    before, after = scores(learner, _tasks(), EPISODE, num_tasks=50)
    assert before == pytest.approx(1 / 3)
    assert after > 0.45


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "num_iterations", "least"),
    [
        (MAMLConfig(**_STRIDE, num_eval_steps=3), 400, 0.85),
        (FOMAMLConfig(**_STRIDE, num_eval_steps=3), 400, 0.85),
        (ANILConfig(**_STRIDE, num_eval_steps=3), 400, 0.8),
        (MetaSGDConfig(**_STRIDE, num_eval_steps=3), 400, 0.85),
        (ReptileConfig(**_SGD, inner_lr=0.1), 600, 0.75),
        (MetaLSTMConfig(**_META_LSTM, num_filters=16, meta_lr=3e-3), 300, 0.8),
        (LearnedOptimiserConfig(**_UNROLLED, num_inner_steps=20, num_eval_steps=20, meta_lr=1e-2), 200, 0.55),
        (ProtoNetConfig(num_filters=16), 200, 0.85),
        (MatchingConfig(num_filters=16), 200, 0.75),
        (MatchingConfig(num_filters=16, full_context=True, num_reads=2), 200, 0.75),
        (
            SNAILConfig(num_filters=16, feature_size=32, key_sizes=(32, 32), value_sizes=(32, 32), tc_filters=32),
            600,
            0.6,
        ),
        (NearestNeighbourConfig(num_filters=16), 1000, 0.75),
        (PretrainedConfig(num_filters=16, inner_lr=0.5, fine_tune="head", meta_lr=3e-3), 1000, 0.8),
    ],
    ids=_name,
)
def test_training_beats_the_untrained_network_on_new_alphabets(
    config: LearnerConfig, num_iterations: int, least: float
) -> None:
    learner = built(config, _tasks(), EPISODE)
    untrained = scores(learner, _tasks(), EPISODE, num_tasks=100)[1]
    train(learner, _tasks(), EPISODE, num_iterations, meta_batch_size=8)
    before, trained = scores(learner, _tasks(), EPISODE, num_tasks=100)
    assert trained > max(before, untrained) + 0.1
    assert trained > least


def test_all_learners_are_tried() -> None:
    def tried(*tests: Any) -> set[type[LearnerConfig]]:
        marks = [mark for test in tests for mark in test.pytestmark if mark.name == "parametrize"]
        return {type(row[0]) for mark in marks for row in mark.args[1]}

    everything = set(LEARNERS.values()) - {RandomConfig}
    assert tried(test_training_beats_the_untrained_network_on_new_alphabets) == everything
    quickly = test_a_little_training_beats_chance_and_the_untrained_network_on_new_alphabets
    assert tried(quickly, test_references_beat_chance_on_new_alphabets) == everything
