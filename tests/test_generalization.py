"""Generalization to other physics: successes as the paper counts them, its three measures, and a run of the command."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import metarl, refused

from metarl.agents.references import RandomConfig
from metarl.benchmarks.generalization import (
    ENVIRONMENTS,
    MEASURES,
    GeneralizationSource,
    arrived,
    held,
    lasted,
)
from metarl.benchmarks.tables import load_table, packer_generalization
from metarl.errors import ConfigError
from metarl.evaluation.evaluator import evaluate
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.tasks.registry import load_distribution
from metarl.types import Rollout, Timestep


def _rollout(lengths: list[int], terminated: list[bool], cosines: Any = None) -> Rollout:
    """One task whose episodes have these lengths, ended by the environment or by time."""
    time = max(lengths)
    steps = torch.arange(time)
    valid = steps < torch.tensor(lengths)[:, None]
    last = steps == torch.tensor(lengths)[:, None] - 1
    ends = torch.tensor(terminated)[:, None]
    obs = torch.zeros(len(lengths), time + 1, 3) if cosines is None else torch.as_tensor(cosines)[..., None]
    none = torch.zeros(1, len(lengths), time)
    timesteps = Timestep(obs[None, :, :-1], none[..., None], none, none, valid[None])
    failed = torch.zeros(1, len(lengths), dtype=torch.bool)
    return Rollout(
        timesteps, none, none, none, (last & ends)[None], (last & ~ends)[None], obs[None, :, -1], failed, failed
    )


def test_a_pole_must_stand_for_195_steps_whatever_ends_them() -> None:
    rollout = _rollout([194, 195, 200, 20], [True, True, False, True])
    assert lasted(rollout, 195).tolist() == [[False, True, True, False]]


def test_a_goal_must_be_reached_in_time() -> None:
    """After 110 steps at the latest; an episode that time ended never arrived."""
    rollout = _rollout([110, 111, 60, 110], [True, True, True, False])
    assert arrived(rollout, 110).tolist() == [[True, False, True, False]]


def test_a_pendulum_must_be_up_at_the_end_for_100_states() -> None:
    """As the authors count: steps in a row with an angle within pi/3, after each step, back to zero outside."""
    rng = np.random.default_rng(0)
    angles = np.cumsum(rng.normal(0.0, 0.1, (400, 201)), axis=1) + rng.uniform(-0.5, 0.5, (400, 1))
    angles[0, 101:], angles[0, 100] = 1.0, 2.0  # Up after step 101 to 200: just enough.
    angles[1, 101:], angles[1, 101] = 1.0, 1.05  # One too few: pi/3 is 1.0472.
    angles[2], angles[2, 200] = 0.0, 1.05  # Fallen in the last state, which only last_obs holds.
    expected = []
    for episode in angles:
        in_a_row = 0
        for angle in episode[1:]:
            normalised = (angle + math.pi) % (2 * math.pi) - math.pi
            in_a_row = in_a_row + 1 if abs(normalised) <= math.pi / 3 else 0
        expected.append(in_a_row >= 100)
    found = held(_rollout([200] * 400, [False] * 400, np.cos(angles)), 100, 0.5)[0].tolist()
    assert found == expected
    assert found[:3] == [True, False, False] and 20 < sum(found) < 380


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_successes_are_scored_on_the_last_episode_of_each_task(name: str) -> None:
    """The share among a task's episodes, of what is said of each rollout; environments themselves report nothing."""
    environment = ENVIRONMENTS[name]
    distribution = load_distribution(environment.tasks["R"])
    agent = RandomConfig(rollouts_per_task=3).build(distribution.spec, torch.device("cpu"), 1)
    found = evaluate(agent, distribution, num_tasks=5, seed=3, succeeded=lambda rollout: rollout.lengths % 2 == 0)
    assert found.success is not None and found.success.shape == (5, 1)
    again = evaluate(agent, distribution, num_tasks=5, seed=3)
    assert again.success is None and np.array_equal(again.returns, found.returns)
    if name == "CartPole":  # Whose return is its length.
        one = evaluate(agent, distribution, num_tasks=5, seed=3, succeeded=lambda rollout: rollout.returns >= 25)
        assert one.success is not None and 0.0 < one.success.mean() < 1.0
    collector = Collector(distribution, 3, agent.device)
    trial = run_trial(agent, collector, distribution.test.sample(5, np.random.default_rng(0)), 0, 7)
    collector.close()
    assert environment.succeeded(trial.rollouts[0]).shape == (5, 3)


def _content(rates: dict[str, float], num_tasks: int, rng: np.random.Generator) -> dict[str, Any]:
    return {"success": {pair: (rng.random(num_tasks) < rate).astype(float).tolist() for pair, rate in rates.items()}}


def test_extrapolation_is_the_geometric_mean_with_its_standard_error() -> None:
    source = GeneralizationSource("rl2", "CartPole", 5)
    rates = {"DD": 0.9, "DR": 0.8, "DE": 0.5, "RR": 0.7, "RE": 0.2}
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(2000):
        content = _content(rates, 200, rng)
        values = source.values(content, "extrapolation")
        plain = [np.mean(content["success"][pair]) for pair in ("DR", "DE", "RE")]
        assert values.mean() == pytest.approx(100.0 * math.prod(plain) ** (1 / 3), abs=1e-9)
        means.append(values.mean())
        errors.append(values.std(ddof=1) / math.sqrt(200))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.05)
    assert source.values(content, "default").mean() == pytest.approx(100 * np.mean(content["success"]["DD"]))
    assert source.values(content, "interpolation").mean() == pytest.approx(100 * np.mean(content["success"]["RR"]))
    nothing = {**content["success"], "RE": [0.0] * 200}
    assert not source.values({"success": nothing}, "extrapolation").any()


def test_the_table_is_whole() -> None:
    table = load_table("packer-generalization")
    assert len(table.rows) == 16 and table.columns == list(MEASURES)
    assert len(table.runs(table.cells, "full")) == 16 * 5 and len(table.runs(table.cells, "small")) == 16
    published = {cell.key: cell.published for cell in table.cells}
    assert all(published.values())
    ours = {key: number.value for key, number in published.items() if number is not None}
    assert ours["CartPole,pretrained/extrapolation"] == 86.2 and ours["CartPole,rl2/default"] == 87.2
    assert ours["MountainCar,maml-trpo/default"] == 99.96 and ours["Pendulum,varibad/interpolation"] == 65.22
    comparable = {cell.row for cell in table.cells if not cell.not_comparable}
    assert {row.split(",")[1] for row in comparable} == {"rl2"}
    for cell in table.cells:
        # As many meta-updates as fit into 15,000 episodes of 200 or 500 steps, on D and on R.
        horizon = 500 if cell.row.startswith("Acrobot") else 200
        assert cell.source.steps(1.0) == 2 * 15_000 * horizon
        assert cell.source.steps(0.1) == 2 * 1500 * horizon


@pytest.mark.timeout(300)
def test_the_command_trains_tests_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """150 episodes instead of 15,000: two agents, five tests, three cells of one run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packer_generalization, "TABLE", dataclasses.replace(packer_generalization.TABLE, small=0.01))
    words = "reproduce packer-generalization --budget small --cells CartPole,rl2 --results results --runs runs"
    assert metarl(words) == 0
    assert "cells: 3 not comparable, 45 not run" in capsys.readouterr().out
    folder = tmp_path / "results/packer-generalization-small"
    (path,) = folder.glob("*.json")
    content = json.loads(path.read_text())
    assert {pair: len(values) for pair, values in content["success"].items()} == dict.fromkeys(
        ("DD", "DR", "DE", "RR", "RE"), 10
    )
    assert {split: trained["tasks"] for split, trained in content["trained"].items()} == {
        "D": "cartpole",
        "R": "cartpole-random",
    }
    assert content["trained"]["R"]["config"]["train"]["num_iterations"] == 1
    assert "gae_lambda" in content["trained"]["D"]["config"]["rl2"]
    page = (folder / "README.md").read_text()
    assert page.startswith("# Packer et al., Tables 3 to 6: generalization to other physics, 0.01 of the budget\n")
    assert "not comparable: 0.01 of the budget" in page and "(51.00 ± 14.60) ~ |" in page
    # Nothing is trained again: neither by the same words, nor if the score alone is lost.
    assert metarl(words) == 0
    assert "1 of 1 scores are there already: skipped." in capsys.readouterr().out
    score = path.read_text()
    path.unlink()
    assert metarl(words) == 0
    assert json.loads(path.read_text())["success"] == json.loads(score)["success"]


def test_what_is_unknown_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown environment 'Cartpole'\. Did you mean 'CartPole'"):
        GeneralizationSource("rl2", "Cartpole", 5)
    source = GeneralizationSource("rl2", "CartPole", 5)
    content = _content(dict.fromkeys(("DD", "DR", "DE", "RR", "RE"), 0.5), 10, np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"unknown measure 'interpolate'\. Did you mean 'interpolation'"):
        source.values(content, "interpolate")
    monkeypatch.chdir(tmp_path)
    message = "unknown cell of packer-generalization 'CartPole,rl3'. Did you mean 'CartPole,rl2'?"
    assert message in refused("reproduce packer-generalization --cells CartPole,rl3", capsys)
