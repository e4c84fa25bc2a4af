"""What all few-shot learners share: the contract, names, normalisation, dropout, backbones of one's own."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers.clusters import Clusters
from helpers.fewshot_runs import CPU, adapted, built, train
from torch import Tensor, nn

from metarl.errors import ConfigError, NonFiniteError
from metarl.fewshot.evaluation import evaluate
from metarl.fewshot.experiment import Experiment
from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.learners import LEARNERS, learner_name, load_learner
from metarl.fewshot.learners.embedding import FeatureNorm
from metarl.fewshot.learners.maml import MAMLConfig
from metarl.fewshot.learners.matching import MatchingConfig
from metarl.fewshot.learners.nearest_neighbour import NearestNeighbourConfig
from metarl.fewshot.learners.pretrained import PretrainedConfig
from metarl.fewshot.learners.protonet import ProtoNetConfig
from metarl.fewshot.learners.random import RandomConfig
from metarl.fewshot.learners.snail import SNAILConfig
from metarl.fewshot.objective import task_scores
from metarl.fewshot.setup import Given, resolve
from metarl.fewshot.tasks.sinusoid import Sinusoid
from metarl.fewshot.types import EpisodeConfig, Examples, TaskBatch
from metarl.networks.task_norm import TaskNorm
from metarl.seeding import numpy_stream
from metarl.testing import check_learner

SNAIL_SIZES = {"feature_size": 8, "key_sizes": (8, 8), "value_sizes": (8, 8), "tc_filters": 8}
CONFIGS: dict[str, LearnerConfig] = {
    "protonet": ProtoNetConfig(train_ways=6),
    "matching": MatchingConfig(),
    "matching-full-context": MatchingConfig(full_context=True),
    "snail": SNAILConfig(**SNAIL_SIZES),  # type: ignore[arg-type]
    "nearest-neighbour": NearestNeighbourConfig(),
    "pretrained": PretrainedConfig(num_inner_steps=2),
    "pretrained-head": PretrainedConfig(num_inner_steps=2, fine_tune="head"),
    "random": RandomConfig(),
}
EPISODE = Clusters.default_episode
IMAGES = Clusters(num_signal=56, num_noise=200, shape=(1, 16, 16))


class Dropped(nn.Module):
    """Batch normalisation, dropout and a feature map that is no vector, as a backbone of one's own may be."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(input_shape[0])
        self.linear = nn.Linear(input_shape[0], 8)
        self.dropout = nn.Dropout(0.5)
        self.head = None if num_outputs is None else nn.Linear(8, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.dropout(self.linear(self.norm(x)))
        outputs: Tensor = features.unflatten(-1, (2, 4)) if self.head is None else self.head(features)  # type: ignore[no-untyped-call]
        return outputs


@pytest.fixture
def own() -> Iterator[types.ModuleType]:
    """A module of a user's own."""
    module = types.ModuleType("own_networks")
    module.dropped = Dropped  # type: ignore[attr-defined]
    sys.modules["own_networks"] = module
    yield module
    del sys.modules["own_networks"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_learner_keeps_the_contract(name: str) -> None:
    check_learner(CONFIGS[name], Clusters())


@pytest.mark.parametrize("norm", ["running", "transductive", "none"])
@pytest.mark.parametrize("name", ["protonet", "matching-full-context", "snail", "pretrained", "random"])
def test_every_learner_keeps_the_contract_on_images(name: str, norm: FeatureNorm) -> None:
    check_learner(replace(CONFIGS[name], num_filters=4, norm=norm), IMAGES)


@pytest.mark.parametrize("name", ["snail", "pretrained", "random"])
def test_learners_of_regression_keep_the_contract(name: str) -> None:
    check_learner(CONFIGS[name], Sinusoid())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_learner_takes_a_backbone_of_ones_own(name: str, own: types.ModuleType) -> None:
    check_learner(replace(CONFIGS[name], backbone="own_networks:dropped"), Clusters())


def test_dropout_is_drawn_in_training_from_the_learners_own_stream(own: types.ModuleType) -> None:
    config = ProtoNetConfig(backbone="own_networks:dropped")
    batch = Clusters().sample("train", 4, EPISODE, numpy_stream(0))
    losses = []
    for seed in (0, 0, 1):
        learner = built(config, Clusters(), EPISODE)
        learner.seed(seed)
        before = torch.get_rng_state()
        losses.append(learner.meta_update(batch)["loss"])
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]


def test_support_and_queries_of_a_training_batch_are_normalised_together(own: types.ModuleType) -> None:
    learner = built(ProtoNetConfig(backbone="own_networks:dropped"), Clusters(), EPISODE)
    batch = Clusters().sample("train", 4, EPISODE, numpy_stream(0))
    learner.meta_update(batch)
    everything = torch.cat([batch.support.x, batch.query.x], dim=1).flatten(0, 1)
    torch.testing.assert_close(learner.named_tensors()["body.norm.running_mean"], 0.1 * everything.mean(0))


def test_transductive_normalisation_is_by_the_tasks_own_support_or_queries() -> None:
    learner = built(ProtoNetConfig(num_filters=4, norm="transductive"), IMAGES, EPISODE)
    batch = IMAGES.sample("test", 3, EPISODE, numpy_stream(0))
    state = adapted(learner, batch.support)
    outputs = learner.predict(state, batch.query.x)
    assert not torch.allclose(learner.predict(state, batch.query.x[:, :5])[:, :5], outputs[:, :5], atol=1e-3)
    body = learner.components()["body"]
    assert isinstance(body, nn.Module)
    for task in range(3):
        means = torch.stack([body(batch.support.x[task])[batch.support.y[task] == way].mean(0) for way in range(4)])
        expected = -torch.cdist(body(batch.query.x[task]), means).square()
        torch.testing.assert_close(outputs[task], expected.detach(), rtol=1e-3, atol=1e-3)
    # Training sees what testing sees.
    loss = nn.functional.cross_entropy(outputs.flatten(0, 1), batch.query.y.flatten())
    assert learner.meta_update(batch)["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert any(isinstance(part, TaskNorm) for part in body.modules())


def test_frozen_layers_stay_as_they_are(own: types.ModuleType) -> None:
    def half(input_shape: tuple[int, ...], num_outputs: int | None) -> nn.Module:
        frozen = nn.Linear(input_shape[0], 6).requires_grad_(False)
        return nn.Sequential(frozen, nn.ReLU(), nn.Linear(6, 4))

    own.half = half  # type: ignore[attr-defined]
    for name in ("protonet", "snail", "pretrained"):
        config = type(CONFIGS[name])(backbone="own_networks:half")
        check_learner(config, Clusters())
        learner = built(config, Clusters(), EPISODE)
        before = {key: value.clone() for key, value in learner.named_tensors().items()}
        train(learner, Clusters(), EPISODE, 2, 3)
        changed = {key for key, value in learner.named_tensors().items() if not torch.equal(value, before[key])}
        frozen = {key for key in before if "body.0." in f"{key}"}
        assert len(frozen) == 2
        assert changed == before.keys() - frozen


@pytest.mark.parametrize(
    ("give", "told"),
    [
        (lambda x: x.sum(), r"must give features \[example, \.\.\.\].*the shape \(\)"),
        (lambda x: (x, x), r"for 2 inputs it gave tuple"),
        (lambda x: x @ torch.ones(3, 3), r"fails on inputs \(2, 12\)"),
    ],
)
def test_backbones_without_features_are_refused(give: object, told: str, own: types.ModuleType) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            return give(x)  # type: ignore[operator]

    own.odd = lambda input_shape, num_outputs: Odd()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=told):
        built(ProtoNetConfig(backbone="own_networks:odd"), Clusters(), EPISODE)


def test_a_loss_that_is_not_finite_is_refused_before_it_reaches_the_parameters() -> None:
    learner = built(ProtoNetConfig(), Clusters(), EPISODE)
    batch = Clusters().sample("train", 2, EPISODE, numpy_stream(0))
    spoilt = TaskBatch(batch.support, Examples(batch.query.x * float("nan"), batch.query.y))
    with pytest.raises(NonFiniteError, match="the loss of the training tasks is not finite"):
        learner.meta_update(spoilt)
    assert all(torch.isfinite(value).all() for value in learner.named_tensors().values())


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNERS)
def test_every_name_leads_to_its_class_and_back(name: str) -> None:
    assert load_learner(name) is LEARNERS[name]
    assert learner_name(LEARNERS[name]()) == name
    assert LEARNERS[name].when
    assert built(LEARNERS[name](), Clusters(), EPISODE).spec.num_outputs == 4


def test_learners_that_refuse_regression_name_some_that_take_it() -> None:
    spec = Sinusoid().spec(EpisodeConfig(1, 10, 10))
    takes, refusals = set(), []
    for name, config in LEARNERS.items():
        try:
            config().build(spec, CPU, 0)
            takes.add(name)
        except ConfigError as error:
            refusals.append(str(error))
    assert len(refusals) >= 3
    for refusal in refusals:
        named = refusal.partition("Learners that take them: ")[2].rstrip(".").split(", ")
        assert not set(named) & (LEARNERS.keys() - takes)
        assert set(named) & takes


def test_unknown_names_are_told_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"unknown learner 'protonets'\. Did you mean 'protonet'\?.*my_learners:"):
        load_learner("protonets")


def test_a_learner_of_ones_own_is_found_by_module_and_attribute(own: types.ModuleType) -> None:
    @dataclass(frozen=True)
    class Mine(ProtoNetConfig):
        """A learner of one's own."""

    Mine.__module__, Mine.__qualname__ = "own_networks", "Mine"
    own.Mine = Mine  # type: ignore[attr-defined]
    assert load_learner("own_networks:Mine") is Mine
    assert learner_name(Mine()) == "own_networks:Mine"
    with pytest.raises(ConfigError, match="expected a concrete subclass of LearnerConfig, found"):
        load_learner("own_networks:dropped")


def test_predictions_that_are_no_numbers_count_as_wrong_and_are_told() -> None:
    logits = torch.tensor([[[0.0, 1.0], [float("nan"), 0.0], [float("-inf"), 0.0]]])
    assert task_scores(logits, torch.tensor([[1, 0, 1]]), "classification").tolist() == pytest.approx([2 / 3])
    config = MAMLConfig(backbone="mlp", num_inner_steps=1, num_eval_steps=2, inner_lr=1e30)
    tasks = Clusters()
    learner = built(config, tasks, tasks.default_episode)
    with pytest.warns(RuntimeWarning, match="their predictions are no numbers, and count as wrong"):
        found = evaluate(learner, tasks, tasks.default_episode, num_tasks=4, seed=0)
    assert (found.scores[:, -1] == 0.0).all()
    sines = Sinusoid()
    learner = built(config, sines, sines.default_episode)
    with pytest.raises(NonFiniteError, match=r"diverged: after step [12] the errors of 4 of 4 tasks are not finite"):
        evaluate(learner, sines, sines.default_episode, num_tasks=4, seed=0)


def test_iterations_after_annealing_to_nothing_are_refused(tmp_path: Path) -> None:
    settings = {"anneal_iterations": 2, "num_inner_steps": 1, "num_eval_steps": 1}
    train = {"num_iterations": 2, "meta_batch_size": 2, "eval_every": 2, "eval_tasks": 2}
    this = Experiment.start(resolve(Given("reptile", "sinusoid"), train=train, settings=settings), tmp_path)
    assert this.train()
    longer = dataclasses.replace(this.setup.train_config, num_iterations=3)
    with pytest.raises(ConfigError, match=r"num_iterations = 3, but the step .* come down to nothing after 2"):
        this.reconfigured(longer, this.setup.learner_config)
    with pytest.raises(ConfigError, match="begin a new run with --anneal-iterations 3"):
        dataclasses.replace(this.setup, train_config=longer).check()
    dataclasses.replace(
        this.setup,
        train_config=longer,
        learner_config=dataclasses.replace(this.setup.learner_config, final_meta_lr=0.1),
    ).check()
