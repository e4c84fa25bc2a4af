"""References of few-shot learning: pretrained and then fine-tuned, and a network that learns nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.clusters import Clusters
from helpers.fewshot_runs import CPU, adapted, built, double, scores, train
from torch import nn

from metarl.errors import ConfigError
from metarl.fewshot.learners.nearest_neighbour import NearestNeighbourConfig
from metarl.fewshot.learners.pretrained import Headed, PretrainedConfig
from metarl.fewshot.learners.random import RandomConfig
from metarl.fewshot.tasks.classes import Classes, ClassTasks
from metarl.fewshot.tasks.sinusoid import Sinusoid
from metarl.fewshot.types import EpisodeConfig, TaskBatch
from metarl.seeding import numpy_stream

EPISODE = EpisodeConfig(ways=3, shots=2, queries=2)


def _batch() -> TaskBatch:
    return double(Clusters().sample("train", 3, EPISODE, numpy_stream(0, "batch")))


def _network(learner: object) -> Headed:
    network = learner.components()["network"]  # type: ignore[attr-defined]
    assert isinstance(network, Headed)
    return network


def test_pretraining_is_a_classifier_of_all_training_classes(float64: None) -> None:
    batch = _batch()
    assert batch.classes is not None
    learner = built(PretrainedConfig(hidden_sizes=(8, 5)), Clusters(), EPISODE)
    network = copy.deepcopy(_network(learner))
    losses = []
    for task in range(3):
        for part in (batch.support, batch.query):
            for x, y in zip(part.x[task], part.y[task], strict=True):
                losses.append(-network(x[None])[0].log_softmax(0)[batch.classes[task, y]])
    loss = torch.stack(losses).mean()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert learner.meta_update(batch)["loss"] == pytest.approx(float(loss.detach()), rel=1e-10)
    for found, expected in zip(_network(learner).parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    head = network.get_submodule("head")
    assert isinstance(head, nn.Linear)
    assert head.out_features == 40


@pytest.mark.parametrize("fine_tune", ["all", "head"])
def test_fine_tuning_is_gradient_descent_from_a_head_of_zeros(fine_tune: str, float64: None) -> None:
    batch = _batch()
    config = PretrainedConfig(hidden_sizes=(8, 5), inner_lr=0.3, num_inner_steps=4, fine_tune=fine_tune)  # type: ignore[arg-type]
    learner = built(config, Clusters(), EPISODE)
    assert (learner.num_adaptations, learner.num_eval_adaptations) == (0, 4)
    found = learner.predict(adapted(learner, batch.support), batch.query.x)
    for task in range(3):
        body = copy.deepcopy(_network(learner).body)
        head = nn.Linear(5, 3)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        moved = [*head.parameters(), *(body.parameters() if fine_tune == "all" else ())]
        for _ in range(4):
            loss = nn.functional.cross_entropy(head(body(batch.support.x[task])), batch.support.y[task])
            for parameter, slope in zip(moved, torch.autograd.grad(loss, moved), strict=True):
                parameter.data -= 0.3 * slope
        torch.testing.assert_close(found[task], head(body(batch.query.x[task])).detach(), rtol=1e-9, atol=1e-11)


def test_a_pretrained_classifier_favours_no_class_before_and_knows_new_ones_after_fine_tuning() -> None:
    episode = EpisodeConfig(ways=5, shots=1, queries=5)
    learner = built(PretrainedConfig(hidden_sizes=(64, 32)), Clusters(), episode)
    train(learner, Clusters(), episode, 300)
    before, after = scores(learner, Clusters(), episode)
    assert before == pytest.approx(0.2)
    assert after > 0.9


def test_a_pretrained_regressor_knows_the_mean_of_all_tasks_and_learns_a_little_more() -> None:
    tasks = Sinusoid()
    learner = built(PretrainedConfig(), tasks, tasks.default_episode)
    untrained = scores(learner, tasks, tasks.default_episode)[0]
    train(learner, tasks, tasks.default_episode, 300)
    before, after = scores(learner, tasks, tasks.default_episode)
    assert before < 0.9 * untrained
    assert after < before


@pytest.mark.parametrize("config", [PretrainedConfig(), NearestNeighbourConfig()])
def test_pretraining_needs_to_know_the_classes(config: PretrainedConfig | NearestNeighbourConfig) -> None:
    spec = Clusters().spec(EPISODE)
    with pytest.raises(ConfigError, match=r"do not say how many there are \(FewShotSpec\.num_classes\)"):
        config.build(replace(spec, num_classes=None), CPU, 0)
    batch = Clusters().sample("train", 2, EPISODE, numpy_stream(0))
    with pytest.raises(ConfigError, match=r"do not say which theirs are \(TaskBatch\.classes\)"):
        config.build(spec, CPU, 0).meta_update(replace(batch, classes=None))


def test_tasks_made_of_classes_say_which_of_the_training_classes_theirs_are() -> None:
    # The image of class c is one number, c; turning it changes nothing but the class.
    examples = np.arange(4.0).repeat(3).reshape(12, 1, 1, 1) * np.ones((1, 1, 2, 2))
    classes = Classes(examples, np.full(4, 3), ("a", "b", "c", "d"))
    tasks = ClassTasks("numbers", {"train": classes}, rotations=True)
    episode = EpisodeConfig(ways=5, shots=2, queries=1)
    spec, batch = tasks.spec(episode), tasks.sample("train", 6, episode, numpy_stream(0))
    assert (spec.num_classes, spec.num_support) == (16, 10)
    assert batch.classes is not None
    assert batch.classes.shape == (6, 5)
    assert int(batch.classes.max()) < 16
    for part in (batch.support, batch.query):
        assert torch.equal(batch.classes.gather(1, part.y) // 4, part.x[:, :, 0, 0, 0].long())
    assert batch[1:3].classes is not None
    learner = built(PretrainedConfig(backbone="linear"), tasks, episode)
    assert learner.meta_update(batch)["loss"] > 0


@pytest.mark.parametrize("family", ["clusters", "sinusoid"])
def test_random_learns_nothing(family: str) -> None:
    tasks = Clusters() if family == "clusters" else Sinusoid()
    learner = built(RandomConfig(), tasks, tasks.default_episode)
    first = scores(learner, tasks, tasks.default_episode)
    metrics = train(learner, tasks, tasks.default_episode, 2)
    before, after = scores(learner, tasks, tasks.default_episode)
    assert (before, after) == first
    assert before == after
    if family == "clusters":
        assert metrics.keys() == {"loss", "accuracy"}
        assert before == pytest.approx(0.25, abs=0.05)
    else:
        assert metrics.keys() == {"loss", "error"}
        assert before > 2.0
