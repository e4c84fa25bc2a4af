"""SNAIL of few-shot learning: a loop over steps agrees, queries are alone, and no query's label is seen."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from helpers.clusters import Clusters
from helpers.fewshot_runs import CPU, adapted, built, double, scores, train
from torch import Tensor, nn

from metarl.errors import ConfigError
from metarl.fewshot.learners.embedding import mixed
from metarl.fewshot.learners.snail import SNAIL, SNAILConfig
from metarl.fewshot.tasks.sinusoid import Sinusoid
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, TaskBatch
from metarl.networks.snail import AttentionBlock, DenseBlock
from metarl.seeding import numpy_stream

EPISODE = EpisodeConfig(ways=3, shots=2, queries=2)
SMALL = SNAILConfig(hidden_sizes=(8, 5), feature_size=6, key_sizes=(4, 5, 3), value_sizes=(3, 2, 4), tc_filters=3)
QUICK = SNAILConfig(hidden_sizes=(64, 32), feature_size=16, key_sizes=(16, 16), value_sizes=(16, 16), tc_filters=16)


def _snail(config: SNAILConfig = SMALL, episode: EpisodeConfig = EPISODE) -> SNAIL:
    learner = built(config, Clusters(), episode)
    assert isinstance(learner, SNAIL)
    return learner


def _batch(episode: EpisodeConfig = EPISODE, num_tasks: int = 3) -> TaskBatch:
    return double(Clusters().sample("train", num_tasks, episode, numpy_stream(0, "batch")))


def _outputs(body: nn.Module, reader: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The network's output at the last step of a sequence ``x`` ``[step, ...]``, by loops over steps."""
    encoder, head, blocks = (reader.get_submodule(name) for name in ("encoder", "head", "blocks"))
    steps = [torch.cat([encoder(body(one[None]))[0], label]) for one, label in zip(x, labels, strict=True)]
    for block in blocks.children():
        new = []
        for t, step in enumerate(steps):
            if isinstance(block, DenseBlock):
                total = block.present(step)
                if t >= block.dilation:
                    total = total + block.past(steps[t - block.dilation])
                content, gate = total.chunk(2)
                new.append(torch.cat([step, content.tanh() * gate.sigmoid()]))
            else:
                assert isinstance(block, AttentionBlock)
                memories = [block.memory(one) for one in steps[: t + 1]]
                size = block.key_size
                weights = torch.stack([block.query(step) @ one[:size] / math.sqrt(size) for one in memories]).softmax(0)
                read = sum(
                    (w * one[size:] for w, one in zip(weights[1:], memories[1:], strict=True)), torch.tensor(0.0)
                )
                new.append(torch.cat([step, weights[0] * memories[0][size:] + read]))
        steps = new
    outputs: Tensor = head(steps[-1])
    return outputs


def _task_outputs(learner: SNAIL, support: Examples, queries: Tensor, task: int, order: list[int]) -> Tensor:
    """Outputs for each of a task's queries, each of which ends a sequence of its own."""
    ways = learner.spec.num_outputs
    labels = torch.eye(ways)[support.y[task, order]]
    rows = []
    for query in queries[task]:
        x = torch.cat([support.x[task, order], query[None]])
        rows.append(_outputs(learner.body, learner.reader, x, torch.cat([labels, torch.zeros(1, ways)])))
    return torch.stack(rows)


@pytest.mark.parametrize("num_examples", [5, 6, 20, 25, 100])
def test_support_sets_are_read_mixed_as_in_training(num_examples: int) -> None:
    """Always in the same order, and not in that of the classes, in which they come."""
    order = mixed(num_examples)
    assert sorted(order) == list(range(num_examples)) and order == mixed(num_examples)
    rising = sum(late > early for early, late in itertools.pairwise(order))
    assert 0.2 < rising / (num_examples - 1) < 0.8


def test_predictions_are_those_of_one_sequence_for_each_query(float64: None) -> None:
    learner, batch = _snail(), _batch()
    found = learner.predict(adapted(learner, batch.support), batch.query.x)
    for task in range(3):
        expected = _task_outputs(learner, batch.support, batch.query.x, task, mixed(6))
        torch.testing.assert_close(found[task], expected.detach(), rtol=1e-10, atol=1e-12)


def test_an_update_is_that_of_a_loop_over_tasks_and_queries_with_shuffled_supports(float64: None) -> None:
    episode = EpisodeConfig(ways=2, shots=1, queries=2)
    batch = _batch(episode, num_tasks=2)
    orders = list(itertools.product([[0, 1], [1, 0]], repeat=2))
    found = set()
    for seed in range(4):
        learner = _snail(episode=episode)
        copies = [copy.deepcopy(learner) for _ in orders]
        losses = []
        for one, of_tasks in zip(copies, orders, strict=True):
            outputs = [_task_outputs(one, batch.support, batch.query.x, task, of_tasks[task]) for task in range(2)]
            losses.append(nn.functional.cross_entropy(torch.cat(outputs), batch.query.y.flatten()))
        learner.seed(seed)
        loss = learner.meta_update(batch)["loss"]
        (fitting,) = [i for i, one in enumerate(losses) if float(one.detach()) == pytest.approx(loss, rel=1e-10)]
        found.add(fitting)
        network = copies[fitting].components()["network"]
        assert isinstance(network, nn.Module)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        losses[fitting].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, value in learner.named_tensors().items():
            torch.testing.assert_close(value, copies[fitting].named_tensors()[name], rtol=1e-9, atol=1e-11)
    assert len(found) > 1


def test_queries_do_not_see_each_other_and_labels_of_the_support_count() -> None:
    learner = _snail()
    batch = Clusters().sample("test", 2, EPISODE, numpy_stream(0))
    state = adapted(learner, batch.support)
    together = learner.predict(state, batch.query.x)
    changed = batch.query.x.clone()
    changed[:, 1:] = 100.0
    torch.testing.assert_close(learner.predict(state, changed)[:, 0], together[:, 0])
    swapped = Examples(batch.support.x, 2 - batch.support.y)
    assert not torch.allclose(learner.predict(adapted(learner, swapped), batch.query.x), together, atol=1e-4)


def test_no_label_of_a_query_reaches_what_is_predicted_of_it() -> None:
    batch = Clusters().sample("train", 4, EPISODE, numpy_stream(0))
    accuracies = []
    for y in (batch.query.y, (batch.query.y + 1) % 3, (batch.query.y + 2) % 3):
        learner = _snail()
        learner.seed(0)
        accuracies.append(learner.meta_update(TaskBatch(batch.support, Examples(batch.query.x, y)))["accuracy"])
    # Predictions that are the same, whatever the labels, are right about exactly one of the three labellings.
    assert sum(accuracies) == pytest.approx(1.0)


def test_a_support_set_may_be_longer_than_the_network_was_built_for() -> None:
    learner = _snail()
    batch = Clusters().sample("test", 2, EpisodeConfig(ways=3, shots=5, queries=2), numpy_stream(0))
    assert torch.isfinite(learner.predict(adapted(learner, batch.support), batch.query.x)).all()


def test_its_default_sizes_are_those_of_the_paper() -> None:
    spec = FewShotSpec((1, 28, 28), 5, "classification", num_support=5)
    learner = SNAILConfig().build(spec, CPU, 0)
    sizes = [
        ("attention", block.key_size, block.memory.out_features - block.key_size)
        if isinstance(block, AttentionBlock)
        else ("dense", block.dilation, block.past.out_features // 2)
        for block in learner.reader.blocks
        if isinstance(block, AttentionBlock | DenseBlock)
    ]
    tc = [("dense", dilation, 128) for dilation in (1, 2, 4)]
    assert sizes == [("attention", 64, 32), *tc, ("attention", 256, 128), *tc, ("attention", 512, 256)]
    assert learner.reader.encoder.out_features == 64


def test_the_settings_say_how_long_a_support_set_is_where_the_tasks_do_not() -> None:
    spec = FewShotSpec((12,), 3, "classification")
    with pytest.raises(ConfigError, match=r"set num_support \(ways times shots\)"):
        SMALL.build(spec, CPU, 0)
    assert SNAILConfig(num_support=9).build(spec, CPU, 0).num_adaptations == 1


def test_a_key_size_without_a_value_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"as many key_sizes as value_sizes.*\(64,\) and \(32, 128, 256\)"):
        SNAILConfig(key_sizes=(64,))


def test_it_learns_to_classify_by_the_support_set() -> None:
    episode = EpisodeConfig(ways=2, shots=1, queries=5)
    tasks = Clusters(num_signal=4, num_noise=0)
    learner = built(QUICK, tasks, episode)
    assert scores(learner, tasks, episode)[1] < 0.6
    train(learner, tasks, episode, 400)
    before, after = scores(learner, tasks, episode)
    assert before == pytest.approx(0.5)
    assert after > 0.9


def test_it_learns_to_regress_by_the_support_set() -> None:
    tasks = Sinusoid()
    learner = built(QUICK, tasks, tasks.default_episode)
    train(learner, tasks, tasks.default_episode, 300)
    before, after = scores(learner, tasks, tasks.default_episode)
    assert after < 0.6 * before
