"""What goes wrong around a command is told in one sentence, and nothing that was saved is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import metarl, refused

from metarl.agents import RL2Config
from metarl.config import TrainConfig
from metarl.errors import CheckpointError, ConfigError
from metarl.evaluation.metaworld_scores import OfficialScores, TaskScores, read, save
from metarl.experiments import Experiment, Setup, official
from metarl.runs.events import EventFile
from metarl.runs.folder import RunFolder
from metarl.runs.logger import read_metrics
from metarl.tasks.registry import load_distribution
from metarl.trainer import Progress, train

_TRAIN = "train rl2 bandit --device cpu --hidden-size 4 --meta-batch-size 4 --num-epochs 1 --num-minibatches 1"
_SHORT = f"{_TRAIN} --num-iterations 2 --eval-every 99 --eval-tasks 2"
_RUN = "runs/rl2-bandit-seed1"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def in_a_process(
    words: str, encoding: str = "utf-8", stdout: Any = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metarl", *words.split()]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    return subprocess.run(
        command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize("words", ["list", f"{_SHORT} --num-iterations 1", "--help"])
def test_characters_that_standard_output_lacks_are_replaced(words: str) -> None:
    result = in_a_process(words, "ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii() and len(result.stdout) > 100


def test_a_changed_environment_is_told_in_a_sentence_and_once(tmp_path: Path) -> None:
    """Others' warnings say where they were raised, since that is of use there."""
    code = (
        "import warnings\nimport gymnasium as gym\nimport numpy as np\nfrom metarl import TaskDistribution\n"
        "warnings.warn('mine', UserWarning)\n"
        "class Push(gym.Env):\n"
        "    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,))\n"
        "    def __init__(self, goal):\n        self.goal = goal\n"
        "    def reset(self, *, seed=None, options=None):\n        return np.zeros(1, np.float32), {}\n"
        "    def step(self, action):\n"
        "        return np.zeros(1, np.float32), 1.0 * float(action[0]) * self.goal, False, False, {}\n"
        "pushes = TaskDistribution('mine/push', lambda rng: float(rng.uniform(1, 2)), Push, horizon=3)\n"
    )
    tasks = tmp_path / "pushing.py"
    tasks.write_text(code)
    trained = in_a_process(f"{_SHORT.replace('bandit', 'pushing:pushes')} --seed 1")
    assert trained.returncode == 0, trained.stderr
    tasks.write_text(code.replace("1.0 *", "2.0 *"))
    went_on = in_a_process("train --resume runs/rl2-pushing-pushes-seed1 --trust-tasks --num-iterations 3")
    assert went_on.returncode == 0
    theirs, ours, best = went_on.stderr.split("warning: ")
    assert "pushing.py:5: UserWarning: mine" in theirs
    assert ours.startswith("mine/push does something else than when the run was trained: in the first steps of one ")
    assert best.startswith(
        "the best checkpoint is chosen anew, since its score is of other tasks; the one so far is best-"
    )
    assert ours.count("\n") == best.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", ["list", _SHORT, "--version"])
def test_a_full_standard_output_is_told_once(words: str) -> None:
    with open("/dev/full", "w") as full:
        result = in_a_process(words, stdout=full)
    assert result.returncode == 2
    assert result.stderr == (
        "error: cannot write to standard output: No space left on device. What is saved in run folders is safe.\n"
    )


@pytest.mark.parametrize("error", [OSError("the screen is full"), SystemExit("the screen is full")])
def test_what_a_listener_raises_loses_no_iteration(tmp_path: Path, error: BaseException) -> None:
    bandit = load_distribution("bandit")
    run = RunFolder.create(tmp_path, "run")
    agent = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1).build(bandit.spec, torch.device("cpu"), 1)

    def listen(progress: Progress) -> None:
        if progress.iteration == 3:
            raise error

    config = TrainConfig(device="cpu", meta_batch_size=4, eval_every=99, checkpoint_every=99)
    with pytest.raises(type(error), match="the screen is full"):
        train(agent, bandit, config, run, listener=listen)
    assert run.checkpoints.iterations() == [0, 3]


# Code of the user ---------------------------------------------------------------------------------------------------

_TASKS = """
import os, gymnasium as gym
from metarl import TaskDistribution
from metarl.tasks import make
from metarl.vector.array_env import ArrayVectorEnv

def make_env(task):
    return gym.make("CartPole-v1", disable_env_checker=True)

def fail(*arguments):
    return {"no such part": 1}["wheel"]

def leave(*arguments):
    raise SystemExit(0)

class Wanders(gym.Wrapper):
    def step(self, action):
        os.chdir("/")
        return self.env.step(action)

def sample(rng):
    return {"x": rng.random()}

def tasks(**changed):
    return TaskDistribution(**{"id": "mine", "sample": sample, "make_env": make_env, "horizon": 5, **changed})

class Own(ArrayVectorEnv):
    def __init__(self, num_envs, verb="", act=fail, after=0):
        super().__init__(make("bandit").make_vector(1).dynamics, num_envs, 5)
        self.verb, self.act, self.left = verb, act, after

    def maybe(self, verb):
        if verb == self.verb:
            self.left -= 1
            if self.left < 0:
                self.act()

    def reset(self, **arguments):
        self.maybe("reset")
        return super().reset(**arguments)

    def step(self, actions):
        self.maybe("step")
        return super().step(actions)

    def close_extras(self, **arguments):
        self.maybe("close")

def own(**faults):
    return TaskDistribution("mine", make("bandit").sample, make_vector=lambda num: Own(num, **faults), horizon=5)

good, bad_reset, bad_step = own(), own(verb="reset"), own(verb="step")
bad_close, exit_reset, exit_step = own(verb="close"), own(verb="reset", act=leave), own(verb="step", act=leave)
late = own(verb="step", after=5)  # In the second rollout.
sampler, constructor, batch = tasks(sample=fail), tasks(make_env=fail), tasks(meta_batch=fail)
vector, held_out = tasks(make_env=None, make_vector=fail), tasks(sample_test=fail)
exit_sampler, exit_constructor = tasks(sample=leave), tasks(make_env=leave)
wanders = tasks(make_env=lambda task: Wanders(make_env(task)))
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sampler", "mine: sample raised: KeyError: 'wheel'"),
        ("constructor", r"make_env raised with task \{'x': 0\.\d+\}: KeyError: 'wheel'"),
        ("batch", "mine: meta_batch raised: KeyError: 'wheel'"),
        ("vector", "mine: make_vector raised: KeyError: 'wheel'"),
        ("exit_sampler", "mine: sample raised: SystemExit: 0"),
        ("exit_constructor", r"make_env raised with task \{'x': 0\.\d+\}: SystemExit: 0"),
    ],
)
def test_what_a_user_s_code_raises_is_named_with_its_own_traceback(name: str, said: str) -> None:
    Path("faulty.py").write_text(_TASKS)
    result = in_a_process(_SHORT.replace("rl2 bandit", f"rl2 faulty:{name}"))
    assert result.returncode == 2
    first, _, rest = result.stderr.partition("\n\nTraceback:\n")
    assert re.fullmatch(f"error: {said}", first)
    assert re.search(r"faulty\.py\", line \d+, in (fail|leave)", rest)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["bad_reset", "bad_step", "exit_reset", "exit_step", "late"])
def test_what_a_vector_environment_of_one_s_own_raises_is_named_with_its_own_traceback(name: str) -> None:
    Path("faulty.py").write_text(_TASKS)
    result = in_a_process(_SHORT.replace("rl2 bandit", f"rl2 faulty:{name}"))
    assert result.returncode == 2
    verb = "reset" if "reset" in name else "step"
    what = "SystemExit: 0" if "exit" in name else "KeyError: 'wheel'"
    first, _, rest = result.stderr.partition("\n\nTraceback:\n")
    assert re.fullmatch(rf"error: mine: the vector environment raised in {verb} with tasks \[\{{.*\]: {what}", first)
    assert re.search(r"faulty\.py\", line \d+, in (fail|leave)", rest)
    assert "collector.py" not in rest and "iterations that were finished before it are saved in" in rest


def test_evaluate_names_a_vector_environment_of_one_s_own_that_raises(capsys: pytest.CaptureFixture[str]) -> None:
    Path("faulty.py").write_text(_TASKS)
    assert in_a_process(_SHORT.replace("rl2 bandit", "rl2 faulty:good")).returncode == 0
    (run,) = Path("runs").iterdir()
    Path("faulty.py").write_text(_TASKS.replace("own(), own", "own(verb='step'), own"))
    result = in_a_process(f"evaluate {run} --tasks faulty:good --num-tasks 2")
    assert result.returncode == 2
    assert re.match(
        r"error: mine: the vector environment raised in step with tasks .*: KeyError: 'wheel'\n", result.stderr
    )


@pytest.mark.parametrize("words", ["train rl2 bandit --help", "--help", "list", "list presets"])
def test_a_pipe_that_nobody_reads_ends_a_command_without_a_word(words: str) -> None:
    """As ``metarl ... | head`` does."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "metarl", *words.split()]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


_LEVERS = """
import gymnasium as gym, numpy as np, metarl
class Lever(gym.Env):
    observation_space = gym.spaces.Box(0.0, 1.0, (1,))
    def __init__(self, high): self.action_space = gym.spaces.Box(-1.0, high, (1,))
    def reset(self, seed=None, options=None): return np.zeros(1, np.float32), {}
    def step(self, action): return np.zeros(1, np.float32), float(action[0]), False, False, {}
weak = metarl.TaskDistribution("weak", lambda rng: float(rng.uniform()), lambda task: Lever(1.0), horizon=3)
strong = metarl.TaskDistribution("strong", weak.sample, lambda task: Lever(2.0), horizon=3)
"""


def test_evaluate_tells_of_actions_with_other_bounds_than_in_training() -> None:
    Path("levers.py").write_text(_LEVERS)
    assert in_a_process(_SHORT.replace("rl2 bandit", "rl2 levers:weak")).returncode == 0
    (run,) = Path("runs").iterdir()
    told = "The actions of strong lie in [[-1.0], [2.0]], those that the agent was trained on in [[-1.0], [1.0]]"
    for name in ("strong", "weak"):
        result = in_a_process(f"evaluate {run} --tasks levers:{name} --num-tasks 2 --trust-tasks")
        assert result.returncode == 0, result.stderr
        assert (told in result.stdout) == (name == "strong")


def test_a_vector_environment_that_cannot_be_closed_is_warned_of() -> None:
    Path("faulty.py").write_text(_TASKS)
    result = in_a_process(_SHORT.replace("rl2 bandit", "rl2 faulty:bad_close"))
    assert result.returncode == 0, result.stderr
    assert "mine: the vector environment raised in close: KeyError: 'wheel'. It counts as closed." in result.stderr
    assert "Exception ignored" not in result.stderr and "Traceback" not in result.stderr


def test_held_out_tasks_that_cannot_be_drawn_lose_no_iteration() -> None:
    Path("faulty.py").write_text(_TASKS)
    result = in_a_process(_SHORT.replace("rl2 bandit", "rl2 faulty:held_out"))
    assert result.returncode == 2
    assert "error: mine: sample_test raised: KeyError: 'wheel'" in result.stderr
    assert "The 1 iterations that were finished before it are saved in" in result.stderr


def test_an_environment_that_changes_the_working_directory_changes_nothing_else() -> None:
    Path("faulty.py").write_text(_TASKS)
    name = "faulty:wanders"
    result = in_a_process(_SHORT.replace("rl2 bandit", f"rl2 {name}"))
    assert result.returncode == 0, result.stderr
    (run,) = Path("runs").iterdir()
    assert len(read_metrics(run / "metrics.jsonl")) == 2
    assert (run / "adaptation.json").is_file()
    words = (
        f"evaluate {run} --tasks {name} --num-tasks 2 --output scores --checkpoint {run}/checkpoints/best.safetensors"
    )
    result = in_a_process(words)
    assert result.returncode == 0, result.stderr
    assert {path.suffix for path in Path("scores").iterdir()} == {".json", ".png"}


# The disk -----------------------------------------------------------------------------------------------------------


def test_a_deleted_run_folder_is_told_as_what_it_is(tmp_path: Path) -> None:
    bandit = load_distribution("bandit")
    run = RunFolder.create(tmp_path, "run")
    agent = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1).build(bandit.spec, torch.device("cpu"), 1)

    def delete(progress: Progress) -> None:
        shutil.rmtree(run.path)

    config = TrainConfig(device="cpu", meta_batch_size=4, eval_every=99, checkpoint_every=2)
    with pytest.raises(CheckpointError, match=rf"the folder {run.path} is gone .*it was deleted or moved") as caught:
        train(agent, bandit, config, run, listener=delete)
    assert "full" not in str(caught.value)
    assert not run.path.exists()


def test_a_log_that_was_replaced_is_noticed_before_the_next_checkpoint(tmp_path: Path) -> None:
    bandit = load_distribution("bandit")
    run = RunFolder.create(tmp_path, "run")
    agent = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1).build(bandit.spec, torch.device("cpu"), 1)
    config = TrainConfig(device="cpu", meta_batch_size=4, eval_every=99, checkpoint_every=2)
    with pytest.raises(CheckpointError, match=r"could not bring the metrics .*metrics\.jsonl onto the disk"):
        train(agent, bandit, config, run, listener=lambda _: run.metrics.unlink(missing_ok=True))


def test_a_full_disk_under_tensorboard_s_files_ends_those_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bandit = load_distribution("bandit")
    run = RunFolder.create(tmp_path, "run")
    agent = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1).build(bandit.spec, torch.device("cpu"), 1)

    def full(self: EventFile, step: int, scalars: dict[str, float]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventFile, "add", full)
    config = TrainConfig(device="cpu", meta_batch_size=4, eval_every=99, eval_tasks=2, num_iterations=3)
    with pytest.warns(RuntimeWarning, match=r"cannot be written any more \(No space left .*metrics\.jsonl") as told:
        assert train(agent, bandit, config, run)
    assert sum("TensorBoard" in str(warning.message) for warning in told) == 1
    assert len(read_metrics(run.metrics)) == 3
    assert run.checkpoints.iterations()[-1] == 3


def test_a_run_that_cannot_be_written_is_refused_before_it_is_evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metarl(_SHORT) == 0
    touch = Path.touch

    def read_only(path: Path, *arguments: Any) -> None:
        if path.is_relative_to(Path(_RUN).absolute()):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        touch(path, *arguments)

    monkeypatch.setattr(Path, "touch", read_only)
    monkeypatch.setattr("metarl.cli.evaluate.evaluation_rows", lambda *arguments, **settings: pytest.fail("evaluated"))
    text = refused(f"evaluate {_RUN} --num-tasks 2", capsys)
    assert f"cannot write into {_RUN}: Read-only file system. Give another folder with --output FOLDER." in text


def test_scores_go_where_output_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert metarl(_SHORT) == 0
    before = {path: path.stat().st_mtime_ns for path in Path(_RUN).rglob("*")}
    assert metarl(f"evaluate {_RUN} --num-tasks 2 --output else/where") == 0
    assert {path: path.stat().st_mtime_ns for path in Path(_RUN).rglob("*")} == before
    (scores,) = Path("else/where").glob("*.json")
    assert len(json.loads(scores.read_text())["rows"]) == 3
    Path("taken").write_text("")
    assert "cannot write into taken: File exists" in refused(f"evaluate {_RUN} --output taken", capsys)


@pytest.mark.parametrize("command", [_SHORT, f"evaluate {_RUN}"])
def test_a_seed_beyond_64_bits_is_refused_with_a_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(f"{command} --seed {2**63}", capsys)
    assert re.search(rf"seed must be (a whole number of )?0 or more and below 2\^63, got {2**63}", text)


def test_a_seed_of_63_bits_works() -> None:
    assert metarl(f"{_SHORT} --seed {2**63 - 1}") == 0
    with pytest.raises(ConfigError, match=r"below 2\^63"):
        TrainConfig(seed=2**63)


# Official scores ----------------------------------------------------------------------------------------------------


def test_two_checkpoints_of_one_iteration_share_no_official_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their iteration is the same; what was learned is in the name of the file."""
    scored = []

    def evaluate_official(agent: Any, *arguments: Any, store: Path, about: dict[str, Any], **settings: Any) -> Any:
        known = read(store, about)
        if known is None:
            scored.append(store)
            share = float(next(iter(agent.named_tensors().values())).mean() > 0.5)
            known = OfficialScores(about, {"reach-v3": TaskScores((share,), (1.0,), 1, 0)})
            save(known, store)
        return known

    monkeypatch.setattr(official, "evaluate_official", evaluate_official)
    config = RL2Config(hidden_size=4)
    setup = Setup("rl2", "ml1/reach-v3", TrainConfig(), config)
    this = Experiment.of(setup, RunFolder.create(tmp_path, "run"))
    agents = [config.build(setup.distribution.spec, torch.device("cpu"), 1) for _ in range(2)]
    for value, agent in enumerate(agents):
        with torch.no_grad():
            for tensor in agent.memory.parameters():  # type: ignore[attr-defined]
                tensor.fill_(float(value))
    figures = []
    for index in (0, 1, 0, 1):
        scores, _ = official.evaluate_experiment(this, agents[index], 5, seed=1)
        figures.append(scores.by_task["reach-v3"].success[0])
    assert figures == [0.0, 1.0, 0.0, 1.0]
    assert len(scored) == len(set(scored)) == 2
