"""Learners on characters of new alphabets: better than chance, than themselves unadapted, and than untrained."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from helpers.fewshot_runs import built, scores, train

from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.learners.maml import ANILConfig, FOMAMLConfig, MAMLConfig, MetaLSTMConfig, MetaSGDConfig
from metarl.fewshot.learners.matching import MatchingConfig
from metarl.fewshot.learners.nearest_neighbour import NearestNeighbourConfig
from metarl.fewshot.learners.pretrained import PretrainedConfig
from metarl.fewshot.learners.protonet import ProtoNetConfig
from metarl.fewshot.learners.reptile import ReptileConfig
from metarl.fewshot.learners.snail import SNAILConfig
from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.tasks.registry import load_tasks
from metarl.fewshot.types import EpisodeConfig

EPISODE = EpisodeConfig(ways=3, shots=1, queries=5)
glyphs = functools.cache(functools.partial(load_tasks, "glyphs"))


def _tasks() -> FewShotTasks:
    return glyphs()


@pytest.mark.parametrize(
    ("config", "num_iterations"),
    [
        (ProtoNetConfig(num_filters=8), 20),
        (MatchingConfig(num_filters=8), 20),
        (MatchingConfig(num_filters=8, full_context=True, num_reads=2), 60),
        (NearestNeighbourConfig(num_filters=8), 20),
        (PretrainedConfig(num_filters=8, inner_lr=0.5, fine_tune="head"), 100),
    ],
    ids=["protonet", "matching", "matching-full-context", "nearest-neighbour", "pretrained"],
)
def test_a_little_training_beats_chance_on_new_alphabets(config: LearnerConfig, num_iterations: int) -> None:
    learner = built(config, _tasks(), EPISODE)
    train(learner, _tasks(), EPISODE, num_iterations, meta_batch_size=4)
    before, after = scores(learner, _tasks(), EPISODE, num_tasks=50)
    assert before == pytest.approx(1 / 3)
    assert after > 0.45


_STRIDE: dict[str, Any] = {"downsample": "stride", "num_filters": 16, "inner_lr": 0.4, "num_inner_steps": 1}


@pytest.mark.parametrize(
    ("config", "num_iterations"),
    [
        (MAMLConfig(**_STRIDE, num_eval_steps=3), 40),
        (FOMAMLConfig(**_STRIDE, num_eval_steps=3), 40),
        (ANILConfig(**_STRIDE, num_eval_steps=3), 60),
        (MetaSGDConfig(**_STRIDE, num_eval_steps=3), 40),
        (ReptileConfig(downsample="stride", num_filters=16, num_eval_steps=20), 40),
        (MetaLSTMConfig(downsample="stride", num_filters=4, inner_lr=0.3, num_inner_steps=2, num_eval_steps=3), 40),
    ],
    ids=["maml", "fomaml", "anil", "meta-sgd", "reptile", "meta-lstm"],
)
def test_gradient_steps_beat_chance_and_the_network_before_them_on_new_alphabets(
    config: LearnerConfig, num_iterations: int
) -> None:
    learner = built(config, _tasks(), EPISODE)
    train(learner, _tasks(), EPISODE, num_iterations, meta_batch_size=4)
    before, after = scores(learner, _tasks(), EPISODE, num_tasks=50)
    assert before == pytest.approx(1 / 3, abs=0.06)
    assert after > max(before, 1 / 3) + 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "num_iterations", "least"),
    [
        (MAMLConfig(**_STRIDE, num_eval_steps=3), 400, 0.85),
        (FOMAMLConfig(**_STRIDE, num_eval_steps=3), 400, 0.85),
        (ANILConfig(**_STRIDE, num_eval_steps=3), 400, 0.8),
        (MetaSGDConfig(**_STRIDE, num_eval_steps=3), 400, 0.85),
        (
            ReptileConfig(downsample="stride", num_filters=16, num_inner_steps=5, inner_rule="sgd", inner_lr=0.1),
            600,
            0.75,
        ),
        (ProtoNetConfig(num_filters=16), 200, 0.85),
        (MatchingConfig(num_filters=16), 200, 0.75),
        (
            SNAILConfig(num_filters=16, feature_size=32, key_sizes=(32, 32), value_sizes=(32, 32), tc_filters=32),
            600,
            0.6,
        ),
    ],
    ids=["maml", "fomaml", "anil", "meta-sgd", "reptile", "protonet", "matching", "snail"],
)
def test_training_beats_the_untrained_network_on_new_alphabets(
    config: LearnerConfig, num_iterations: int, least: float
) -> None:
    learner = built(config, _tasks(), EPISODE)
    untrained = scores(learner, _tasks(), EPISODE, num_tasks=100)[1]
    train(learner, _tasks(), EPISODE, num_iterations, meta_batch_size=8)
    trained = scores(learner, _tasks(), EPISODE, num_tasks=100)[1]
    assert trained > untrained + 0.1
    assert trained > least
