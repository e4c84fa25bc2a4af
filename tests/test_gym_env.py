"""Invariants of GymVectorEnv, in this process and in workers."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from metarl.errors import ConfigError, WorkerError
from metarl.vector.gym_env import GymVectorEnv
from metarl.vector.options import instance_seeds
from metarl.vector.spaces import flat_spaces


class Walk(gym.Env[Any, Any]):
    """A random walk of step size ``task["size"]``, 4 steps long or until it passes 3; can be told to fail."""

    def __init__(self, task: dict[str, Any], builds: list[Any] | None = None) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Discrete(3, start=-1)
        self.task = task
        if builds is not None:
            builds.append(task)
        self._fail("make")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.task = (options or {}).get("task", self.task)
        self._fail("reset")
        self.steps, self.place = 0, 0.0
        return self._observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in (-1, 0, 1)
        self._fail("step")
        self.steps += 1
        self.place += self.task["size"] * action + self.np_random.normal()
        info = {"success": np.float32(1.0)} if self.place > 1 else {}
        return self._observe(), self.place, abs(self.place) > 3, self.steps == 4, info

    def _observe(self) -> Any:
        return np.array([self.steps, self.place])

    def _fail(self, verb: str) -> None:
        if self.task.get("fail") != verb:
            return
        how = self.task["how"]
        if how == "raise":
            raise ValueError("the wheel came off")
        if how == "exit":
            os._exit(7)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "segfault":
            ctypes.string_at(0)
        if how == "hang":
            fall_asleep()


def fall_asleep() -> None:
    time.sleep(1000)


TASKS = [{"size": 0.1 * index} for index in range(5)]


def play(env: GymVectorEnv, steps: int = 6) -> list[Any]:
    """Everything that comes out of a masked reset and some steps."""
    rng = np.random.default_rng(0)
    out: list[Any] = [env.reset(seed=3, options={"tasks": TASKS})[0]]
    for _ in range(steps):
        *arrays, info = env.step(rng.integers(3, size=5))
        out += [*arrays, info["success"]]
    mask = np.array([True, False, True, False, True])
    out.append(env.reset(seed=4, options={"tasks": TASKS[::-1], "reset_mask": mask})[0])
    for _ in range(steps):
        *arrays, info = env.step(rng.integers(3, size=5))
        out += [*arrays, info["success"]]
    return out


def vector(num_workers: int = 0, **settings: Any) -> GymVectorEnv:
    settings = {"first_task": TASKS[0], "num_workers": num_workers, **settings}
    return GymVectorEnv(Walk, settings.pop("num_envs", 5), **settings)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("task_on_reset", [False, True])
def test_workers_give_the_same_bits_as_this_process(num_workers: int, task_on_reset: bool) -> None:
    serial, parallel = vector(task_on_reset=task_on_reset), vector(num_workers, task_on_reset=task_on_reset)
    expected, got = play(serial), play(parallel)
    serial.close()
    parallel.close()
    assert len(expected) == len(got)
    for left, right in zip(expected, got, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_instances_equal_single_environments_with_their_derived_seeds() -> None:
    """Rebuilding, shifting discrete actions and flattening change nothing in an episode."""
    env = vector()
    seeds = instance_seeds(11, len(TASKS))
    observations, _ = env.reset(seed=11, options={"tasks": TASKS})
    actions = np.array([0, 1, 2, 0, 2])
    stepped, rewards, *_ = env.step(actions)
    for row, task in enumerate(TASKS):
        single = Walk(task)
        np.testing.assert_array_equal(single.reset(seed=seeds[row])[0].astype(np.float32), observations[row])
        observation, reward, *_ = single.step(int(actions[row]) - 1)
        np.testing.assert_array_equal(observation.astype(np.float32), stepped[row])
        assert rewards[row] == reward


def test_instances_get_different_seeds() -> None:
    env = vector()
    env.reset(seed=0, options={"tasks": [TASKS[0]] * 5})
    assert len(set(env.step(np.ones(5, np.int64))[1].tolist())) == 5


def test_unchanged_task_is_not_rebuilt_and_changed_one_is() -> None:
    builds: list[Any] = []
    env = GymVectorEnv(lambda task: Walk(task, builds), 2, first_task=TASKS[0])
    builds.clear()
    env.reset(seed=0, options={"tasks": [{"size": 1.0}, {"size": 2.0}]})
    env.reset(seed=0, options={"tasks": [{"size": np.float64(1)}, {"size": 3.0}]})
    assert builds == [{"size": 1.0}, {"size": 2.0}, {"size": 3.0}]


def test_task_on_reset_builds_each_instance_once() -> None:
    builds: list[Any] = []
    env = GymVectorEnv(lambda task: Walk(task, builds), 2, first_task=TASKS[0], task_on_reset=True)
    builds.clear()
    env.reset(seed=0, options={"tasks": TASKS[:2]})
    env.reset(seed=0, options={"tasks": TASKS[2:4]})
    assert builds == TASKS[:2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ended_instance_keeps_observation_and_flags_and_earns_nothing(num_workers: int) -> None:
    env = vector(num_workers)
    env.reset(seed=0, options={"tasks": TASKS})
    for _ in range(4):
        last = env.step(np.full(5, 1))
    after = env.step(np.full(5, 2))
    env.close()
    assert (last[2] | last[3]).all()
    for index in (0, 2, 3):
        np.testing.assert_array_equal(last[index], after[index])
    assert not after[1].any()
    assert not after[4]["success"].any()


def test_results_are_not_overwritten_by_the_next_step() -> None:
    env = vector()
    first, _ = env.reset(seed=0, options={"tasks": TASKS})
    kept = first.copy()
    env.step(np.full(5, 2))
    np.testing.assert_array_equal(first, kept)


def test_mask_leaves_other_instances_alone() -> None:
    env = vector()
    env.reset(seed=0, options={"tasks": TASKS})
    stepped = env.step(np.full(5, 1))[0]
    mask = np.array([False, True, False, False, False])
    observations, _ = env.reset(seed=1, options={"reset_mask": mask})
    np.testing.assert_array_equal(observations[~mask], stepped[~mask])
    assert observations[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (gym.spaces.Box(-1, 1, (2, 3), np.float64), 6),
        (gym.spaces.Box(0, 255, (2, 2), np.uint8), 4),
        (gym.spaces.Discrete(4, start=2), 4),
        (gym.spaces.MultiDiscrete([2, 3]), 5),
        (gym.spaces.Dict(a=gym.spaces.Discrete(2), b=gym.spaces.Box(-1, 1, (3,))), 5),
        (gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Discrete(3)]), 5),
    ],
)
def test_observations_are_flat_float32(space: gym.Space[Any], size: int) -> None:
    class Still(Walk):
        def __init__(self, task: Any) -> None:
            super().__init__(task)
            self.observation_space = space

        def _observe(self) -> Any:
            return self.observation_space.sample()

    env = GymVectorEnv(Still, 2, first_task=TASKS[0])
    observations, _ = env.reset(seed=0, options={"tasks": TASKS[:2]})
    assert observations.shape == (2, size)
    assert env.single_observation_space.shape == (size,)
    assert observations.dtype == np.float32


def test_box_actions_reach_the_environment_in_its_shape_and_dtype() -> None:
    class Two(Walk):
        def __init__(self, task: Any) -> None:
            super().__init__(task)
            self.action_space = gym.spaces.Box(-8, 8, (2, 2), np.float64)

        def step(self, action: Any) -> Any:
            assert action.shape == (2, 2)
            assert action.dtype == np.float64
            return np.zeros(2), float(action[1, 0]), False, False, {}

    env = GymVectorEnv(Two, 2, first_task=TASKS[0])
    env.reset(seed=0, options={"tasks": TASKS[:2]})
    assert env.single_action_space == gym.spaces.Box(-8, 8, (4,), np.float32)
    assert env.step(np.arange(8, dtype=np.float32).reshape(2, 4))[1].tolist() == [2.0, 6.0]


def test_spaces_without_a_flat_form_are_refused_by_name() -> None:
    env = Walk(TASKS[0])
    env.action_space = gym.spaces.Text(3)
    with pytest.raises(ConfigError, match=r"Text\(.*Discrete, MultiDiscrete, MultiBinary, Box of floating-point"):
        flat_spaces(env)
    env = Walk(TASKS[0])
    env.observation_space = gym.spaces.Sequence(gym.spaces.Discrete(2))
    with pytest.raises(ConfigError, match=r"Sequence.*Accepted are Box"):
        flat_spaces(env)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no task was given"),
        ({"tasks": TASKS[:2]}, "got 2 tasks for 5 instances"),
        ({"tasks": TASKS, "reset_mask": np.ones(4, bool)}, r"shape \(5,\)"),
        ({"tasks": TASKS, "reset_mask": np.ones(5)}, "must be bool"),
    ],
)
def test_wrong_reset_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vector().reset(options=options)


def test_wrong_actions_and_settings_are_refused() -> None:
    env = vector()
    env.reset(seed=0, options={"tasks": TASKS})
    with pytest.raises(ConfigError, match=r"shape \(4,\), expected \(5,\)"):
        env.step(np.zeros(4, np.int64))
    for settings in ({"num_envs": 0}, {"num_workers": -1}, {"worker_timeout": 0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            vector(**settings)


def test_spaces_that_depend_on_the_task_are_refused() -> None:
    def make_env(task: dict[str, Any]) -> Walk:
        env = Walk(task)
        env.action_space = gym.spaces.Discrete(int(task["size"]))
        return env

    env = GymVectorEnv(make_env, 2, first_task={"size": 2})
    with pytest.raises(WorkerError, match=r"spaces differ.*Discrete\(3\), expected.*Discrete\(2\)"):
        env.reset(options={"tasks": [{"size": 2}, {"size": 3}]})


def failing(verb: str, how: str) -> list[dict[str, Any]]:
    return [*TASKS[:3], {"size": 0.3, "fail": verb, "how": how}, TASKS[4]]


def provoke(env: GymVectorEnv, tasks: list[dict[str, Any]]) -> str:
    with pytest.raises(WorkerError) as caught:
        env.step(np.zeros(env.reset(seed=0, options={"tasks": tasks})[0].shape[0], np.int64))
    assert env.closed
    with pytest.raises(WorkerError, match="closed"):
        env.step(np.zeros(5, np.int64))
    return str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("verb", ["make", "reset", "step"])
def test_exception_names_instance_task_and_place(num_workers: int, verb: str) -> None:
    env = vector(num_workers)
    message = provoke(env, failing(verb, "raise"))
    assert "instance 3" in message
    assert "'size': 0.3" in message
    assert "ValueError: the wheel came off" in message
    if num_workers:
        assert "in _fail" in message


@pytest.mark.parametrize(("how", "said"), [("exit", "exited with code 7"), ("kill", "was killed by SIGKILL")])
@pytest.mark.parametrize("verb", ["make", "step"])
def test_dead_worker_raises_at_once_with_exit_code_and_task(how: str, said: str, verb: str) -> None:
    env = vector(2)
    begin = time.monotonic()
    message = provoke(env, failing(verb, how))
    assert time.monotonic() - begin < 10
    assert said in message
    assert f"{'step' if verb == 'step' else 'reset'} of instance 3 with task" in message
    assert "'size': 0.3" in message


def test_segmentation_fault_is_reported_with_its_place() -> None:
    message = provoke(vector(2), failing("step", "segfault"))
    assert "was killed by SIGSEGV in step of instance 3 with task" in message
    assert "in _fail" in message


def test_interrupting_workers_does_not_stop_them() -> None:
    """Ctrl-C in a terminal reaches every process of the group; the parent alone decides what it means."""
    env = vector(2)
    for worker in env._group._workers:  # type: ignore[union-attr]
        worker.process.send_signal(signal.SIGINT)
    env.reset(seed=0, options={"tasks": TASKS})
    env.step(np.ones(5, np.int64))
    env.close()


@pytest.mark.parametrize("verb", ["reset", "step"])
def test_hung_worker_raises_after_the_timeout_with_its_traceback(verb: str) -> None:
    env = vector(2, worker_timeout=1.0)
    begin = time.monotonic()
    message = provoke(env, failing(verb, "hang"))
    assert time.monotonic() - begin < 20
    assert f"no progress for 1 s in {verb} of instance 3 with task" in message
    assert "'size': 0.3" in message
    assert "in fall_asleep" in message


def test_slow_progress_is_not_a_hang() -> None:
    class Slow(Walk):
        def step(self, action: int) -> Any:
            time.sleep(0.5)
            return super().step(action)

    env = GymVectorEnv(Slow, 5, first_task=TASKS[0], num_workers=1, worker_timeout=1.5)
    env.reset(seed=0, options={"tasks": TASKS})
    env.step(np.ones(5, np.int64))
    env.close()


def test_make_env_that_cannot_travel_is_refused_with_the_way_out() -> None:
    lock = threading.Lock()
    with pytest.raises(WorkerError, match="num_workers=0"):
        GymVectorEnv(lambda task: Walk({**task, "lock": lock}), 2, first_task=TASKS[0], num_workers=1)


@pytest.mark.parametrize("close", [True, False])
def test_processes_end_with_the_environment_without_warnings(close: bool) -> None:
    env = vector(2)
    env.reset(seed=0, options={"tasks": TASKS})
    processes = [worker.process for worker in env._group._workers]  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if close:
            env.close()
            env.close()
        del env
        gc.collect()
    assert [process.returncode for process in processes] == [0, 0]


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="no other kernel kills children with their parent")

SCRIPT = """
import ctypes, os, sys, time
import gymnasium as gym, numpy as np
from metarl.vector.options import instance_seeds
from metarl.vector.spaces import flat_spaces
from metarl.vector.gym_env import GymVectorEnv

class Own(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        return np.zeros(1, np.float32), {}
    def step(self, action):
        while sys.argv[1] == "die": pass
        if sys.argv[1] == "die-in-c": ctypes.PyDLL(None).sleep(1000)  # Holds Python's lock.
        return np.zeros(1, np.float32), 1.0, False, False, {}

gym.register("Own-v0", entry_point=Own if sys.argv[1] != "leave" else "__main__:Own")
env = GymVectorEnv(lambda task: gym.make("Own-v0", disable_env_checker=True), 2, first_task=0, num_workers=2)
env.reset(seed=0, options={"tasks": [0, 1]})
print(*(worker.process.pid for worker in env._group._workers), flush=True)
print(env.step(np.zeros(2, np.int64))[1].sum(), flush=True)
"""


def run_script(tmp_path: Any, mode: str) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-W", "error", str(path), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_script_without_a_main_guard_works_and_leaves_quietly(tmp_path: Any) -> None:
    """Own classes and ids reach the workers, and leaving without close() prints nothing."""
    process = run_script(tmp_path, "leave")
    output, errors = process.communicate(timeout=60)
    assert (output.split()[-1], errors, process.returncode) == ("2.0", "", 0)


@pytest.mark.parametrize("mode", ["die", pytest.param("die-in-c", marks=needs_linux)])
def test_workers_leave_when_the_parent_is_killed_in_a_step(tmp_path: Any, mode: str) -> None:
    process = run_script(tmp_path, mode)
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    time.sleep(0.5)
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)


def test_a_worker_whose_parent_died_before_it_was_bound_to_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # The parent's number, as a worker is told it.
    with pytest.raises(WorkerError, match="exited with code 1 while starting"):
        vector(2)


def test_workers_outlive_the_thread_that_started_them() -> None:
    """The kernel takes a thread for the parent of what it started."""
    made: list[GymVectorEnv] = []
    thread = threading.Thread(target=lambda: made.append(vector(2)))
    thread.start()
    thread.join()
    time.sleep(1.0)
    (env,) = made
    env.reset(seed=0, options={"tasks": TASKS})
    env.step(np.ones(5, np.int64))
    env.close()


def _alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
