"""Models that come with metarl do what their model.json says, and stay as they are; only sound runs are published."""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import metarl, refused
from helpers.pages import PAGES
from helpers.painted import painted

import metarl as library
from metarl.agent import Agent
from metarl.benchmarks.models.publish import main, measure, publish
from metarl.envs.metaworld.distributions import MetaWorldTasks
from metarl.errors import CheckpointError, ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.experiments import Experiment, resolve
from metarl.runs import published
from metarl.runs.checkpoint import load
from metarl.runs.published import PublishedModel, Score, models_folder, published_models, published_names
from metarl.statistics import Interval, interval_texts
from metarl.tasks import registry

COMMIT = {"commit": "0123456789abcdef", "dirty": False}


def finished(root: Path, agent: str = "rl2", tasks: str = "bandit", git: Any = COMMIT, **settings: Any) -> Experiment:
    """A short run that says it was trained by this commit."""
    train = {"num_iterations": 2, "meta_batch_size": 3, "eval_tasks": 2, "checkpoint_every": 1, "device": "cpu"}
    this = Experiment.start(resolve(agent, tasks, train=train, settings=settings), root)
    this.train()
    manifest = this.run.read_manifest()
    (this.run.path / "manifest.json").write_text(json.dumps({**manifest, "git": git}))
    return this


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models in the place of metarl's own, from a working directory without any."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(published, "models_folder", lambda: folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Committed models -----------------------------------------------------------------------------------------------------


def test_models_are_committed_whole_and_small() -> None:
    families = ("bandit", "cartpole-goal", "navigation-2d", "ml1-reach", "ml1-push", "ml10")
    assert {f"{agent}-{tasks}" for agent in ("maml-trpo", "rl2") for tasks in families} <= set(published_names())
    for model in published_models():
        inside = set(files(model.folder))
        assert inside == {"config.json", "model.json", f"checkpoints/iteration-{model.iteration:08d}.safetensors"}
        assert model.num_bytes < 500_000
        assert len(model.commit) == 40 and {"torch", "metarl", "python"} <= model.versions.keys()
        of_its_own = model.command.startswith(f"metarl train {model.agent} {model.tasks}")
        assert of_its_own or model.command.startswith("metarl reproduce ")


@pytest.mark.parametrize("name", published_names())
def test_a_models_settings_are_those_of_today(name: str) -> None:
    """A setting that came later is written into the models' files: whoever opens one has nothing to decide."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Experiment.open(f"model:{name}")


def few_tasks(this: Experiment, agent: Agent[Any], iteration: int, goals: int = 4) -> Interval:
    """The score on a few tasks of another seed; of Meta-World's on some goals, in all episodes of its protocol."""
    if isinstance(this.distribution, MetaWorldTasks):
        return measure(this, agent, iteration, 0, goals=goals).last
    return evaluate(agent, this.distribution, num_tasks=20, seed=11).interval(-1)


def agree(one: Interval, other: Interval) -> bool:
    """Whether two means differ by no more than the sides of their intervals that face each other allow."""
    lower, upper = sorted((one, other))
    return upper[0] - lower[0] <= np.hypot(lower[2] - lower[0], upper[0] - upper[1])


# Meta-World takes half a minute for some goals. All models are scored on all of their tasks in `make slow`.
_LONG = ("-ml1-push", "-ml10", "rl2-ml1-reach")


@pytest.mark.parametrize("name", [name for name in published_names() if not name.endswith(_LONG)])
def test_a_few_tasks_reproduce_the_score_of_a_model(name: str) -> None:
    model = PublishedModel.read(models_folder() / name)
    this = Experiment.open(f"model:{name}")
    assert (this.name, this.task_name, this.train_config.seed) == (model.agent, model.tasks, model.training_seed)
    agent, iteration = this.load()
    assert iteration == model.iteration
    assert agree(few_tasks(this, agent, iteration), model.score.last)


# An untrained network solves some goals of reach: after its gradient step 4 of the first 10, and all of the first 4. So
# it is twenty goals, and models that solve most of them.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(model.name, marks=[pytest.mark.slow] if model.score.official else [])
        for model in published_models()
        if not model.score.official or model.score.last[1] > 0.5
    ],
)
def test_an_untrained_agent_does_not_reproduce_the_score(name: str) -> None:
    model = PublishedModel.read(models_folder() / name)
    this = Experiment.open(f"model:{name}")
    found = few_tasks(this, this.build(), model.iteration, goals=20)
    assert found[0] < model.score.last[0] and not agree(found, model.score.last)


@pytest.mark.slow
@pytest.mark.parametrize("name", published_names())
def test_the_score_of_a_model_is_within_its_interval(name: str) -> None:
    """The very tasks of model.json; other versions of libraries may round otherwise."""
    model = PublishedModel.read(models_folder() / name)
    this = Experiment.open(f"model:{name}")
    found = measure(this, *this.load(), model.score.num_tasks)
    assert (found.what, found.num_tasks) == (model.score.what, model.score.num_tasks)
    assert model.score.last[1] <= found.last[0] <= model.score.last[2]


def test_models_are_listed_on_80_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert metarl("models") == 0
    printed = capsys.readouterr().out
    for model in published_models():
        assert sum(line.startswith(f"{model.name} ") for line in printed.splitlines()) == 1  # Whole, on one line.
        assert model.command in printed and model.commit[:12] in printed
        assert f"metarl evaluate model:{model.name} " in printed


def test_the_docs_show_the_scores_of_the_models() -> None:
    def cell(score: Score, interval: Interval) -> str:
        mean, low, high = (100.0 * value for value in interval) if score.official else interval
        return "{} ({} .. {})".format(*interval_texts((mean, low, high))) + " %" * score.official

    for model in published_models():
        score = model.score
        first = cell(score, score.by_shot[0]) if len(score.by_shot) > 1 else ""
        row = f"| `{model.name}` | {first} | {cell(score, score.last)} | {score.num_tasks:,} | {model.env_steps:,} |"
        assert row in PAGES["models.md"].splitlines()


# In the place of a run ------------------------------------------------------------------------------------------------


def test_commands_take_a_model_and_leave_it_as_it_is(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(finished(models.parent / "runs", tasks="cartpole-goal").run.path, "rl2-small", models, num_tasks=3)
    before = files(models)
    assert metarl("evaluate model:rl2-small --num-tasks 2") == 0
    assert metarl("export model:rl2-small policy.pt2") == 0
    assert metarl("models") == 0
    assert "rl2-small" in capsys.readouterr().out
    assert library.load("model:rl2-small").iteration == 2
    assert files(models) == before and not list(models.rglob(".*"))
    here = {str(path) for path in Path().rglob("*") if path.is_file()}
    name = "model-rl2-small/evaluation-cartpole-goal-2tasks-iteration2-seed2000003"
    assert here == {f"{name}.json", f"{name}.png", "policy.pt2"}


def test_the_video_of_a_model_goes_into_the_working_directory(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", {**registry.registered(), painted.id: painted})
    publish(finished(models.parent / "runs", tasks=painted.id).run.path, "rl2-small", models, num_tasks=3)
    before = files(models)
    assert metarl("render model:rl2-small") == 0
    assert files(models) == before
    assert [path.parent.name for path in Path().rglob("*.mp4")] == ["model-rl2-small"]


def test_an_unknown_model_is_told_with_those_there_are(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(finished(models.parent / "runs").run.path, "rl2-small", models, num_tasks=3)
    for words in ("evaluate model:rl3-small", "export model:rl3-small x.pt2", "render model:rl3-small"):
        told = refused(words, capsys)
        assert "unknown published model 'rl3-small'. Did you mean 'rl2-small'? Valid choices: rl2-small." in told
    with pytest.raises(ConfigError, match="unknown published model ''"):
        library.load("model:")


@pytest.mark.parametrize("agent", ["rl2", "maml-ppo", "promp", "varibad"])
def test_a_model_acts_as_its_run_does_and_has_no_optimiser(models: Path, agent: str) -> None:
    this = finished(models.parent / "runs", agent)
    model = publish(this.run.path, "small", models, num_tasks=3)
    (checkpoint,) = (model.folder / "checkpoints").iterdir()
    assert not [name for name in load(checkpoint)["state"]["agent"] if "optimizer" in name]
    assert checkpoint.stat().st_size < this.run.checkpoints.latest().stat().st_size
    ours, theirs = Experiment.open("model:small").load()[0], this.load()[0]
    assert ours.named_tensors().keys() == theirs.named_tensors().keys()
    for name, tensor in theirs.named_tensors().items():
        torch.testing.assert_close(ours.named_tensors()[name], tensor, rtol=0, atol=0)
    found = evaluate(theirs, this.distribution, num_tasks=3, seed=model.score.seed)
    assert model.score.by_shot == tuple(found.interval(shot) for shot in range(found.returns.shape[1]))
    manifest = this.run.read_manifest()
    assert (model.commit, model.versions) == (COMMIT["commit"], manifest["versions"])


def test_training_does_not_go_on_from_a_model(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    this = finished(models.parent / "runs")
    model = publish(this.run.path, "rl2-small", models, num_tasks=3)
    before, run = files(models.parent), this.run.path
    (checkpoint,) = (model.folder / "checkpoints").iterdir()
    for words in (
        ["train", "--resume", "model:rl2-small", "--num-iterations", "9"],
        ["train", "--resume", str(model.folder), "--num-iterations", "9"],
        ["train", "--resume", str(run), "--checkpoint", str(checkpoint), "--num-iterations", "9"],
    ):
        told = refused(words, capsys)
        assert "is a published model, for evaluation only" in told and "metarl train --config" in told
        # A run's folder with a model's checkpoint cannot say where the model's config.json lies.
        assert ("rl2-small/config.json" in told) == ("--checkpoint" not in words)
    with pytest.raises(CheckpointError, match=r"for evaluation only: .* metarl train --config .*config\.json"):
        Experiment.open("model:rl2-small").train()
    assert files(models.parent) == before
    assert metarl(["train", "--config", str(model.folder / "config.json"), "--num-iterations", "1"]) == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"commit": 3}, "'commit' must be text, got 3"),
        ({"score": {}}, "lacks 'by_shot'"),
        ({"score": {"by_shot": [[1.0, 0.0, 2.0]], "what": "luck"}}, "'what' must be 'return' or 'success', got 'luck'"),
        ({"score": {"by_shot": [[1.0, 2.0]]}}, "lacks 'high'"),
        ({"score": {"by_shot": [3]}}, r"'by_shot' must be \[mean, low, high\] for each shot, got \[3\]"),
    ],
)
def test_a_damaged_card_is_told(models: Path, damage: dict[str, Any], message: str) -> None:
    model = publish(finished(models.parent / "runs").run.path, "rl2-small", models, num_tasks=3)
    card = model.folder / "model.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), **damage}))
    with pytest.raises(CheckpointError, match=rf"model\.json is damaged: .*{message}"):
        published_models()


# Publishing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("git", "message"),
    [
        ({**COMMIT, "dirty": True}, "was trained by a tree that differs from its commit, 0123456789ab"),
        (None, "does not say which commit of metarl trained it"),
        ({"dirty": False}, "does not say which commit of metarl trained it"),
    ],
)
def test_a_run_that_nobody_can_train_again_is_not_published(models: Path, git: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        publish(finished(models.parent / "runs", git=git).run.path, "rl2-small", models)
    assert not list(models.iterdir())


def test_only_finished_runs_of_metarls_own_parts_are_published_once(models: Path) -> None:
    this = finished(models.parent / "runs")
    config = this.run.read_config()
    this.run.write_config({**config, "train": {**config["train"], "num_iterations": 3}})
    with pytest.raises(ConfigError, match=r"not finished: it has done 2 of 3 iterations\. .*metarl train --resume "):
        publish(this.run.path, "rl2-small", models)
    this.run.write_config(config)
    for name in ("", "a/b", "..", "a b"):
        with pytest.raises(ConfigError, match="a model's name is part of a file's"):
            publish(this.run.path, name, models)
    model = publish(this.run.path, "rl2-small", models, num_tasks=3)
    with pytest.raises(ConfigError, match="exists already"):
        publish(this.run.path, "rl2-small", models)
    with pytest.raises(ConfigError, match="is a published model already"):
        publish(_with_manifest(model.folder, this.run.path), "again", models)
    assert [path.name for path in models.iterdir()] == ["rl2-small"]


def _with_manifest(model: Path, run: Path) -> Path:
    shutil.copy(run / "manifest.json", model)
    return model


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("metarl train rl2 bandit --seed 1", "metarl train rl2 bandit --seed 1 --num-iterations 2"),
        ("metarl train rl2 bandit --num-iterations 9 --seed 1", "metarl train rl2 bandit --num-iterations 2 --seed 1"),
        ("metarl train rl2 bandit --num_iterations=9", "metarl train rl2 bandit --num-iterations 2"),
        ("metarl reproduce cartpole --cells 'a, b'", "metarl reproduce cartpole --cells 'a, b'"),
    ],
)
def test_the_command_of_a_run_that_was_resumed_to_another_length_says_the_length(
    models: Path, given: str, told: str
) -> None:
    run = finished(models.parent / "runs").run
    manifest = run.read_manifest()
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "command": shlex.split(given)}))
    assert publish(run.path, "rl2-small", models, num_tasks=3).command == told


def test_the_command_publishes_and_tells_errors_in_a_line(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, into = str(finished(models.parent / "runs").run.path), models / "of mine"
    main([run, "rl2-small", "--num-tasks", "3", "--into", str(into)])
    assert "rl2-small: " in capsys.readouterr().out
    assert (into / "rl2-small/model.json").exists()
    with pytest.raises(SystemExit, match=r"error: .* exists already"):
        main([run, "rl2-small", "--into", str(into)])


def test_an_agent_of_meta_world_is_scored_by_its_protocol(models: Path) -> None:
    pytest.importorskip("metaworld")
    this = finished(models.parent / "runs", "random", "ml1/reach-v3")
    score = measure(this, *this.load(), num_tasks=200, goals=1)
    assert (score.what, score.official, score.num_tasks) == ("success", True, 1)
    model = PublishedModel(models / "reach", "random", "ml1/reach-v3", 2, 0, 1, score, "", "", {})
    assert model.evaluate_command == "metarl evaluate model:reach --official --seed 2000003"
