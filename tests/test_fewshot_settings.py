"""A recorded config of a few-shot learner is the one that acts: what can be set changes something, or is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from helpers.clusters import Clusters
from helpers.fewshot_runs import adapted, built
from helpers.settings import committed_scores, hints, settable

from metarl.cli import main
from metarl.config import TrainConfig, from_dict
from metarl.errors import ConfigError
from metarl.fewshot.learner import LearnerConfig
from metarl.fewshot.learners import LEARNERS, MAMLConfig, RandomConfig, load_learner
from metarl.fewshot.learners.gradient import GradientLearner
from metarl.fewshot.presets import PRESETS
from metarl.fewshot.setup import Given, Setup, read_parts, resolve
from metarl.fewshot.types import EpisodeConfig
from metarl.seeding import derive, numpy_stream

VECTORS = Clusters(num_signal=3, num_noise=2)
IMAGES = Clusters(num_signal=56, num_noise=200, shape=(1, 16, 16))
EPISODE = EpisodeConfig(ways=3, shots=2, queries=2)

SMALL: dict[str, Any] = {
    "num_filters": 3,
    "hidden_sizes": (4,),
    "feature_size": 4,
    "key_sizes": (3, 3),
    "value_sizes": (3, 3),
    "tc_filters": 3,
    "num_inner_steps": 2,
    "num_eval_steps": 3,
    "unroll": 1,
}
OTHER: dict[str, Any] = {
    "backbone": "linear",
    "norm": "none",
    "head": "body",
    "max_grad_norm": 1e-3,
    "inner_batch_size": 3,
    "task_chunk": 1,
    "train_ways": 4,
    "train_queries": 3,
    "num_support": 9,
    "lr_halve_every": 1,
    "unroll": 2,
    "num_inner_steps": 4,
}
"""Values that act on so little data; elsewhere any other value does."""
BESIDE: dict[str, dict[str, Any]] = {
    "num_reads": {"full_context": True},
    "final_meta_lr": {"anneal_iterations": 2},
    "task_chunk": {"task_chunk": 2},
}
"""Settings with which another one acts."""


def another(value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        raise AssertionError(f"{value!r} needs another value in OTHER.")
    if isinstance(value, tuple):
        return tuple(size + 1 for size in value)
    return value + 1 if isinstance(value, int) or value == 0 else 0.5 * value


@cache
def behaviour(config: LearnerConfig) -> list[Any]:
    """All that can be seen of two updates, and of adapting to test tasks afterwards."""
    tasks = VECTORS if config.hidden_sizes != LearnerConfig.hidden_sizes else IMAGES
    learner = built(config, tasks, EPISODE)
    size = learner.training_episode(EPISODE)
    found: list[Any] = [size, learner.num_adaptations, learner.num_eval_adaptations]
    pieces: list[slice] = []
    if isinstance(learner, GradientLearner):
        slices = learner.slices
        vars(learner)["slices"] = lambda number: (pieces.append(part) or part for part in slices(number))
    for iteration in range(2):
        batch = tasks.sample("train", 2, size, numpy_stream(0, "train", iteration))
        learner.seed(derive(0, "learner", iteration))
        found.append(learner.meta_update(batch))
    found.append(pieces[:])  # Of updates, not of the evaluation below.
    found.append({name: tensor.tolist() for name, tensor in learner.named_tensors().items()})
    batch = tasks.sample("test", 2, EPISODE, numpy_stream(0, "test"))
    found.append(learner.predict(adapted(learner, batch.support), batch.query.x).tolist())
    return found


def configured(learner: str, own: str) -> LearnerConfig:
    """A small learner on images, or on vectors if the setting ``own`` is one of networks for these."""
    names = hints(LEARNERS[learner])
    unused = {"num_filters"} if own == "hidden_sizes" else {"hidden_sizes"}
    chosen = {name: value for name, value in (SMALL | BESIDE.get(own, {})).items() if name in names}
    return LEARNERS[learner](**{name: value for name, value in chosen.items() if name not in unused})


@pytest.mark.parametrize(("learner", "name"), settable(LEARNERS, fixed=False))
def test_every_setting_changes_what_the_learner_does(learner: str, name: str) -> None:
    """One that did not would be recorded with a value that means nothing."""
    base = configured(learner, name)
    value = OTHER[name] if name in OTHER else another(getattr(base, name), hints(LEARNERS[learner])[name])
    changes = {name: value} | ({"num_filters": LearnerConfig.num_filters} if name == "backbone" else {})
    assert getattr(base, name) != value
    assert behaviour(dataclasses.replace(base, **changes)) != behaviour(base)


@pytest.mark.parametrize(("learner", "name"), settable(LEARNERS, fixed=True))
def test_what_a_learner_fixes_cannot_be_set(learner: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in Python nor on the command line, and it is recorded."""
    kind = LEARNERS[learner]
    (value,) = get_args(hints(kind)[name])
    assert dataclasses.asdict(kind())[name] == value
    other = not value if isinstance(value, bool) else 1 if value == 0 else "other"
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{name} must be {value!r}, which is fixed here, got"):
        kind(**{name: other})
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(SystemExit, match="2"):
        main(["fewshot", "train", learner, "sinusoid", flag, str(other)])
    told = capsys.readouterr().err
    assert flag in told and str(other) in told


def test_what_never_acts_is_fixed() -> None:
    found = {
        (learner, name) for learner, name in settable(LEARNERS, fixed=True) if name in ("train_queries", "meta_lr")
    }
    assert found == {("reptile", "train_queries"), ("random", "train_queries"), ("random", "meta_lr")}


def test_a_minibatch_of_the_whole_support_set_is_refused() -> None:
    for size in (5, 64):
        with pytest.raises(ConfigError, match=rf"inner_batch_size = {size} does nothing here: .* have 5 examples"):
            resolve(Given("maml", "sinusoid", shots=5), settings={"inner_batch_size": size}).check()
    resolve(Given("maml", "sinusoid", shots=5), settings={"inner_batch_size": 4}).check()


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of a user's own."""
    module = types.ModuleType("own_settings")
    module.make = lambda input_shape, num_outputs: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_settings", module)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(
    ("tasks", "given", "told"),
    [
        (VECTORS, {"num_filters": 3}, r"num_filters = 3 does nothing here: the backbone is mlp \(auto, for inputs of"),
        (VECTORS, {"norm": "none"}, r"norm = 'none' does nothing here: .* only conv4 uses it. Leave it out, or take"),
        (VECTORS, {"downsample": "stride"}, "downsample = 'stride' does nothing here"),
        (IMAGES, {"hidden_sizes": (8,)}, r"hidden_sizes = \(8,\) does nothing .* is conv4 \(auto, .* only mlp uses"),
        (IMAGES, {"backbone": "mlp", "num_filters": 3}, "the backbone is mlp, and only conv4 uses it"),
        (IMAGES, {"backbone": "conv4", "hidden_sizes": ()}, "the backbone is conv4, and only mlp uses it"),
        (VECTORS, {"backbone": "linear", "hidden_sizes": (8,)}, "the backbone is linear, and only mlp uses it"),
        (IMAGES, {"backbone": "own_settings:make", "num_filters": 3}, "the backbone is own_settings:make, and only"),
    ],
)
def test_settings_of_another_network_are_refused(
    learner: str, tasks: Clusters, given: dict[str, Any], told: str, own: None
) -> None:
    with pytest.raises(ConfigError, match=told):
        built(LEARNERS[learner](**given), tasks, EPISODE)


@pytest.mark.parametrize(
    ("learner", "given", "told"),
    [
        ("matching", {"num_reads": 3}, "num_reads = 3 does nothing here: it acts with full_context = True alone"),
        ("reptile", {"final_meta_lr": 0.5}, "final_meta_lr = 0.5 .* anneal_iterations = 1 or more alone, which is 0"),
        (
            "maml",
            {"multi_step_iterations": 9, "num_inner_steps": 1},
            "multi_step_iterations = 9 .* num_inner_steps = 2",
        ),
    ],
)
def test_settings_that_act_beside_another_one_alone_are_refused_without_it(
    learner: str, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        built(LEARNERS[learner](**given), VECTORS, EPISODE)


def test_a_network_that_is_none_is_told_before_its_settings() -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'conv5'\. Did you mean 'conv4'"):
        built(MAMLConfig(backbone="conv5", num_filters=3), IMAGES, EPISODE)


# Presets and files ---------------------------------------------------------------------------------------------------


def settings_of(setup: Setup) -> dict[str, Any]:
    setup.build()
    return dataclasses.asdict(setup.learner_config)


def test_a_presets_settings_of_the_network_do_not_stand_in_the_way_of_another_network() -> None:
    usual = settings_of(resolve(Given("maml", "glyphs")))
    assert (usual["num_filters"], usual["downsample"]) == (32, "stride")
    other = settings_of(resolve(Given("maml", "glyphs"), settings={"backbone": "mlp", "hidden_sizes": (8,)}))
    assert (other["num_filters"], other["downsample"]) == (64, "pool")  # Recorded is what acts, and nothing else.
    assert other["hidden_sizes"] == (8,)
    with pytest.raises(ConfigError, match="num_filters = 16 does nothing here"):
        resolve(Given("maml", "glyphs"), settings={"backbone": "mlp", "num_filters": 16}).build()


def test_a_preset_of_images_serves_vectors_without_its_settings_of_the_network() -> None:
    found = settings_of(resolve(Given("maml", "sinusoid", preset="maml:omniglot")))
    assert (found["downsample"], found["inner_lr"]) == ("pool", 0.4)


def test_a_files_settings_give_way_to_a_network_that_is_given_later(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"learner": "maml", "tasks": "glyphs", "maml": {"num_filters": 16}}))
    assert settings_of(resolve(Given(file=file)))["num_filters"] == 16
    assert settings_of(resolve(Given(file=file), settings={"backbone": "mlp"}))["num_filters"] == 64
    file.write_text(json.dumps({"learner": "maml", "tasks": "glyphs", "maml": {"num_filters": 16, "backbone": "mlp"}}))
    with pytest.raises(ConfigError, match="num_filters = 16 does nothing here"):
        resolve(Given(file=file)).build()


def test_the_command_line_refuses_what_does_nothing_and_lets_a_preset_pass(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["fewshot", "train", "maml", "glyphs", "--runs", str(tmp_path), "--backbone", "mlp", "--print-config"]
    assert main([*words, "--num-filters", "3"]) == 2
    assert "num_filters = 3 does nothing here" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--hidden-sizes", "8"]) == 0
    recorded = json.loads(capsys.readouterr().out)["maml"]
    assert (recorded["num_filters"], recorded["hidden_sizes"]) == (64, [8])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_acts(name: str) -> None:
    learner, tasks, *_ = name.split(":")
    shape = {"sinusoid": VECTORS, "sinusoid-and-line": VECTORS, "quadratic": VECTORS}.get(tasks, IMAGES)
    built(from_dict(LEARNERS[learner], PRESETS[name].learner), shape, EPISODE)


def test_a_step_size_that_the_untrained_network_never_had_is_passed_over_in_older_runs() -> None:
    assert from_dict(RandomConfig, {"meta_lr": 1e-3}) == RandomConfig()
    with pytest.raises(ConfigError, match=r"RandomConfig\.meta_lr must be of the type Literal\[0\], got 0.5"):
        from_dict(RandomConfig, {"meta_lr": 0.5})


@pytest.mark.parametrize("path", committed_scores("learner"), ids=lambda path: path.stem)
def test_the_config_of_every_committed_score_opens(path: Path) -> None:
    """Without a warning, and with the values that it has; settings younger than it may be beside them."""
    content = json.loads(path.read_text())["config"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = read_parts(content, path, Given(learner=content["learner"]))
        assert parts.name is not None
        read = {
            "train": from_dict(TrainConfig, parts.train),
            "episode": from_dict(EpisodeConfig, parts.episode),
            parts.name: from_dict(load_learner(parts.name), parts.settings),
        }
    for section, config in read.items():
        now = json.loads(json.dumps(dataclasses.asdict(config)))
        assert now == now | content[section], section
