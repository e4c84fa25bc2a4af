"""Callbacks see every iteration, may end training and add metrics, and a run that they ended goes on as any other."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.command_line import metarl as command
from helpers.command_line import refused

from metarl import TrainConfig, evaluate
from metarl.agents import MAMLTRPOConfig, RL2Config
from metarl.callbacks import EarlyStopping, EvaluateTasks, Progress, TimeLimit, Wandb
from metarl.cli.task_choice import chosen_tasks
from metarl.envs import metaworld
from metarl.errors import ConfigError, NonFiniteError
from metarl.experiments import Experiment, Setup
from metarl.runs.folder import RunFolder
from metarl.runs.logger import read_metrics
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution

_TRAIN = TrainConfig(seed=3, device="cpu", num_iterations=6, meta_batch_size=2, eval_tasks=2, checkpoint_every=4)
_RL2 = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment.create(Setup("rl2", "bandit", _TRAIN, _RL2), RunFolder.create(tmp_path, "run"))


class _Ends:
    """Ends training after some iterations, and keeps what it saw."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.seen: list[int] = []

    def on_iteration(self, progress: Progress) -> bool:
        self.seen.append(progress.iteration)
        progress.metrics["mine/double"] = 2.0 * progress.iteration
        return progress.iteration >= self.after


def _returns(experiment: Experiment) -> list[float]:
    return [entry["train/return_1"] for entry in read_metrics(experiment.run.metrics)]


def test_a_callback_ends_training_with_everything_saved_and_resuming_gives_the_same_numbers(
    experiment: Experiment, tmp_path: Path
) -> None:
    first, second = _Ends(3), _Ends(9)
    assert experiment.train(callbacks=[first, second])
    assert first.seen == second.seen == [1, 2, 3]
    assert experiment.run.checkpoints.iterations()[-1] == 3
    assert [entry["mine/double"] for entry in read_metrics(experiment.run.metrics)] == [2.0, 4.0, 6.0]
    assert experiment.train(callbacks=[second])
    assert second.seen == [1, 2, 3, 4, 5, 6]
    whole = Experiment.create(Setup("rl2", "bandit", _TRAIN, _RL2), RunFolder.create(tmp_path, "whole"))
    assert whole.train()
    assert _returns(whole) == _returns(experiment)


def test_a_callback_that_raises_loses_its_own_iteration_alone(experiment: Experiment) -> None:
    class Fails:
        def on_iteration(self, progress: Progress) -> None:
            if progress.iteration == 3:
                raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network") as caught:
        experiment.train(callbacks=[Fails()])
    assert "The 2 iterations that were finished before it are saved" in "".join(caught.value.__notes__)
    assert experiment.run.checkpoints.iterations()[-1] == 2


class _Calls:
    """Does something after the third iteration, and answers."""

    def __init__(self, act: Callable[[Progress], Any]) -> None:
        self.act = act

    def on_iteration(self, progress: Progress) -> Any:
        return self.act(progress) if progress.iteration == 3 else None


def _spoil(progress: Progress) -> None:
    with torch.no_grad():
        next(iter(progress.trained.named_tensors().values())).fill_(math.nan)


def _reserve(progress: Progress) -> None:
    progress.metrics["iteration"] = 1.0


async def _later(progress: Progress) -> bool:
    return False


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize(
    ("act", "error", "told"),
    [
        (_spoil, NonFiniteError, r"is not finite after the callbacks.* last good checkpoint is .*-00000002"),
        (_reserve, ConfigError, "a metric cannot be called 'iteration'"),
        (_later, ConfigError, r"_Calls\.on_iteration returned <coroutine .*, expected True to end training, or False"),
        (lambda progress: 1, ConfigError, "on_iteration returned 1, expected True"),
    ],
)
def test_what_a_callback_must_not_do_loses_its_own_iteration_alone(
    experiment: Experiment, act: Callable[[Progress], Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        experiment.train(callbacks=[_Calls(act)])
    assert max(experiment.run.checkpoints.iterations()) == 2
    assert all(tensor.isfinite().all() for tensor in experiment.load()[0].named_tensors().values())
    assert experiment.train()


def test_a_callback_that_takes_a_metric_away_changes_no_choice_of_the_best(experiment: Experiment) -> None:
    assert experiment.train(callbacks=[_Calls(lambda progress: progress.metrics.clear())])
    assert experiment.load()[1] == experiment.train_config.num_iterations


def _told(callback: EarlyStopping, experiment: Experiment, returns: list[float], first: int = 1) -> list[bool]:
    return [
        callback.on_iteration(
            Progress(number, 99, {"train/return_0": 9.0 - number, "train/return_1": value}, experiment.run, None)  # type: ignore[arg-type]
        )
        for number, value in enumerate(returns, first)
    ]


def test_early_stopping_waits_for_a_better_mean(experiment: Experiment) -> None:
    returns = [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    # Means of two: .5, 1.5, 2, then nothing better.
    assert _told(EarlyStopping(3, window=2), experiment, returns) == [False] * 6 + [True]
    assert not any(_told(EarlyStopping(3, window=2), experiment, [float(x) for x in range(9)]))


def test_early_stopping_goes_on_from_the_log(experiment: Experiment) -> None:
    assert experiment.train(callbacks=[_Ends(5)])
    returns = _returns(experiment)
    callback, resumed = EarlyStopping(2, window=1), EarlyStopping(2, window=1)
    expected = _told(callback, experiment, [*returns, -9.0, -9.0])
    assert _told(resumed, experiment, [-9.0, -9.0], first=6) == expected[-2:]


def test_a_time_limit_ends_training_after_the_iteration_in_hand(experiment: Experiment) -> None:
    assert experiment.train(callbacks=[TimeLimit(hours=1e-9)])
    assert experiment.run.checkpoints.iterations()[-1] == 1
    limit = TimeLimit(hours=1.0)
    assert not limit.on_iteration(None)  # type: ignore[arg-type]


def test_chosen_tasks_are_scored_now_and_then(experiment: Experiment) -> None:
    distribution = experiment.distribution
    tasks = distribution.test.sample(2, np.random.default_rng(0))
    assert experiment.train(callbacks=[EvaluateTasks(distribution, tasks, every=4, name="two", seed=5)])
    logged = [entry.get("two/return_0") for entry in read_metrics(experiment.run.metrics)]
    assert [value is not None for value in logged] == [False, False, False, True, False, True]
    agent, _ = experiment.load()
    assert evaluate(agent, distribution, tasks=tasks, seed=5).interval(0)[0] == logged[-1]


def test_evaluate_takes_chosen_tasks_or_a_number(experiment: Experiment) -> None:
    agent, distribution = experiment.build(), experiment.distribution
    tasks = distribution.test.sample(3, np.random.default_rng(0))
    scores = evaluate(agent, distribution, tasks=tasks, seed=1)
    assert scores.returns.shape == (3, 1 + agent.num_eval_adaptations)
    alone = evaluate(agent, distribution, tasks=tasks[:1], seed=1)
    np.testing.assert_allclose(alone.returns[0], scores.returns[0], atol=1e-5)
    for given in ({}, {"num_tasks": 2, "tasks": tasks}):
        with pytest.raises(ConfigError, match="either num_tasks or tasks"):
            evaluate(agent, distribution, seed=1, **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one task"):
        evaluate(agent, distribution, tasks=[], seed=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping(0), "patience and window above 0, got 0 and 10"),
        (lambda: TimeLimit(0.0), "finite number of hours above 0, got 0.0"),
        (lambda: TimeLimit(float("nan")), "got nan"),
        (lambda: EvaluateTasks(load_distribution("bandit"), [], every=1), "got 0 tasks"),
        (lambda: Wandb(""), "name of a project"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# Weights & Biases -----------------------------------------------------------------------------------------------------


class _Service:
    """What stands in for the module wandb."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.defined: list[tuple[str, str | None]] = []
        self.finished = 0

    def init(self, **options: Any) -> Any:
        self.started.append(options)
        return SimpleNamespace(log=self.logged.append, define_metric=self._define, finish=self._finish)

    def _define(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))

    def _finish(self) -> None:
        self.finished += 1


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> _Service:
    service = _Service()
    monkeypatch.setitem(sys.modules, "wandb", service)  # type: ignore[arg-type]
    return service


def test_weights_and_biases_gets_the_metrics_of_the_log_under_one_id(experiment: Experiment, service: _Service) -> None:
    assert experiment.train(callbacks=[Wandb("project", group="seeds"), _Ends(2)])
    assert experiment.train(callbacks=[Wandb("project", group="seeds")])
    first, second = service.started
    assert first == second and first["resume"] == "allow" and first["project"] == "project"
    assert first["group"] == "seeds" and first["name"] == "run" and first["config"]["agent"] == "rl2"
    assert json.loads((experiment.run.path / "wandb.json").read_text()) == {"id": first["id"]}
    assert ("*", "iteration") in service.defined and service.finished == 1
    log = read_metrics(experiment.run.metrics)
    assert [entry["iteration"] for entry in service.logged] == list(range(6))
    for sent, entry in zip(service.logged, log, strict=True):
        kept = {name: value for name, value in entry.items() if name not in ("wall_time", "mine/double")}
        assert sent == kept


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"needs the package wandb, .*pip install 'metarl-torch\[wandb\]'"):
        Wandb("project")


# The command line -----------------------------------------------------------------------------------------------------

_WORDS = "train rl2 bandit --num-iterations 4 --meta-batch-size 2 --eval-tasks 2 --hidden-size 4 --num-epochs 1"


def test_the_command_ends_in_time_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], service: _Service
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(f"{_WORDS} --device cpu --max-hours 1e-9 --wandb mine --patience 50") == 0
    assert "Ended early, after 1 of 4 iterations." in capsys.readouterr().out
    assert command("train --resume runs/rl2-bandit-seed1") == 0
    assert "Ended early" not in capsys.readouterr().out
    assert len(read_metrics(tmp_path / "runs/rl2-bandit-seed1/metrics.jsonl")) == 4
    assert len(service.logged) == 1 and service.started[0]["project"] == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [("--max-hours 0", "hours above 0"), ("--patience 0", "patience and window above 0"), ("--wandb ''", "project")],
)
def test_options_that_cannot_be_leave_no_run(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused([*_WORDS.split(), *(word.strip("'") for word in words.split())], capsys)


def test_the_command_scores_chosen_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    config = MAMLTRPOConfig(hidden_sizes=(4,), rollouts_per_task=2, cg_iterations=2)
    train = TrainConfig(seed=3, device="cpu", num_iterations=1, meta_batch_size=2, eval_tasks=2)
    experiment = Experiment.create(Setup("maml-trpo", "navigation-2d", train, config), RunFolder.create("runs", "run"))
    assert experiment.train()
    tasks = ['{"goal": [0.5, 0.5]}', '{"goal": [-0.5, 0.1]}']
    assert command(["evaluate", "runs/run", "--task", *tasks]) == 0
    assert "on 2 chosen tasks of navigation-2d" in capsys.readouterr().out
    (file,) = Path("runs/run").glob("evaluation-*-chosen-*.json")
    content = json.loads(file.read_text())
    assert content["chosen"] == tasks
    agent, _ = experiment.load()
    goals = [{"goal": np.array([0.5, 0.5])}, {"goal": np.array([-0.5, 0.1])}]
    expected = evaluate(agent, experiment.distribution, tasks=goals, seed=content["seed"])
    assert content["rows"][0]["returns"] == expected.returns.tolist()
    assert "takes one in JSON" in refused(["evaluate", "runs/run", "--task", "left"], capsys)
    said = refused(["evaluate", "runs/run", "--task", tasks[0], '{"gaol": [0.5, 0.5]}'], capsys)
    assert "a task of navigation-2d has the keys 'goal', such as {'goal': array" in said and "gave 'gaol'" in said
    assert "leave --task out" in refused(["evaluate", "runs/run", "--official", "--task", "left"], capsys)


def test_chosen_tasks_have_the_keys_of_drawn_ones() -> None:
    def sometimes_windy(rng: np.random.Generator) -> dict[str, float]:
        wind = {"wind": 1.0} if rng.random() < 0.5 else {}
        return {"goal": rng.random(), **wind}

    windy = TaskDistribution("mine/windy", sometimes_windy, make_env=lambda _: gym.make("Pendulum-v1"))
    for task in ({"goal": 0.5}, {"goal": 0.5, "wind": 2.0}):
        assert chosen_tasks(windy, [json.dumps(task)], 7) == [task]
    for task, got in ((0.5, "gave 0.5, which has no keys"), ({"wind": 1.0}, "gave 'wind'"), ({}, "gave none")):
        with pytest.raises(ConfigError, match=f"has the keys 'goal', 'wind', such as .*{got}"):
            chosen_tasks(windy, [json.dumps(task)], 7)
    plain = dataclasses.replace(windy, id="mine/plain", sample=lambda rng: rng.random())
    assert chosen_tasks(plain, ["0.5"], 7) == [0.5]


def test_meta_world_tasks_are_chosen_by_name() -> None:
    distribution = metaworld.custom(["reach-v3", "drawer-open-v3"], ["door-close-v3"])
    found = chosen_tasks(distribution, ["reach-v3", "door-close-v3"], 7)
    assert [task["env_name"] for task in found] == ["reach-v3"] * 3 + ["door-close-v3"] * 3
    with pytest.raises(ConfigError, match="Did you mean 'reach-v3'"):
        chosen_tasks(distribution, ["reach"], 7)
    with pytest.raises(ConfigError, match="names 2 tasks, more than --num-tasks 1"):
        chosen_tasks(distribution, ["reach-v3", "door-close-v3"], 1)


def test_the_clock_of_a_time_limit_is_that_of_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, now = TimeLimit(hours=2.0), time.monotonic()
    for hours, ended in ((1.99, False), (2.01, True)):
        monkeypatch.setattr(time, "monotonic", lambda hours=hours: now + 3600.0 * hours)
        assert limit.on_iteration(None) == ended  # type: ignore[arg-type]
