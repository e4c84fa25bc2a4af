"""An environment whose code was changed, though its tasks and spaces were not, is told of."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from metarl.agents import MAMLTRPOConfig
from metarl.config import TrainConfig
from metarl.origin import describe_origin, warn_of_other_tasks
from metarl.rollouts.first_steps import difference, first_steps, weighted
from metarl.runs.folder import RunFolder
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution
from metarl.trainer import train


@dataclasses.dataclass(frozen=True)
class _Changes:
    """What somebody may change of a cart on a rail, and not notice."""

    gain: float = 1.0
    small: float = 1.0
    start: float = 0.0
    swapped: bool = False
    lasts: int = 20
    friction: float = 0.1
    unseeded: bool = False
    fails_at: int | None = None


class _Cart(gym.Env[Any, Any]):
    """Goes where it is pushed; the reward is its place times the task's."""

    observation_space = gym.spaces.Box(-100.0, 100.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, task: float, changes: _Changes) -> None:
        self._task, self._changes = task, changes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = np.random.default_rng() if self._changes.unseeded else self.np_random
        self._place = self._changes.start + drawn.uniform(0.0, 0.1)
        self._speed, self._step = 0.0, 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        if self._step == self._changes.fails_at:
            raise OSError("the rail is broken")
        self._speed += float(action[0]) - self._changes.friction * self._speed
        self._place += self._speed
        return (
            self._obs(),
            self._changes.gain * self._changes.small * self._task * self._place,
            self._step == self._changes.lasts,
            False,
            {},
        )

    def _obs(self) -> Any:
        pair = np.array([self._place, self._speed], np.float32)
        return pair[::-1].copy() if self._changes.swapped else pair


def _carts(**changes: Any) -> TaskDistribution:
    made = _Changes(**changes)
    return TaskDistribution(
        "carts", lambda rng: float(rng.uniform(1, 2)), lambda task: _Cart(task, made), horizon=made.lasts
    )


def _origin(distribution: TaskDistribution) -> dict[str, Any]:
    return describe_origin(_agent(distribution), distribution, TrainConfig())


def _agent(distribution: TaskDistribution) -> Any:
    return MAMLTRPOConfig(hidden_sizes=(4,), rollouts_per_task=2).build(distribution.spec, torch.device("cpu"), 0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gain": 2.0}, r"the reward of step 1 was \S+ and is \S+\. The environment's code was changed"),
        ({"gain": 1.01}, "the reward of step 1 was"),
        ({"start": 1.0}, "episodes begin elsewhere"),
        ({"swapped": True}, "episodes begin elsewhere"),
        ({"friction": 0.5}, "the reward of step 2 was"),
        ({"gain": 0.0, "friction": 0.5}, "the reward of step 1 was"),
        ({"gain": 2.0, "small": 1e-4}, "the reward of step 1 was"),
        ({"lasts": 3}, "an episode that lasted 8 steps or more lasts 3 steps"),
    ],
)
def test_a_changed_environment_is_told(changes: dict[str, Any], told: str) -> None:
    before, after = _carts(small=changes.get("small", 1.0)), _carts(**changes)
    assert before.draws == after.draws and before.action_bounds == after.action_bounds
    with pytest.warns(RuntimeWarning, match=f"carts does something else than when the run was trained.*{told}"):
        warn_of_other_tasks(_origin(before), after)


def test_scores_of_other_rewards_are_not_compared(tmp_path: Path) -> None:
    """Returns of a tenth would never be the best, and those of ten times as much always."""
    outer = TrainConfig(num_iterations=2, meta_batch_size=2, eval_every=9, eval_tasks=2, checkpoint_every=1)
    run = RunFolder.create(tmp_path, "run")
    assert train(_agent(_carts()), _carts(), outer, run)
    first, content = run.checkpoints.load(run.checkpoints.best_path)
    changed = _carts(gain=1e-3)
    longer = dataclasses.replace(outer, num_iterations=4)
    with pytest.warns(RuntimeWarning) as told:
        assert train(_agent(changed), changed, longer, run)
    kept = run.checkpoints.folder / f"best-of-other-tasks-{first:08d}.safetensors"
    texts = [str(each.message) for each in told]
    assert "carts does something else than when the run was trained" in texts[0]
    assert (
        f"the best checkpoint is chosen anew, since its score is of other tasks; the one so far is {kept.name}"
        in texts[1]
    )
    assert run.checkpoints.load(kept)[1]["scores"] == content["scores"]
    best, content = run.checkpoints.load(run.checkpoints.best_path)
    assert best > 2 and len(content["scores"]) == best - 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(_agent(changed), changed, dataclasses.replace(outer, num_iterations=5), run)


def test_dynamics_are_told_where_nothing_is_paid() -> None:
    found = [first_steps(_carts(gain=0.0, friction=friction)) for friction in (0.1, 0.5)]
    assert found[0] is not None and found[1] is not None
    assert difference(found[0], found[1]) == "what is observed after step 2 is something else"


@pytest.mark.parametrize("name", ["bandit", "cartpole", "tabular-mdp", "navigation-2d", "pendulum"])
def test_the_same_environment_is_not_told_of(name: str) -> None:
    distribution = load_distribution(name)
    origin = _origin(distribution)
    assert len(origin["first_steps"]) > 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_tasks(origin, load_distribution(name))


@pytest.mark.parametrize("place", range(17))
def test_every_coordinate_counts(place: int) -> None:
    obs = np.ones(17, np.float32)
    other = obs.copy()
    other[place] = 0.85
    assert difference([[0.0, weighted(obs)]], [[0.0, weighted(other)]]) == "episodes begin elsewhere"


def test_what_rounding_changes_is_not_told_of() -> None:
    played = first_steps(_carts())
    assert played is not None
    assert difference(played, [[value * (1 + 1e-5) + 1e-7 for value in moment] for moment in played]) is None


@pytest.mark.parametrize("changes", [{"unseeded": True}, {"fails_at": 2}])
def test_what_cannot_be_told_by_its_first_steps_is_left_alone(changes: dict[str, Any]) -> None:
    """One that follows no seed, which is told, and one that fails, of which whoever collects is told."""
    odd, sound = _carts(**changes), _carts()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert _origin(odd)["first_steps"] is None
    assert ["carts does not follow its seed" in str(each.message) for each in told] == [True] * ("unseeded" in changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "carts does not follow its seed")
        warn_of_other_tasks(_origin(odd), sound)
        warn_of_other_tasks(_origin(sound), odd)
        older = {name: value for name, value in _origin(sound).items() if name != "first_steps"}
        changed = _carts(gain=2.0)
        warn_of_other_tasks(older, changed)
