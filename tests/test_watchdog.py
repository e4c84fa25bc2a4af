"""Environments of this process that hang are ended or told by name, and none of them ends the process."""

from __future__ import annotations

import bdb
import contextlib
import ctypes
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from metarl.errors import WorkerError
from metarl.tasks.distribution import TaskDistribution
from metarl.vector.gym_env import GymVectorEnv


def spin() -> None:
    while True:
        pass


def swallow() -> None:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def lock() -> None:
    held = threading.Lock()
    held.acquire()
    held.acquire()


def sleep() -> None:
    time.sleep(1000)


def leave() -> None:
    sys.exit(0)


def slow() -> None:
    time.sleep(0.6)


class Trap(gym.Env[Any, Any]):
    """Calls ``task["trap"]`` in the method that the task names."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self._spring("make")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._spring("reset")
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._spring("step")
        return np.zeros(1, np.float32), 1.0, False, False, {}

    def close(self) -> None:
        self._spring("close")

    def _spring(self, verb: str) -> None:
        if self.task.get("in") == verb:
            self.task["trap"]()


def vector(timeout: float = 1.0, **settings: Any) -> GymVectorEnv:
    return GymVectorEnv(Trap, 2, first_task={}, worker_timeout=timeout, **settings)


def play(env: GymVectorEnv, task: dict[str, Any]) -> None:
    env.reset(seed=0, options={"tasks": [{}, task]})
    env.step(np.zeros(2, np.int64))


@pytest.mark.parametrize("verb", ["reset", "step"])
@pytest.mark.parametrize("trap", [spin, sleep, lock, swallow])
def test_a_hang_in_this_process_is_ended_and_named(verb: str, trap: Any) -> None:
    env = vector()
    began = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        play(env, {"in": verb, "trap": trap})
    message = str(caught.value)
    assert time.monotonic() - began < 10
    assert f"the environment Trap, which is stepped in this process, made no progress for 1 s in {verb} of" in message
    assert "instance 1 with task {" in message
    assert "num_workers=1" in message
    assert f"in {trap.__name__}" in message
    assert env.closed


def test_a_hang_that_is_ended_leaves_no_interrupt_behind() -> None:
    with pytest.raises(WorkerError, match="no progress"):
        play(vector(), {"in": "step", "trap": sleep})
    time.sleep(0.2)  # A Ctrl-C that is late would be raised here.


def test_a_constructor_that_hangs_is_ended_and_named() -> None:
    task = {"in": "make", "trap": spin}
    with pytest.raises(WorkerError, match=r"make_env made no progress for 1 s with task \{'in': 'make'"):
        GymVectorEnv(Trap, 2, first_task=task, worker_timeout=1.0)


def test_a_hang_in_another_thread_than_the_main_one_is_ended_there() -> None:
    caught: list[WorkerError] = []

    def work() -> None:
        try:
            play(vector(), {"in": "step", "trap": spin})
        except WorkerError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert "made no progress for 1 s in step of instance 1" in str(caught[0])


def test_slow_calls_one_after_another_are_no_hang() -> None:
    env = vector()
    env.reset(seed=0, options={"tasks": [{"in": "step", "trap": slow}] * 2})
    for _ in range(3):
        env.step(np.zeros(2, np.int64))
    env.close()


def test_a_call_that_comes_back_after_its_limit_is_told_all_the_same() -> None:
    def late() -> None:
        ctypes.CDLL(None).usleep(1_800_000)

    with pytest.raises(WorkerError, match="no progress for 1 s"):
        play(vector(), {"in": "step", "trap": late})


def test_whoever_is_looked_at_by_a_debugger_does_not_hang() -> None:
    class Debugger(bdb.Bdb):
        def user_line(self, frame: Any) -> None:
            self.set_continue()
            time.sleep(2.5)

    env = vector()
    debugger = Debugger()
    play(env, {"in": "step", "trap": lambda: debugger.set_trace()})
    sys.settrace(None)
    env.close()


def test_the_watch_ends_when_nobody_steps() -> None:
    def watchers() -> int:
        return sum(thread.name == "metarl-watchdog" for thread in threading.enumerate())

    def wait_for_none() -> None:
        deadline = time.monotonic() + 20
        while watchers():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    env = vector(0.2)
    wait_for_none()
    for _ in range(2):
        play(env, {})
        play(env, {})
        assert watchers() == 1
        wait_for_none()
    env.close()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("verb", ["make", "reset", "step"])
def test_leaving_python_is_an_error_of_the_environment(num_workers: int, verb: str) -> None:
    env = vector(20.0, num_workers=num_workers)
    place = "step" if verb == "step" else "reset"
    with pytest.raises(WorkerError, match=rf"instance 1 raised in {place} with task \{{.*SystemExit: 0"):
        play(env, {"in": verb, "trap": leave})


def test_leaving_python_in_the_first_constructor_is_an_error_of_make_env() -> None:
    tasks = TaskDistribution(id="trap", sample=lambda rng: {"in": "make", "trap": leave}, make_env=Trap, horizon=5)
    with pytest.raises(WorkerError, match=r"make_env raised with task .*SystemExit: 0"):
        _ = tasks.spec


def fail() -> None:
    raise OSError("the port is gone")


def test_an_environment_that_cannot_be_closed_is_warned_of_and_the_others_are_closed() -> None:
    closed = []
    env = vector()
    tasks = [{"in": "close", "trap": fail}, {"in": "close", "trap": lambda: closed.append(1)}]
    env.reset(seed=0, options={"tasks": tasks})
    with pytest.warns(RuntimeWarning, match=r"in close of instance 0 with task .*OSError: the port is gone\. It count"):
        env.close()
    assert closed == [1]


_TRAINING = """
import ctypes, sys, time
from pathlib import Path
import gymnasium as gym
import torch
from metarl import RunFolder, TrainConfig, train
from metarl.agents import RL2Config
from metarl.errors import told_errors
from metarl.tasks import TaskDistribution
from metarl.vector.gym_env import GymVectorEnv

steps = 0

def stay_in_c():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

class Env(gym.Wrapper):
    def step(self, action):
        global steps
        steps += 1
        if steps > 100:
            {"exit": lambda: sys.exit(0), "sleep": lambda: time.sleep(1000), "c": stay_in_c}[sys.argv[1]]()
        return self.env.step(action)

def make_env(task):
    return Env(gym.make("CartPole-v1", disable_env_checker=True))

tasks = TaskDistribution(
    id="trap", sample=lambda rng: {"x": rng.random()}, horizon=10,
    make_vector=lambda num: GymVectorEnv(make_env, num, first_task={"x": 0.5}, worker_timeout=1.0),
)
agent = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1).build(tasks.spec, torch.device("cpu"), 1)
config = TrainConfig(num_iterations=1000, meta_batch_size=2, eval_every=9999, checkpoint_every=9999)
with told_errors():
    train(agent, tasks, config, RunFolder("run"), listener=lambda now: print(now.iteration, flush=True))
"""


@pytest.mark.parametrize(("trap", "said"), [("exit", "SystemExit: 0"), ("sleep", "made no progress for 1 s in step")])
def test_training_saves_what_was_finished_and_fails(tmp_path: Path, trap: str, said: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "script.py").write_text(_TRAINING)
    command = [sys.executable, "script.py", trap]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    done = int(result.stdout.split()[-1])
    assert done >= 1
    assert said in result.stderr and "with task {'x': 0." in result.stderr
    assert re.search(rf"The {done} iterations that were finished before it are saved in \S*run\.", result.stderr)
    assert (tmp_path / "run" / "checkpoints" / f"iteration-{done:08d}.safetensors").is_file()


def test_a_call_that_stays_in_c_is_told_while_it_hangs(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "script.py").write_text(_TRAINING)
    command = [sys.executable, "script.py", "c"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "kill -KILL" in line:
                break
        assert process.poll() is None
        process.kill()
    text = "".join(lines)
    assert "the environment CartPole-v1, which is stepped in this process, made no progress for 1 s in step of" in text
    assert "with task {'x': 0." in text
    assert "in stay_in_c" in text
    assert "num_workers=1" in text
    assert f"kill -KILL {process.pid}; what the last checkpoint holds is safe" in text
