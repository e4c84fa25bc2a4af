"""Meta-World's protocol: exact quotas, whichever episode ends first; named deviations; scores that can be resumed."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from rich.console import Console

from metarl.agent import Agent
from metarl.agents import MAMLTRPOConfig, RL2Config
from metarl.envs.metaworld import HORIZON, TaskSet, custom, task_distribution
from metarl.errors import ConfigError, NonFiniteError
from metarl.evaluation.metaworld_protocol import evaluate_official
from metarl.evaluation.metaworld_scores import OfficialScores, TaskScores, markdown, print_table, read, save
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import make
from metarl.types import Action, Rollout, Timestep

CPU = torch.device("cpu")
QUICK, SLOW = 5, 20
"""Steps in an episode of a goal that is solved, and of any other."""

SOURCE = custom(["reach-v3", "push-v3"], ["door-close-v3"], id="two")
SOLVED = {"reach-v3": 1, "push-v3": 3, "door-close-v3": 0}
"""The first so many goals of each task are solved, by whatever an agent does."""


pytestmark = pytest.mark.usefixtures("cache")


class Quick(VectorEnv[Any, Any, Any]):
    """Goals by their place among their task's: the first few end with success at once, the others late without."""

    single_observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    single_action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, places: dict[bytes, int], num_envs: int) -> None:
        self.num_envs, self.places = num_envs, places
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        tasks = options["tasks"]
        self.solved = np.array([self.places[task["rand_vec"].tobytes()] < SOLVED[task["env_name"]] for task in tasks])
        self.steps = 0
        return self._obs(), {}

    def step(self, actions: Any) -> Any:
        self.steps += 1
        success = self.solved & (self.steps == 3)
        ended = self.steps >= np.where(self.solved, QUICK, SLOW)
        return self._obs(), actions[:, 0], ended, np.zeros(self.num_envs, bool), {"success": success}

    def _obs(self) -> Any:
        return np.stack([np.full(self.num_envs, self.steps), self.solved, np.ones(self.num_envs)], 1).astype(np.float32)


def quick(source: TaskDistribution = SOURCE) -> TaskDistribution:
    goals = TaskSet("custom", 0, ("reach-v3", "push-v3"), ("door-close-v3",)).goals
    places = {
        task["rand_vec"].tobytes(): place % 50
        for tasks in (goals.train, goals.test)
        for place, task in enumerate(tasks)
    }
    return TaskDistribution(id="quick", sample=source.sample, make_vector=partial(Quick, places), horizon=HORIZON)


def score(agent: Agent[Any] | None = None, **changes: Any) -> OfficialScores:
    arguments: dict[str, Any] = {"adapts_by": "gradient step", "seed": 0, "split": "train", "source": SOURCE, **changes}
    return evaluate_official(agent or maml(), quick(), **arguments)


def maml() -> Agent[Any]:
    return MAMLTRPOConfig(hidden_sizes=(4,)).build(quick().spec, CPU, 0)


def rl2() -> Agent[Any]:
    return RL2Config(hidden_size=4).build(quick().spec, CPU, 0)


@pytest.mark.parametrize(("make_agent", "adapts_by"), [(maml, "gradient step"), (rl2, "episode")])
def test_every_goal_gets_its_quota_whichever_ends_first(make_agent: Any, adapts_by: str) -> None:
    """The situation in which upstream's evaluation says 1.0 (tests/test_metaworld.py): one goal of four is solved."""
    found = score(make_agent(), adapts_by=adapts_by, goals=4)
    assert found.by_task["reach-v3"].success == (1.0, 0.0, 0.0, 0.0)
    assert found.by_task["push-v3"].success == (1.0, 1.0, 1.0, 0.0)
    assert found.interval[0] == (0.25 + 0.75) / 2
    assert found.by_task["reach-v3"].num_env_steps == 13 * (QUICK + 3 * SLOW)


def test_all_goals_of_the_split_are_scored_once_across_chunks() -> None:
    """50 goals x 10 episodes do not fit into one chunk; each goal still stands in its own place."""
    found = score()
    assert [len(entry.success) for entry in found.by_task.values()] == [50, 50]
    assert found.by_task["push-v3"].success == (1.0,) * 3 + (0.0,) * 47
    assert found.settings["protocol"] == "the official protocol"
    assert score(split="test").by_task["door-close-v3"].success == (0.0,) * 50


def test_chunks_keep_the_number_of_simulations_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = Quick.__init__

    def counted(self: Quick, places: Any, num_envs: int) -> None:
        made.append(num_envs)
        original(self, places, num_envs)

    monkeypatch.setattr(Quick, "__init__", counted)
    score()
    assert max(made) == 50


class Recorder(Agent[int]):
    """Notes what it is asked for: ``(adaptations so far, episodes side by side, by the mode?)``."""

    def __init__(self, num_adaptations: int) -> None:
        super().__init__(quick().spec, CPU, num_adaptations=num_adaptations, rollouts_per_task=7)
        self.asked: list[tuple[int, int, bool]] = []

    def begin(self, num_tasks: int) -> int:
        return 0

    def act(self, state: int, timestep: Timestep, deterministic: bool = False) -> tuple[Action, int]:
        shape = timestep.valid.shape
        self.asked.append((state, shape[1], deterministic))
        return Action(torch.zeros(*shape, 2), torch.zeros(shape)), state

    def adapt(self, state: int, rollout: Rollout) -> int:
        return state + 1

    def meta_update(self, trial: Any) -> dict[str, float]:
        return {}

    def components(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("adapts_by", "expected"),
    [
        ("gradient step", [(0, 10, False), (1, 3, True)]),
        ("episode", [*((number, 1, False) for number in range(10)), (10, 3, True)]),
    ],
)
def test_ten_episodes_to_adapt_then_three_by_the_mode(adapts_by: str, expected: Any) -> None:
    agent = Recorder(1)
    score(agent, adapts_by=adapts_by, goals=1)
    assert list(dict.fromkeys(agent.asked)) == expected


@pytest.mark.parametrize(("adapts_by", "adapted"), [("gradient step", 1), ("episode", 10)])
def test_three_more_episodes_are_sampled_from_the_same_state(adapts_by: str, adapted: int) -> None:
    agent = Recorder(1)
    score(agent, adapts_by=adapts_by, goals=1, also_sampled=True)
    assert list(dict.fromkeys(agent.asked))[-2:] == [(adapted, 3, True), (adapted, 3, False)]


@pytest.mark.parametrize(("make_agent", "adapts_by"), [(maml, "gradient step"), (rl2, "episode")])
def test_sampled_scores_stand_beside_those_of_the_protocol_and_leave_them_alone(
    make_agent: Any, adapts_by: str, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"adapts_by": adapts_by, "goals": 4}
    plain = score(make_agent(), **arguments)
    store = tmp_path / "scores.json"
    both = score(make_agent(), **arguments, also_sampled=True, store=store)
    assert read(store) == both and score(make_agent(), **arguments, also_sampled=True, store=store) == both
    assert not plain.sampled and plain.sampled_interval is None
    for name, entry in both.by_task.items():
        assert dataclasses.replace(entry, sampled=None) == plain.by_task[name]
        assert entry.sampled is not None and entry.sampled.success == entry.success  # Goals decide, not actions.
        assert entry.sampled.returns != entry.returns
    assert both.by_task["reach-v3"].sampled.num_env_steps == 3 * (QUICK + 3 * SLOW)  # type: ignore[union-attr]
    assert both.sampled_interval == both.interval
    assert both.settings["also_sampled"] and "also_sampled" not in plain.settings
    text = markdown(both, "maml-trpo")
    assert "| return | sampled |" in text and "| mean over tasks | 8 | 50.0 |" in text
    cost = sum(entry.num_env_steps for entry in both.sampled.values())
    assert f"they cost {cost:,} steps more" in text
    assert "ampled" not in markdown(plain, "maml-trpo")


def test_scores_without_samples_are_not_taken_for_scores_with_them(tmp_path: Path) -> None:
    store = tmp_path / "scores.json"
    score(goals=2, store=store)
    assert set(score(goals=2, store=store, also_sampled=True).sampled) == {"reach-v3", "push-v3"}


def test_where_the_protocol_s_episodes_are_sampled_there_are_no_others() -> None:
    assert not score(goals=2, deterministic=False, also_sampled=True).sampled


def test_deviations_are_named() -> None:
    assert score(goals=5).settings["protocol"] == "NOT the official protocol: 5 of 50 goals of each task"
    several = score(Recorder(2), goals=50)
    assert several.settings["protocol"] == "NOT the official protocol: 2 x 10 adaptation episodes"
    sampled = score(goals=50, deterministic=False)
    assert sampled.settings["protocol"] == "NOT the official protocol: sampled actions in evaluation episodes"
    assert "NOT the official protocol: 5 of 50" in markdown(score(goals=5), "maml-trpo")


def test_shorter_episodes_are_no_official_protocol_and_no_stored_scores(tmp_path: Path) -> None:
    store = tmp_path / "scores.json"
    whole = score(goals=2, store=store)
    short = evaluate_official(
        maml(),
        dataclasses.replace(quick(), horizon=10),
        adapts_by="gradient step",
        seed=0,
        split="train",
        goals=2,
        source=SOURCE,
        store=store,
    )
    assert short.settings["protocol"].endswith("2 of 50 goals of each task, episodes of 10 steps in place of 500")
    assert (whole.settings["horizon"], short.settings["horizon"]) == (500, 10)
    assert short.num_env_steps < whole.num_env_steps


def test_scores_are_a_function_of_the_seed_and_leave_the_agent_alone() -> None:
    agent = maml()
    before = {name: value.clone() for name, value in agent.named_tensors().items()}
    first, again, other = (score(agent, goals=7, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.by_task["reach-v3"].returns != other.by_task["reach-v3"].returns
    assert all(torch.equal(value, before[name]) for name, value in agent.named_tensors().items())


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_scores(tmp_path: Path) -> None:
    store = tmp_path / "scores.json"
    whole = score(goals=3, store=store)
    assert read(store) == whole
    half = dataclasses.replace(whole.by_task["reach-v3"], success=(0.5, 0.5, 0.5))
    save(dataclasses.replace(whole, by_task={"reach-v3": half}), store)
    resumed = score(goals=3, store=store)
    assert resumed.by_task["reach-v3"].success == (0.5, 0.5, 0.5), "a stored task was scored again"
    assert resumed.by_task["push-v3"] == whole.by_task["push-v3"]
    assert score(goals=3, store=store, about={"iteration": 9}) != resumed, "scores of other settings were taken"


def test_scores_of_another_agent_are_not_taken(tmp_path: Path) -> None:
    """Nor of one with the same parameters and other settings, or that adapts in another way."""
    store = tmp_path / "scores.json"
    first = score(goals=2, store=store)
    large = MAMLTRPOConfig(hidden_sizes=(4,), inner_lr=9.0).build(quick().spec, CPU, 0)
    others: list[dict[str, Any]] = [{"agent": large}, {"adapts_by": "episode", "agent": rl2()}, {"agent": Recorder(1)}]
    for changes in others:
        assert score(goals=2, store=store, **changes) == score(goals=2, **changes) != first
    trained = maml()
    with torch.no_grad():
        for tensor in trained.named_tensors().values():
            tensor.add_(0.5)
    score(goals=2, store=store)
    assert score(trained, goals=2, store=store) == score(trained, goals=2) != first


@pytest.mark.parametrize("value", [[math.nan] * 3, [1.0] * 50, [1.0], "1", None])
def test_an_edited_cache_is_told_and_scored_again(tmp_path: Path, value: Any) -> None:
    store = tmp_path / "scores.json"
    whole = score(goals=3, store=store)
    content = json.loads(store.read_text())
    content["by_task"]["reach-v3"]["success"] = value
    store.write_text(json.dumps(content))
    with pytest.warns(RuntimeWarning, match=r"scores\.json is damaged.*All tasks are scored again"):
        assert score(goals=3, store=store) == whole
    assert read(store) == whole


def test_scores_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    bad = TaskScores((1.0,), (math.inf,), 1, 0)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        save(OfficialScores({}, {"a": bad}), tmp_path / "scores.json")
    assert not list(tmp_path.iterdir())


def test_intervals_are_over_goals_and_the_mean_is_over_tasks() -> None:
    few, many = TaskScores((1.0, 0.0), (0.0, 0.0), 1, 0), TaskScores((1.0,) * 50, (0.0,) * 50, 1, 0)
    scores = OfficialScores({}, {"a": few, "b": many})
    assert scores.interval[0] == 0.75
    assert few.interval[1] < 0.1 < 0.9 < many.interval[1] < 1.0
    assert few.interval[1] < scores.interval[1] < 0.75 < scores.interval[2] <= 1.0


def test_the_table_says_what_figures_are_worth() -> None:
    """Floor, cost, reward version and packages stand beside them, and upstream's figure if there is one."""
    found = score(goals=2)
    settings = {**found.settings, "task_set": "ml10", "split": "test"}
    shown = dataclasses.replace(found, settings=settings, upstream={"reach-v3": 1.0, "push-v3": 0.5, "mean": 0.75})
    console = Console(width=120, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        print_table(shown, "maml-trpo", console)
    for text in (capture.get(), markdown(shown, "maml-trpo")):
        for part in (
            "NOT the official protocol: 2 of 50 goals",
            "The floor is 20 %",
            f"{found.num_env_steps:,} environment steps",
            "Reward version v2",
            "mujoco",
            "metarl 0",
            "upstream's figure",
            "75.0",
        ):
            assert part in text, part
    assert "floor" not in markdown(found, "maml-trpo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goals": 0}, "goals must be 1 to 50, those that each task of custom has, got 0"),
        ({"goals": 51}, "got 51"),
        ({"split": "valid"}, "unknown split 'valid'.*test, train"),
        ({"source": make("bandit")}, "bandit is no task set of Meta-World.*ml1/<task>, ml10"),
    ],
)
def test_bad_requests_are_refused_with_the_choices(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score(**changes)


def test_agents_for_other_spaces_are_refused() -> None:
    with pytest.raises(ConfigError, match="the agent was built for"):
        evaluate_official(maml(), task_distribution("ml1/reach-v3"), adapts_by="gradient step", seed=0)
