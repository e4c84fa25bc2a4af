"""A session is what its folder says: the same agent, the same tasks, the same scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from metarl.agents import MAMLTRPOConfig, RandomConfig, RL2Config
from metarl.config import TrainConfig
from metarl.errors import CheckpointError, ConfigError
from metarl.report import evaluation_rows, write_report
from metarl.run_folder import RunFolder
from metarl.session import Session, load_distribution, pretrained_reference, reference_config

_TRAIN = TrainConfig(seed=3, device="cpu", num_iterations=2, meta_batch_size=3, eval_tasks=2, checkpoint_every=1)
_MAML = MAMLTRPOConfig(hidden_sizes=(4,), rollouts_per_task=2, cg_iterations=2, num_inner_steps=2)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session.create("maml-trpo", "bandit", _TRAIN, _MAML, RunFolder.create(tmp_path, "run"))


def test_a_session_is_opened_as_it_was_created(session: Session) -> None:
    opened = Session.open(session.run.path)
    assert dataclasses.replace(opened, run=session.run) == session
    assert opened.distribution is load_distribution("bandit")


def test_a_build_is_a_function_of_the_seed(session: Session) -> None:
    first, second = session.build().named_tensors(), session.build().named_tensors()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = dataclasses.replace(session, train_config=dataclasses.replace(_TRAIN, seed=4)).build().named_tensors()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_newest_checkpoint_is_loaded_unless_another_is_named(session: Session) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        session.load()
    assert session.train(lambda _: None)
    store = session.run.checkpoints
    (newest, iteration), (first, zero) = session.load(), session.load(store.path(0))
    assert (iteration, zero) == (2, 0)
    untrained = session.build().named_tensors()
    assert all(torch.equal(first.named_tensors()[name], untrained[name]) for name in untrained)
    assert not all(torch.equal(newest.named_tensors()[name], untrained[name]) for name in untrained)


def test_new_settings_of_the_outer_loop_reach_the_folder(session: Session) -> None:
    longer = session.reconfigured(dataclasses.replace(_TRAIN, num_iterations=7), _MAML)
    assert longer.train_config.num_iterations == 7
    assert Session.open(session.run.path).train_config == longer.train_config


def test_what_a_checkpoint_cannot_follow_is_refused_and_not_written(session: Session) -> None:
    before = session.run.read_config()
    with pytest.raises(ConfigError, match=r"hidden_sizes is \(4,\) in .*got \(5,\)"):
        session.reconfigured(_TRAIN, dataclasses.replace(_MAML, hidden_sizes=(5,)))
    with pytest.raises(ConfigError, match=r"seed is 3 in .*got 4"):
        session.reconfigured(dataclasses.replace(_TRAIN, seed=4), _MAML)
    assert session.run.read_config() == before


def test_the_reference_trains_for_as_many_episodes_on_the_same_network(session: Session) -> None:
    reference = pretrained_reference(session)
    assert reference.train_config.num_iterations == _TRAIN.num_iterations * 3
    assert reference.build().rollouts_per_task == session.build().rollouts_per_task
    ours, theirs = session.build().named_tensors(), reference.build().named_tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = pretrained_reference(
        dataclasses.replace(session, train_config=dataclasses.replace(_TRAIN, num_iterations=5))
    )
    assert again.run.path == reference.run.path
    assert again.train_config.num_iterations == 15


def test_a_reference_counts_only_once_it_has_a_checkpoint(session: Session) -> None:
    assert session.trained_reference() is None
    reference = pretrained_reference(session)
    assert session.trained_reference() is None
    reference.train(lambda _: None)
    found = session.trained_reference()
    assert found is not None and found.name == "pretrained"


@pytest.mark.parametrize("config", [RL2Config(), RandomConfig()])
def test_agents_without_the_settings_of_maml_have_no_reference(config: RL2Config | RandomConfig) -> None:
    with pytest.raises(ConfigError, match="a pretrained reference needs a MAML agent beside it, got 'x'"):
        reference_config("x", config)


def test_every_row_of_the_table_is_scored_on_the_same_tasks(session: Session, tmp_path: Path) -> None:
    session.train(lambda _: None)
    reference = pretrained_reference(session)
    reference.train(lambda _: None)
    rows = evaluation_rows(session, session.load()[0], session.distribution, num_tasks=5, seed=9, pretrained=reference)
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
    figure = write_report(rows, session.distribution, tmp_path / "scores", "x", {"seed": 9})
    written = json.loads((tmp_path / "scores.json").read_text())
    assert figure.is_file() and written["seed"] == 9
    assert [row["label"] for row in written["rows"]] == [row.label for row in rows]
    assert written["rows"][0]["returns"] == rows[0].evaluation.returns.tolist()
