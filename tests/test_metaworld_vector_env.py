"""The Meta-World pool gives upstream's numbers bit for bit: the licence for its speed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaworld
import numpy as np
import pytest
from helpers.divergence import unchecked_actions
from metaworld.policies import ENV_POLICY_MAP

from metarl.envs.metaworld import TASK_NAMES, make_vec
from metarl.envs.metaworld.upstream import upstream_env
from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv
from metarl.envs.metaworld.worker.rewards import terms
from metarl.envs.metaworld.worker.rewards.table import REWARDS
from metarl.envs.metaworld.worker.self_test import draw_task
from metarl.errors import ConfigError, WorkerError
from metarl.types import Task

FAST_NAMES = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-close-v3",
    "peg-insert-side-v3",
    "basketball-v3",
    "coffee-pull-v3",
    "assembly-v3",
    "stick-pull-v3",
)
"""One and two objects, every kind of observation, of grasping reward and of contact test; bodies and sites that a reset
moves."""


pytestmark = pytest.mark.usefixtures("cache")


_ACTORS = ("expert", "random", "noisy expert")


def _compare(names: tuple[str, ...], reward_version: str, num_goals: int, num_steps: int) -> list[str]:
    """Step the pool and upstream side by side; what differs, a line each.

    For each task name and goal one instance follows the scripted expert, one acts at random, and one does as the expert
    with noise, which touches what neither of them does. All go through two episodes of the pool (a full reset, then one
    from its snapshot) and one of upstream.
    """
    tasks = [draw_task(name, seed) for name in names for seed in range(num_goals) for _ in _ACTORS]
    rng = np.random.default_rng(0)
    theirs: list[tuple[Any, ...]] = []
    actions = np.zeros((num_steps, len(tasks), 4), np.float32)
    for row, task in enumerate(tasks):
        env = upstream_env(task, reward_version=reward_version)  # type: ignore[arg-type]
        # A copy for the expert: some of them change the observation they are given.
        expert = ENV_POLICY_MAP[task["env_name"]]()
        observation, _ = env.reset()
        steps = [(observation, 0.0, False, {})]
        for step in range(num_steps):
            chosen = expert.get_action(observation.copy()) if row % 3 != 1 else rng.uniform(-1.5, 1.5, 4)
            actions[step, row] = chosen if row % 3 < 2 else chosen + rng.normal(0.0, 0.3, 4)
            observation, reward, _, truncated, info = env.step(actions[step, row])
            steps.append((observation, reward, truncated, info))
        theirs.append(tuple(steps))
    faults: dict[str, None] = {}
    pool = MetaWorldVectorEnv(len(tasks), reward_version=reward_version)
    try:
        for episode in ("after upstream's reset", "from the snapshot"):
            # Other tasks in between: a simulation must not remember whose it was.
            pool.reset(options={"tasks": tasks[::-1]})
            pool.step(actions[0])
            observations, _ = pool.reset(options={"tasks": tasks})
            for step in range(num_steps + 1):
                if step:
                    observations, rewards, _, truncated, infos = pool.step(actions[step - 1])
                for row, task in enumerate(tasks):
                    observation, reward, cut, info = theirs[row][step]
                    place = f"{task['env_name']} {reward_version} {_ACTORS[row % 3]} {episode}"
                    if not np.array_equal(observations[row], observation):
                        faults[f"{place}: observation, first at step {step}"] = None
                        continue
                    if not step:
                        continue
                    if rewards[row] != float(reward) or truncated[row] != cut:
                        faults[f"{place}: reward or end"] = None
                    assert info.keys() == {name for name in infos if not name.startswith("_")} - {"invalid"}
                    for key, value in info.items():
                        if infos[key][row] != float(value):
                            faults[f"{place}: {key}"] = None
    finally:
        pool.close()
    return list(faults)


@pytest.mark.parametrize("reward_version", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_ten_tasks_equal_upstream_bit_for_bit(reward_version: str) -> None:
    assert _compare(FAST_NAMES, reward_version, num_goals=2, num_steps=100) == []


@pytest.mark.slow
@pytest.mark.parametrize("reward_version", ["v1", "v2"])
@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_task_equals_upstream_bit_for_bit(name: str, reward_version: str) -> None:
    assert _compare((name,), reward_version, num_goals=3, num_steps=500) == []


def test_every_task_has_a_reward_on_floats() -> None:
    assert set(REWARDS) == set(TASK_NAMES)


_LEAN_CHECK = """
import sys
import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metarl.envs.metaworld.worker.patches import lean_model

# What refers to the geoms' order, to meshes and to what can be seen.
OTHER = ("mesh_", "tex", "mat_", "bvh", "skin", "cam", "light", "name", "vis", "paths", "body_bvh", "body_geom")
OTHER += ("geom_dataid", "geom_matid")
for env_name in sys.argv[1:]:
    path = ALL_V3_ENVIRONMENTS[env_name].model_name.fget(None)
    whole, lean = mujoco.MjModel.from_xml_path(path), lean_model(path)
    kept = np.flatnonzero([
        whole.geom(geom).name != "" or bool(whole.geom_contype[geom] or whole.geom_conaffinity[geom])
        for geom in range(whole.ngeom)
    ])
    same = np.flatnonzero([not lean.geom(geom).name.startswith("metarl_point_") for geom in range(lean.ngeom)])
    assert len(kept) == len(same) < lean.ngeom < whole.ngeom
    # Where both bodies have one geom, MuJoCo leaves out a test.
    collides = (whole.body_contype | whole.body_conaffinity) > 0
    assert np.array_equal(whole.body_geomnum[collides] > 1, lean.body_geomnum[collides] > 1), env_name
    compared = 0
    for field in dir(whole):
        value = getattr(whole, field)
        if field.startswith(("_", *OTHER)) or not isinstance(value, np.ndarray):
            continue
        compared += 1
        ours = getattr(lean, field)
        if field.startswith("geom_"):
            value, ours = value[kept], ours[same]
        assert np.array_equal(value, ours), (env_name, field)
    assert compared > 150, compared
"""


def _run_apart(code: str, *arguments: str) -> None:
    """Run code that replaces what is inside metaworld, as the pool's workers do, in a process of its own."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], check=True)


def test_without_what_can_only_be_seen_the_physics_reads_the_same_model() -> None:
    _run_apart(_LEAN_CHECK, *FAST_NAMES[1:6])


@pytest.mark.slow
def test_for_every_task_the_physics_reads_the_same_model() -> None:
    _run_apart(_LEAN_CHECK, *TASK_NAMES)


def test_no_contact_is_found_between_boxes_that_do_not_overlap() -> None:
    """With bodies of one geom each MuJoCo's convex collider once saw the puck 26 cm inside the table."""
    task = draw_task("pick-out-of-hole-v3", 10)
    env, expert, rng = upstream_env(task), ENV_POLICY_MAP["pick-out-of-hole-v3"](), np.random.default_rng(5)
    observation, _ = env.reset()
    pool = MetaWorldVectorEnv(1, num_workers=1)
    pool.reset(options={"tasks": [task]})
    for step in range(300):
        action = (np.asarray(expert.get_action(observation.copy())) + rng.normal(0, 0.3, 4)).astype(np.float32)
        observation, *_ = env.step(action)
        assert np.array_equal(pool.step(action[None])[0][0], observation), step
    pool.close()


_LENGTH_CHECK = """
import numpy as np
from metarl.vector.buffers import Layout
from metarl.envs.metaworld.worker.layout import FLOAT32_COLUMNS
from metarl.envs.metaworld.worker.fast_group import FastSimulations
from metarl.envs.metaworld.worker.rewards import mechanisms, objects, terms, tools

results = []
for length in (terms.length, terms.length_by_blas):
    for module in (mechanisms, objects, terms, tools):
        module.length = length
    layout = Layout(1, FLOAT32_COLUMNS, 4)
    buffers = layout.view(bytearray(layout.num_bytes))
    group = FastSimulations("v2", 0, buffers)
    group.reset([(0, {"env_name": "push-v3", "rand_vec": np.array([0.05, 0.65, 0.02, 0.0, 0.85, 0.2])}, None)])
    buffers.actions[:] = 0.5
    group.step()
    results.append(buffers.observations.copy())
assert results[0].any() and np.array_equal(*results)
"""


@pytest.mark.parametrize("num", [2, 3, 4])
def test_lengths_are_numpys_on_every_processor(num: int) -> None:
    vectors = np.random.default_rng(1).normal(size=(5000, num))
    expected = [float(np.linalg.norm(vector)) for vector in vectors]
    assert [terms.length(*vector) for vector in vectors.tolist()] == expected
    assert [terms.length_by_blas(*vector) for vector in vectors.tolist()] == expected
    plainly = [terms.length_by_floats(*vector) for vector in vectors.tolist()] == expected
    assert terms.length is (terms.length_by_floats if terms.sums_plainly() else terms.length_by_blas)
    assert plainly or not terms.sums_plainly()


def test_where_blas_sums_otherwise_rewards_take_its_own_sums() -> None:
    _run_apart(_LENGTH_CHECK)


REACH: Task = {"env_name": "reach-v3", "rand_vec": np.array([0.0, 0.6, 0.02, 0.05, 0.85, 0.2])}
DRAWER: Task = {"env_name": "drawer-close-v3", "rand_vec": np.array([0.05, 0.9, 0.0])}


@pytest.fixture
def pool() -> Iterator[MetaWorldVectorEnv]:
    pool = MetaWorldVectorEnv(3, num_workers=2)
    pool.reset(options={"tasks": [REACH, DRAWER, REACH]})
    yield pool
    pool.close()


def _random_actions(num_steps: int, num_envs: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).uniform(-1, 1, (num_steps, num_envs, 4)).astype(np.float32)


def test_upstreams_own_code_may_be_asked_for() -> None:
    plain = MetaWorldVectorEnv(2, num_workers=1, fast=False)
    fast = MetaWorldVectorEnv(2, num_workers=1, fast=True)
    options = {"tasks": [DRAWER, REACH]}
    try:
        assert np.array_equal(plain.reset(options=options)[0], fast.reset(options=options)[0])
        for actions in _random_actions(20, 2):
            theirs, ours = plain.step(actions), fast.step(actions)
            assert all(np.array_equal(a, b) for a, b in zip(theirs[:4], ours[:4], strict=True))
            assert all(np.array_equal(theirs[4][key], ours[4][key]) for key in ours[4])
    finally:
        plain.close()
        fast.close()


def test_metaworld_in_the_users_process_stays_untouched(pool: MetaWorldVectorEnv) -> None:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv
    from metaworld.utils import reward_utils

    pool.step(np.zeros((3, 4), np.float32))
    assert reward_utils.tolerance.__module__ == "metaworld.utils.reward_utils"
    assert SawyerXYZEnv.touching_object.__module__ == "metaworld.sawyer_xyz_env"
    assert metaworld.sawyer_xyz_env.np is np


def test_a_diverging_simulation_ends_as_invalid_and_the_others_go_on(pool: MetaWorldVectorEnv) -> None:
    before, *_ = pool.step(np.zeros((3, 4), np.float32))
    bad = np.zeros((3, 4), np.float32)
    bad[1] = np.nan
    with unchecked_actions():
        observations, rewards, terminated, truncated, info = pool.step(bad)
    assert truncated.tolist() == info["invalid"].tolist() == [False, True, False]
    assert not terminated.any() and rewards[1] == 0.0 and rewards[0] > 0
    assert np.array_equal(observations[1], before[1])
    assert pool.num_invalid == 1
    _, _, _, truncated, _ = pool.step(np.zeros((3, 4), np.float32))
    assert truncated.tolist() == [False, True, False] and pool.num_invalid == 1
    pool.reset(options={"reset_mask": np.array([False, True, False])})
    observations, _, _, truncated, info = pool.step(np.zeros((3, 4), np.float32))
    assert not truncated.any() and not info["invalid"].any() and np.isfinite(observations).all()


@pytest.mark.parametrize("name", ["push-v3", "pick-place-v3", "basketball-v3"])
def test_instances_of_one_task_may_be_at_different_places_of_their_episodes(name: str) -> None:
    tasks = [draw_task(name, seed) for seed in range(3)]
    pool = MetaWorldVectorEnv(3, num_workers=1)
    envs = [upstream_env(task) for task in tasks]
    observations, _ = pool.reset(options={"tasks": tasks})
    theirs = [env.reset()[0] for env in envs]
    for step, actions in enumerate(_random_actions(60, 3)):
        mask = np.array([step == 20, False, step in (20, 45)])
        if mask.any():
            # One gets another goal, one keeps its own.
            tasks[0] = tasks[2] if step == 20 else tasks[0]
            observations, _ = pool.reset(options={"tasks": tasks, "reset_mask": mask})
            for row in np.flatnonzero(mask):
                envs[row] = upstream_env(tasks[row])
                theirs[row] = envs[row].reset()[0]
            assert np.array_equal(observations, theirs)
        observations, rewards, *_ = pool.step(actions)
        steps = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        theirs = [step[0] for step in steps]
        assert np.array_equal(observations, theirs)
        assert rewards.tolist() == [float(step[1]) for step in steps]
    pool.close()


def test_a_reset_mask_leaves_the_others_where_they_are(pool: MetaWorldVectorEnv) -> None:
    first, _ = pool.reset()
    later, *_ = pool.step(np.ones((3, 4), np.float32))
    after, _ = pool.reset(options={"reset_mask": np.array([True, False, False])})
    assert np.array_equal(after[0], first[0]) and np.array_equal(after[1:], later[1:])


def test_an_episode_is_truncated_after_exactly_500_steps(pool: MetaWorldVectorEnv) -> None:
    pool.reset()
    ends = [pool.step(np.zeros((3, 4), np.float32))[3].all() for _ in range(500)]
    assert ends == [False] * 499 + [True]


def test_a_dead_worker_raises_with_itsdraw_task(pool: MetaWorldVectorEnv) -> None:
    workers = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    os.kill(int(workers[-2]), signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(WorkerError, match=r"killed by SIGKILL in step of instance 0 with task .*reach-v3"):
        pool.step(np.zeros((3, 4), np.float32))
    assert time.monotonic() - begun < 60
    with pytest.raises(WorkerError, match="closed"):
        pool.reset()


def test_an_impossible_task_raises_with_the_workers_traceback(pool: MetaWorldVectorEnv) -> None:
    wrong = {"env_name": "reach-v3", "rand_vec": np.zeros(2)}
    with pytest.raises(WorkerError, match=r"(?s)instance 2 raised in reset with task .*Traceback"):
        pool.reset(options={"tasks": [REACH, DRAWER, wrong]})


def test_results_do_not_depend_on_the_number_of_workers() -> None:
    tasks = [REACH, DRAWER, REACH, DRAWER]
    runs = []
    for num_workers in (1, 2):
        pool = MetaWorldVectorEnv(4, num_workers=num_workers)
        pool.reset(options={"tasks": tasks})
        runs.append([pool.step(actions)[0] for actions in _random_actions(10, 4)])
        pool.close()
    assert np.array_equal(runs[0], runs[1])


def test_alone_it_draws_its_own_tasks_and_a_seed_repeats_them() -> None:
    env = make_vec("ml1/reach-v3", 3, seed=5, num_workers=1)
    first, told = env.reset(seed=2)
    other, _ = env.reset()
    again, _ = env.reset(seed=2)
    goals = {task["rand_vec"].tobytes() for task in told["tasks"]}
    env.close()
    assert np.array_equal(first, again) and not np.array_equal(first, other) and len(goals) == 3
    assert env.observation_space.contains(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no task was given"),
        ({"tasks": [REACH]}, "got 1 tasks for 2 instances"),
        ({"tasks": [REACH, REACH], "reset_mask": [1, 0]}, "reset_mask must be bool"),
    ],
)
def test_bad_resets_are_refused(options: dict[str, Any], message: str) -> None:
    env = MetaWorldVectorEnv(2)
    with pytest.raises(ConfigError, match=message):
        env.reset(options=options)
    with pytest.raises(ConfigError, match="call reset before step"):
        env.step(np.zeros((2, 4), np.float32))
    with pytest.raises(ConfigError, match="expected \\(2, 4\\)"):
        env.step(np.zeros((2, 3), np.float32))
    env.close()
