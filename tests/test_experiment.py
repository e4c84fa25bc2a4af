"""A experiment is what its folder says: the same agent, the same tasks, the same scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from metarl.agents import MAMLTRPOConfig, MetaLSTMConfig, PretrainedConfig, RandomConfig, RL2Config
from metarl.cli.report import evaluation_rows, write_adaptation
from metarl.config import TrainConfig
from metarl.errors import CheckpointError, ConfigError, RunInUseError
from metarl.experiments import Experiment, Setup
from metarl.experiments.experiment import pretrained_reference, reference_config
from metarl.runs import folder
from metarl.runs.folder import RunFolder
from metarl.runs.outer_loop import Progress
from metarl.tasks.registry import load_distribution

_TRAIN = TrainConfig(seed=3, device="cpu", num_iterations=2, meta_batch_size=3, eval_tasks=2, checkpoint_every=1)
_MAML = MAMLTRPOConfig(hidden_sizes=(4,), rollouts_per_task=2, cg_iterations=2, num_inner_steps=2)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment.create(Setup("maml-trpo", "bandit", _TRAIN, _MAML), RunFolder.create(tmp_path, "run"))


def test_an_experiment_is_opened_as_it_was_created(experiment: Experiment) -> None:
    opened = Experiment.open(experiment.run.path)
    assert dataclasses.replace(opened, run=experiment.run) == experiment
    assert opened.distribution is load_distribution("bandit")


def test_after_a_restart_every_experiment_of_a_script_gets_its_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where names or tasks are the same, and what had not begun is begun."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "launch")
    asked = [(3, "bandit", None), (4, "bandit", None), (3, "tabular-mdp", "x"), (3, "bandit", "x"), (3, "bandit", "x")]

    def start(seed: int, tasks: str, name: str | None) -> Experiment:
        setup = Setup("maml-trpo", tasks, dataclasses.replace(_TRAIN, seed=seed), _MAML)
        return Experiment.start(setup, tmp_path, name)

    first = [start(*call) for call in asked[:4]]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(folder, "_given", set())  # As in the new process.
    again = [start(*call) for call in asked]
    assert [(this.run.path, this.to_json()) for this in again[:4]] == [(it.run.path, it.to_json()) for it in first]
    assert again[4].run.path.name == "x-3"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    monkeypatch.setattr(folder, "_given", set())
    assert start(*asked[0]).run.path.name == "maml-trpo-bandit-seed3-2"


def test_a_build_is_a_function_of_the_seed(experiment: Experiment) -> None:
    first, second = experiment.build().named_tensors(), experiment.build().named_tensors()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = dataclasses.replace(experiment, train_config=dataclasses.replace(_TRAIN, seed=4)).build().named_tensors()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_newest_checkpoint_is_loaded_unless_another_is_named(experiment: Experiment) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        experiment.load()
    with pytest.raises(ConfigError, match=r"has no best checkpoint yet: .* Leave out --best"):
        _ = experiment.best_checkpoint
    assert experiment.train(lambda _: None)
    assert experiment.best_checkpoint.is_file()
    store = experiment.run.checkpoints
    (newest, iteration), (first, zero) = experiment.load(), experiment.load(store.path(0))
    assert (iteration, zero) == (2, 0)
    untrained = experiment.build().named_tensors()
    assert all(torch.equal(first.named_tensors()[name], untrained[name]) for name in untrained)
    assert not all(torch.equal(newest.named_tensors()[name], untrained[name]) for name in untrained)


def test_new_settings_of_the_outer_loop_reach_the_folder(experiment: Experiment) -> None:
    longer = experiment.reconfigured(dataclasses.replace(_TRAIN, num_iterations=7), _MAML)
    assert longer.train_config.num_iterations == 7
    assert Experiment.open(experiment.run.path).train_config == longer.train_config


def test_a_second_resume_that_is_refused_leaves_the_first_one_s_settings(experiment: Experiment) -> None:
    """Also where it was about to begin before the first one began."""
    one, two = (Experiment.open(experiment.run.path) for _ in range(2))
    one = one.reconfigured(dataclasses.replace(_TRAIN, num_iterations=3), _MAML)
    two = two.reconfigured(dataclasses.replace(_TRAIN, num_iterations=50, eval_tasks=9), _MAML)

    def listener(progress: Progress) -> None:
        with pytest.raises(RunInUseError, match="in use"):
            two.train()

    assert one.train(listener)
    assert Experiment.open(experiment.run.path).train_config == one.train_config


def test_what_a_checkpoint_cannot_follow_is_refused_and_not_written(experiment: Experiment) -> None:
    before = experiment.run.read_config()
    with pytest.raises(ConfigError, match=r"hidden_sizes is \(4,\) in .*got \(5,\)"):
        experiment.reconfigured(_TRAIN, dataclasses.replace(_MAML, hidden_sizes=(5,)))
    with pytest.raises(ConfigError, match=r"seed is 3 in .*got 4"):
        experiment.reconfigured(dataclasses.replace(_TRAIN, seed=4), _MAML)
    with pytest.raises(ConfigError, match=r"meta_batch_size is 3 in .*got 4"):
        experiment.reconfigured(dataclasses.replace(_TRAIN, meta_batch_size=4), _MAML)
    assert experiment.run.read_config() == before


def test_fields_that_config_json_lost_are_told_and_never_taken_from_the_defaults(experiment: Experiment) -> None:
    experiment.train()
    content = experiment.run.read_config()
    for part, name in (("train", "seed"), ("train", "meta_batch_size"), ("train", "eval_every")):
        lost = {**content, part: {key: value for key, value in content[part].items() if key != name}}
        experiment.run.write_config(lost)
        with pytest.raises(ConfigError, match=rf"train in .*config\.json lacks {name}"):
            Experiment.open(experiment.run.path)
    settings = {key: value for key, value in content["maml-trpo"].items() if key not in ("num_inner_steps", "max_kl")}
    experiment.run.write_config({**content, "maml-trpo": settings})
    with pytest.warns(UserWarning, match=r"lacks settings of maml-trpo; taken are .*num_inner_steps = 1"):
        opened = Experiment.open(experiment.run.path)
    with pytest.raises(CheckpointError, match="of another run: num_inner_steps is 2 there and 1 here"):
        opened.load()
    with pytest.raises(CheckpointError, match="num_inner_steps is 2 there and 1 here"):
        opened.reconfigured(opened.train_config, opened.agent_config)
    assert experiment.run.read_config()["maml-trpo"] == settings
    experiment.run.write_config({**content, "maml-trpo": settings | {"num_inner_steps": 2}})
    with pytest.warns(UserWarning, match="max_kl"):
        Experiment.open(experiment.run.path).load()  # The default is what the checkpoint has.


def test_the_reference_trains_for_as_many_episodes_on_the_same_network(experiment: Experiment) -> None:
    reference = pretrained_reference(experiment)
    assert reference.train_config.num_iterations == _TRAIN.num_iterations * 3
    assert reference.build().rollouts_per_task == experiment.build().rollouts_per_task
    ours, theirs = experiment.build().named_tensors(), reference.build().named_tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = pretrained_reference(
        dataclasses.replace(experiment, train_config=dataclasses.replace(_TRAIN, num_iterations=5))
    )
    assert again.run.path == reference.run.path
    assert again.train_config.num_iterations == 15


def test_a_reference_counts_only_once_it_has_a_checkpoint(experiment: Experiment) -> None:
    assert experiment.trained_reference() is None
    reference = pretrained_reference(experiment)
    assert experiment.trained_reference() is None
    reference.train(lambda _: None)
    found = experiment.trained_reference()
    assert found is not None and found.name == "pretrained"


@pytest.mark.parametrize("config", [RL2Config(), RandomConfig()])
def test_agents_without_the_settings_of_maml_have_no_reference(config: RL2Config | RandomConfig) -> None:
    with pytest.raises(ConfigError, match="a pretrained reference needs a MAML agent beside it, got 'x'"):
        reference_config("x", config)


def test_the_reference_of_a_learned_rule_goes_by_gradient_descent() -> None:
    config = MetaLSTMConfig(hidden_sizes=(5,), inner_lr=0.3)
    assert reference_config("meta-lstm", config) == PretrainedConfig(hidden_sizes=(5,), inner_lr=0.3)


def test_every_row_of_the_table_is_scored_on_the_same_tasks(experiment: Experiment, tmp_path: Path) -> None:
    experiment.train(lambda _: None)
    reference = pretrained_reference(experiment)
    reference.train(lambda _: None)
    rows = evaluation_rows(
        experiment, experiment.load()[0], experiment.distribution, num_tasks=5, seed=9, pretrained=reference
    )
    assert [(row.label, len(row.intervals)) for row in rows] == [
        ("maml-trpo", 4),
        ("single policy, not adapted", 1),
        ("single policy, fine-tuned", 4),
        ("maml-trpo, untrained", 4),
        ("random policy", 1),
    ]
    assert {row.evaluation.returns.shape[0] for row in rows} == {5}
    for row in rows:
        for mean, low, high in row.intervals:
            assert low <= mean <= high
    figure = write_adaptation(rows, experiment.distribution, tmp_path / "scores", "x", {"seed": 9})
    written = json.loads((tmp_path / "scores.json").read_text())
    assert figure.is_file() and written["seed"] == 9
    assert [row["label"] for row in written["rows"]] == [row.label for row in rows]
    assert written["rows"][0]["returns"] == rows[0].evaluation.returns.tolist()
