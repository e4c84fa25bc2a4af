"""Prototypical Networks, Matching Networks and nearest neighbour: logits by hand, updates against plain loops."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers.clusters import Clusters
from helpers.fewshot_runs import CPU, adapted, built, double, scores, train
from torch import Tensor, nn

from metarl.errors import ConfigError
from metarl.fewshot.learner import Learner, LearnerConfig
from metarl.fewshot.learners.embedding import mixed
from metarl.fewshot.learners.matching import MatchingConfig, MatchingNet, match
from metarl.fewshot.learners.nearest_neighbour import NearestNeighbourConfig
from metarl.fewshot.learners.protonet import ProtoNet, ProtoNetConfig, distance_logits, prototypes
from metarl.fewshot.types import EpisodeConfig, Examples, FewShotSpec, TaskBatch
from metarl.seeding import numpy_stream

EPISODE = EpisodeConfig(ways=3, shots=2, queries=2)
SMALL = (8, 5)


def _batch(episode: EpisodeConfig = EPISODE, num_tasks: int = 3) -> TaskBatch:
    return double(Clusters().sample("train", num_tasks, episode, numpy_stream(0, "batch")))


def _stepped(network: nn.Module, loss: Tensor, meta_lr: float) -> dict[str, Tensor]:
    """Parameters after one step of Adam on ``loss``."""
    optimizer = torch.optim.Adam(network.parameters(), lr=meta_lr)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return dict(network.named_parameters())


def _require_equal(found: nn.Module, expected: dict[str, Tensor]) -> None:
    values = dict(found.named_parameters())
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=1e-9, atol=1e-11)


# Prototypical Networks --------------------------------------------------------------------------------------------


def test_class_means_and_squared_distances_by_hand() -> None:
    features = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 6.0]]])
    means = prototypes(features, torch.tensor([[0, 0, 1, 1]]), 2)
    assert means.tolist() == [[[1.0, 0.0], [0.0, 5.0]]]
    assert distance_logits(torch.tensor([[[1.0, 1.0], [0.0, 2.0]]]), means).tolist() == [[[-1.0, -17.0], [-5.0, -9.0]]]


def _protonet_loss(body: nn.Module, batch: TaskBatch) -> Tensor:
    losses = []
    for task in range(batch.num_tasks):
        support, query = batch.support[task : task + 1], batch.query[task : task + 1]
        means = []
        for way in range(int(support.y.max()) + 1):
            members = [body(x[None])[0] for x, y in zip(support.x[0], support.y[0], strict=True) if y == way]
            means.append(sum(members[1:], members[0]) / len(members))
        for x, y in zip(query.x[0], query.y[0], strict=True):
            distances = torch.stack([(body(x[None])[0] - mean).square().sum() for mean in means])
            losses.append(distances[y] + torch.log(torch.exp(-distances).sum()))
    return torch.stack(losses).mean()


def test_an_update_of_protonet_is_that_of_a_loop_over_tasks(float64: None) -> None:
    batch = _batch()
    learner = built(ProtoNetConfig(hidden_sizes=SMALL), Clusters(), EPISODE)
    assert isinstance(learner, ProtoNet)
    body = copy.deepcopy(learner.body)
    loss = _protonet_loss(body, batch)
    metrics = learner.meta_update(batch)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-10)
    _require_equal(learner.body, _stepped(body, loss, 1e-3))


def test_protonet_trains_on_more_ways_and_other_queries_than_it_is_tested_on() -> None:
    learner = built(ProtoNetConfig(train_ways=20, train_queries=1, hidden_sizes=SMALL), Clusters(), EPISODE)
    assert learner.training_episode(EPISODE) == EpisodeConfig(ways=20, shots=2, queries=1)
    metrics = train(learner, Clusters(), EPISODE, 1)
    assert metrics["loss"] > 0
    batch = Clusters().sample("test", 2, EPISODE, numpy_stream(0))
    assert learner.predict(adapted(learner, batch.support), batch.query.x).shape == (2, 6, 3)
    same = built(ProtoNetConfig(hidden_sizes=SMALL), Clusters(), EPISODE)
    assert same.training_episode(EPISODE) == EPISODE


def _rate(learner: Learner[Any]) -> float:
    optimizer = learner.components()["optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    return float(optimizer.param_groups[0]["lr"])


def test_protonet_halves_its_step_size_also_after_a_restart() -> None:
    config = ProtoNetConfig(hidden_sizes=SMALL, meta_lr=0.08, lr_halve_every=2)
    learner = built(config, Clusters(), EPISODE)
    rates = []
    for _ in range(5):
        train(learner, Clusters(), EPISODE, 1)
        rates.append(_rate(learner))
    assert rates == [0.08, 0.08, 0.04, 0.04, 0.02]
    restarted = built(config, Clusters(), EPISODE, seed=1)
    restarted.load_state_dict(copy.deepcopy(learner.state_dict()))
    for one in (learner, restarted):
        train(one, Clusters(), EPISODE, 2)
        assert _rate(one) == 0.01
    for name, value in learner.named_tensors().items():
        assert torch.equal(value, restarted.named_tensors()[name]), name


# Matching Networks ------------------------------------------------------------------------------------------------


def test_attention_over_labels_by_hand() -> None:
    query = torch.tensor([[[2.0, 0.0]]])
    support = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    weights = [math.e, 1.0, 1 / math.e]
    expected = [math.log((weights[0] + weights[2]) / sum(weights)), math.log(weights[1] / sum(weights))]
    assert match(query, support, torch.tensor([[0, 1, 0]]), 2).flatten().tolist() == pytest.approx(expected)


def test_scaled_attention_is_finite_where_float32_has_no_number_for_the_probability() -> None:
    query = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    outputs = match(query, torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), torch.tensor([[0, 1]]), 2, 100.0)
    assert outputs.flatten().tolist() == pytest.approx([0.0, -200.0], abs=1e-4)
    outputs[0, 0, 1].backward()
    assert query.grad is not None and bool(query.grad.isfinite().all())


def _plain_lstm(cell: list[Tensor], x: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    of_input, of_hidden, bias, other_bias = cell
    i, f, g, o = (of_input @ x + of_hidden @ hidden + bias + other_bias).chunk(4)
    memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def _matching_loss(
    network: nn.Module, batch: TaskBatch, num_reads: int, order: list[int], scale: float = 1.0
) -> Tensor:
    """Mean loss, with full context if ``num_reads`` is not 0 and the support sets in ``order``."""
    body = network.get_submodule("body")
    losses = []
    for task in range(batch.num_tasks):
        g = [body(batch.support.x[task, i][None])[0] for i in order]
        labels = [int(batch.support.y[task, i]) for i in order]
        if num_reads:
            both = dict(network.get_submodule("context.both_ways").named_parameters())
            names = [f"{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            out = [x.clone() for x in g]
            for suffix, steps in (("", range(len(g))), ("_reverse", range(len(g) - 1, -1, -1))):
                hidden = memory = torch.zeros_like(g[0])
                for i in steps:
                    hidden, memory = _plain_lstm([both[name + suffix] for name in names], g[i], hidden, memory)
                    out[i] = out[i] + hidden
            g = out
        for x, y in zip(batch.query.x[task], batch.query.y[task], strict=True):
            f = body(x[None])[0]
            hidden = memory = torch.zeros_like(f)
            for _ in range(num_reads):
                cell = list(network.get_submodule("context.reader").parameters())
                weights = torch.stack([hidden @ one for one in g]).softmax(0)
                read = sum((w * one for w, one in zip(weights, g, strict=True)), torch.zeros_like(f))
                hidden, memory = _plain_lstm(cell, torch.cat([f, read]), hidden, memory)
                hidden = hidden + f
            final = hidden if num_reads else f
            cosines = torch.stack([final @ one / final.norm() / one.norm() for one in g])
            right = torch.tensor([label == int(y) for label in labels])
            losses.append(-((scale * cosines).softmax(0) * right).sum().log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_an_update_of_matching_networks_is_that_of_a_loop_over_tasks(float64: None, scale: float) -> None:
    batch = _batch()
    learner = built(MatchingConfig(hidden_sizes=SMALL, cosine_scale=scale), Clusters(), EPISODE)
    network = _network(learner)
    loss = _matching_loss(network, batch, 0, list(range(6)), scale)
    assert learner.meta_update(batch)["loss"] == pytest.approx(float(loss.detach()), rel=1e-10)
    _require_equal(_network(learner, copied=False), _stepped(network, loss, 1e-3))


def _network(learner: Learner[Any], copied: bool = True) -> nn.Module:
    network = learner.components()["network"]
    assert isinstance(network, nn.Module)
    return copy.deepcopy(network) if copied else network


def test_full_context_embeddings_are_those_of_plain_loops_and_shuffle_the_support(float64: None) -> None:
    episode = EpisodeConfig(ways=2, shots=1, queries=2)
    batch = _batch(episode, num_tasks=1)
    orders = ([0, 1], [1, 0])
    found = set()
    for seed in range(6):
        learner = built(MatchingConfig(hidden_sizes=SMALL, full_context=True, num_reads=3), Clusters(), episode)
        networks = [_network(learner) for _ in orders]
        losses = [_matching_loss(network, batch, 3, order) for network, order in zip(networks, orders, strict=True)]
        learner.seed(seed)
        loss = learner.meta_update(batch)["loss"]
        (fitting,) = [i for i, one in enumerate(losses) if float(one.detach()) == pytest.approx(loss, rel=1e-10)]
        _require_equal(_network(learner, copied=False), _stepped(networks[fitting], losses[fitting], 1e-3))
        found.add(fitting)
    assert found == {0, 1}


def test_with_full_context_predictions_are_those_of_the_plain_loop(float64: None) -> None:
    batch = _batch()
    learner = built(MatchingConfig(hidden_sizes=SMALL, full_context=True, num_reads=2), Clusters(), EPISODE)
    assert isinstance(learner, MatchingNet)
    outputs = learner.predict(adapted(learner, batch.support), batch.query.x)
    loss = nn.functional.cross_entropy(outputs.flatten(0, 1), batch.query.y.flatten())
    expected = _matching_loss(_network(learner), batch, 2, mixed(6)).detach()
    assert float(loss) == pytest.approx(float(expected), rel=1e-10)


# All of them ------------------------------------------------------------------------------------------------------


def test_nearest_neighbour_takes_the_label_of_the_most_similar_example() -> None:
    spec = FewShotSpec((2,), 2, "classification", num_classes=4)
    learner = NearestNeighbourConfig(backbone="linear").build(spec, CPU, 0)
    support = Examples(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]]), torch.tensor([[0, 1, 1, 0]]))
    outputs = learner.predict(adapted(learner, support), torch.tensor([[[3.0, 0.1], [0.0, 9.0], [-1.0, 0.2]]]))
    assert outputs.argmax(-1).tolist() == [[0, 1, 0]]
    assert outputs[0, 1].tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(
    ("config", "num_iterations", "least"),
    [
        (ProtoNetConfig(hidden_sizes=(64, 32)), 200, 0.95),
        (ProtoNetConfig(hidden_sizes=(64, 32), train_ways=20, train_queries=2), 200, 0.95),
        (MatchingConfig(hidden_sizes=(64, 32)), 200, 0.93),
        (MatchingConfig(hidden_sizes=(64, 32), cosine_scale=10.0), 200, 0.95),
        (MatchingConfig(hidden_sizes=(64, 32), full_context=True, num_reads=2), 200, 0.9),
        (NearestNeighbourConfig(hidden_sizes=(64, 32)), 300, 0.95),
    ],
    ids=["protonet", "protonet-20-ways", "matching", "matching-scaled", "matching-full-context", "nearest-neighbour"],
)
def test_learning_finds_the_dimensions_that_tell_new_classes_apart(
    config: LearnerConfig, num_iterations: int, least: float
) -> None:
    episode = EpisodeConfig(ways=5, shots=1, queries=5)
    learner = built(config, Clusters(), episode)
    chance, untrained = scores(learner, Clusters(), episode)
    assert chance == pytest.approx(0.2)
    assert untrained < 0.4
    train(learner, Clusters(), episode, num_iterations)
    assert scores(learner, Clusters(), episode)[1] > least


@pytest.mark.parametrize("config", [ProtoNetConfig(), MatchingConfig(), NearestNeighbourConfig()])
def test_regression_is_refused_with_learners_that_take_it(config: LearnerConfig) -> None:
    with pytest.raises(ConfigError, match=r"classifies, and these tasks are regression.*maml.*snail, pretrained"):
        config.build(FewShotSpec((1,), 1, "regression"), CPU, 0)


def test_normalisation_per_step_is_refused_where_there_are_no_steps() -> None:
    with pytest.raises(ConfigError, match=r"ProtoNetConfig\.norm must be one of running, transductive, none, got"):
        ProtoNetConfig(norm="per-step")  # type: ignore[arg-type]
