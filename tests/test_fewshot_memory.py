"""Few-shot settings that ask for more memory than there is are refused before there is a run, by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clusters import Clusters
from helpers.fewshot_runs import built
from torch import Tensor

from metarl.cli import main
from metarl.config import TrainConfig, from_dict
from metarl.errors import ConfigError
from metarl.fewshot.learners import LEARNERS, MAMLConfig, ProtoNetConfig
from metarl.fewshot.memory import batch_shares, network_share
from metarl.fewshot.presets import PRESETS
from metarl.fewshot.setup import Given, resolve
from metarl.fewshot.types import EpisodeConfig, FewShotSpec

IMAGES = Clusters(num_signal=56, num_noise=728, shape=(1, 28, 28))
EPISODE = EpisodeConfig(ways=5, shots=2, queries=3)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            "protonet glyphs --meta-batch-size 1000000",
            r"features of examples need at least [\d,]+\.\d GiB \(meta_batch_size = 1000000, ways = 20, shots = 1, "
            r"queries = 5, num_filters = 32\)",
        ),
        ("maml glyphs --meta-batch-size 1000000000", r"examples need at least .* \(meta_batch_size = 1000000000, ways"),
        ("maml glyphs --num-filters 10000000", r"networks need at least [\d,]+\.\d GiB \(num_filters = 10000000\)"),
        ("maml sinusoid --hidden-sizes 100000000 100000000", r"networks need .* \(hidden_sizes = \(100000000, "),
        ("reptile sinusoid --queries 10000000000", r"tasks of an evaluation at a time = 25, ways = 1, shots = 10, que"),
    ],
)
def test_too_much_is_refused_with_setting_estimate_and_what_there_is(
    words: str, named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["fewshot", "train", *words.split(), "--device", "cpu", "--runs", str(tmp_path)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(named, told)
    assert re.search(r"all together [\d,]+\.\d GiB, but [\d,]+\.\d GiB are available \(cpu\)", told)
    assert not list(tmp_path.iterdir())


def test_a_network_that_does_not_fit_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAMLConfig, "build", lambda *args: pytest.fail("built"))
    with pytest.raises(ConfigError, match="networks need at least"):
        resolve(Given("maml", "sinusoid"), settings={"hidden_sizes": (10**9, 10**9)}).check()


@pytest.mark.parametrize("change", [{}, {"norm": "none"}, {"downsample": "stride"}, {"backbone": "mlp"}])
def test_an_update_takes_no_less_than_the_estimate(change: dict[str, Any]) -> None:
    """An estimate that is too high would refuse what works."""
    config = ProtoNetConfig(**{"num_filters": 6, **change} if "backbone" not in change else change)
    spec = IMAGES.spec(EPISODE)
    learner = built(config, IMAGES, EPISODE)
    batch = IMAGES.sample("train", 3, EPISODE, np.random.default_rng(0))
    inputs, features = batch_shares(config, spec, EPISODE, ("meta_batch_size", 3), learns=True)
    assert inputs.num_bytes == sum(x.numel() * x.element_size() for x in (batch.support.x, batch.query.x))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    learner.seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.meta_update(batch)
    assert features.num_bytes <= sum(kept.values()) <= 3 * (features.num_bytes + inputs.num_bytes)
    parameters = sum(value.numel() * value.element_size() for value in learner.named_tensors().values())
    assert 0 < network_share(config, spec).num_bytes <= parameters


def test_of_a_users_network_nothing_is_known() -> None:
    config = ProtoNetConfig(backbone="my_networks:make")
    assert network_share(config, IMAGES.spec(EPISODE)).num_bytes == 0
    _, features = batch_shares(config, IMAGES.spec(EPISODE), EPISODE, ("meta_batch_size", 3), learns=True)
    assert features.num_bytes == 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_a_small_machine(name: str) -> None:
    preset, (learner, tasks) = PRESETS[name], name.split(":")[:2]
    is_image = tasks.startswith(("glyphs", "omniglot"))
    spec = FewShotSpec((1, 28, 28) if is_image else (10,), 5, "classification", num_support=5, num_classes=100)
    config = from_dict(LEARNERS[learner], preset.learner)
    training = config.build(spec, torch.device("cpu"), 0).training_episode(EpisodeConfig())
    tasks_at_once = ("meta_batch_size", from_dict(TrainConfig, preset.train).meta_batch_size)
    shares = [network_share(config, spec), *batch_shares(config, spec, training, tasks_at_once, learns=True)]
    assert 0 < sum(share.num_bytes for share in shares) < 4 * 2**30
