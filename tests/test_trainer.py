"""Training ends by itself, by a signal or by an error, and each time what was learned before is intact."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.countdown import countdown
from helpers.countdown import sample as countdown_task
from helpers.divergence import unchecked_actions

from metarl.agent import AgentConfig
from metarl.agents import RL2, MAMLTRPOConfig, RL2Config, SNAILConfig
from metarl.config import TrainConfig
from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv
from metarl.errors import CheckpointError, ConfigError, NonFiniteError
from metarl.evaluation.evaluator import evaluate
from metarl.experiments import Experiment
from metarl.runs.checkpoint import load, save
from metarl.runs.folder import RunFolder
from metarl.runs.logger import read_metrics
from metarl.seeding import numpy_stream
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import load_distribution
from metarl.trainer import Progress, restore, train
from metarl.types import Action, Timestep, Trial

_CONFIG = TrainConfig(
    device="cpu", num_iterations=4, meta_batch_size=4, eval_every=99, eval_tasks=2, checkpoint_every=2
)
_AGENT = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1)


def _agent(distribution: TaskDistribution, kind: type[RL2] = RL2) -> RL2:
    return kind(_AGENT, distribution.spec, torch.device("cpu"), seed=1)


class MaxIterations:
    """Ends training after this iteration, as a graceful stop does."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_iteration(self, progress: Progress) -> bool:
        return progress.iteration == self.last


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "run")


@pytest.fixture
def bandit() -> TaskDistribution:
    return load_distribution("bandit")


def _kill_at(number: signal.Signals, iteration: int) -> Callable[[Progress], None]:
    def listener(progress: Progress) -> None:
        if progress.iteration == iteration:
            os.kill(os.getpid(), number)

    return listener


_STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU]


@pytest.mark.parametrize("number", _STOPPING)
@pytest.mark.parametrize("iteration", [1, 2, 3])
def test_a_signal_between_iterations_loses_none(
    run: RunFolder, bandit: TaskDistribution, number: signal.Signals, iteration: int
) -> None:
    """While the listener runs, the decision whether to save after this iteration has been taken already."""
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # Whoever started the tests may have it ignored, as nohup has SIGHUP.
    try:
        assert not train(_agent(bandit), bandit, _CONFIG, run, listener=_kill_at(number, iteration))
        assert run.checkpoints.iterations()[-1] == iteration
        assert len(read_metrics(run.metrics)) == iteration
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, before)


def test_a_hangup_that_nohup_has_ignored_stays_ignored(run: RunFolder, bandit: TaskDistribution) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(_agent(bandit), bandit, _CONFIG, run, listener=_kill_at(signal.SIGHUP, 1))
    finally:
        signal.signal(signal.SIGHUP, before)


_IN_WORKERS = """
import torch
from metarl import RunFolder, TrainConfig, train
from metarl.agents import RL2Config
from metarl.tasks import TaskDistribution

def make_env(task):
    import time
    import gymnasium as gym
    time.sleep(0.05)
    return gym.make("CartPole-v1")

if __name__ == "__main__":
    tasks = TaskDistribution(
        id="slow", sample=lambda rng: {"x": rng.random()}, make_env=make_env, num_workers=2, horizon=20
    )
    agent = RL2Config(hidden_size=4, num_epochs=1, num_minibatches=1).build(tasks.spec, torch.device("cpu"), 1)
    config = TrainConfig(num_iterations=100000, meta_batch_size=4, eval_every=99999, checkpoint_every=99999)
    done = train(agent, tasks, config, RunFolder("run"), listener=lambda now: print(now.iteration, flush=True))
    print("ended" if done else "stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_process_group_loses_no_iteration(tmp_path: Path, number: signal.Signals) -> None:
    """As timeout, docker stop, Slurm and Kubernetes send it: workers leave it to their parent what to do."""
    (tmp_path / "run").mkdir()
    (tmp_path / "script.py").write_text(_IN_WORKERS)
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    while process.stdout.readline() != "2\n":
        assert process.poll() is None
    os.killpg(process.pid, number)
    printed, _ = process.communicate(timeout=120.0)
    assert printed.endswith("stopped\n") and process.returncode == 0
    run = RunFolder(tmp_path / "run")
    done = len(read_metrics(run.metrics))
    assert run.checkpoints.iterations() == [0, done] and done >= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_an_iteration_lets_it_finish(
    run: RunFolder, bandit: TaskDistribution, number: signal.Signals
) -> None:
    class Interrupted(RL2):
        def meta_update(self, trial: Trial) -> dict[str, float]:
            os.kill(os.getpid(), number)
            return super().meta_update(trial)

    assert not train(_agent(bandit, Interrupted), bandit, _CONFIG, run)
    assert run.checkpoints.iterations() == [0, 1]


def test_a_signal_in_the_last_iteration_still_counts_as_a_stop(run: RunFolder, bandit: TaskDistribution) -> None:
    """Else what follows training, a reference or an evaluation, would run on after Ctrl-C."""
    assert not train(_agent(bandit), bandit, _CONFIG, run, listener=_kill_at(signal.SIGINT, 4))
    assert run.checkpoints.iterations()[-1] == 4


def test_a_second_ctrl_c_interrupts_at_once_and_leaves_the_checkpoints(
    run: RunFolder, bandit: TaskDistribution
) -> None:
    class Stubborn(RL2):
        def meta_update(self, trial: Trial) -> dict[str, float]:
            if run.checkpoints.iterations()[-1] == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("went on after the second Ctrl-C")
            return super().meta_update(trial)

    with pytest.raises(KeyboardInterrupt):
        train(_agent(bandit, Stubborn), bandit, _CONFIG, run)
    assert run.checkpoints.load_latest()[0] == 2
    assert train(_agent(bandit), bandit, _CONFIG, run)


# Not finite ---------------------------------------------------------------------------------------------------------


class _Cell(gym.Env[Any, Any]):
    """One step; the reward is the task's, the observation as well."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, task: dict[str, float]) -> None:
        self.task = task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.array([self.task["obs"]], np.float32), self.task["reward"], False, False, {}


def _cells(reward: float = 1.0, obs: float = 0.0, test_reward: float = 1.0) -> TaskDistribution:
    def sample(rng: np.random.Generator) -> dict[str, float]:
        return {"name": float(rng.random()), "obs": obs, "reward": reward}

    def sample_test(rng: np.random.Generator) -> dict[str, float]:
        return sample(rng) | {"reward": test_reward}

    return TaskDistribution(id="cells", sample=sample, sample_test=sample_test, make_env=_Cell, horizon=2)


class _BadLoss(RL2):
    def meta_update(self, trial: Trial) -> dict[str, float]:
        return super().meta_update(trial) | {"loss": math.nan}


class _BadParameter(RL2):
    def meta_update(self, trial: Trial) -> dict[str, float]:
        metrics = super().meta_update(trial)
        with torch.no_grad():
            self.memory.get_parameter("policy_head.weight")[0, 0] = math.inf
        return metrics


class _BadNormaliser(RL2):
    def meta_update(self, trial: Trial) -> dict[str, float]:
        metrics = super().meta_update(trial)
        self.obs_moments.mean.fill_(math.nan)
        return metrics


class _BadMoment(RL2):
    """Adam's moves are small for ever by an infinite second moment, and nothing else is out of order."""

    def meta_update(self, trial: Trial) -> dict[str, float]:
        metrics = super().meta_update(trial)
        next(iter(self.optimizer.state.values()))["exp_avg_sq"].fill_(math.inf)
        return metrics


class _BadLogProb(RL2):
    def act(self, state: Any, timestep: Timestep, deterministic: bool = False) -> tuple[Action, Any]:
        action, state = super().act(state, timestep, deterministic)
        return Action(action.value, action.log_prob * math.nan), state


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (_BadLogProb, r"_BadLogProb\.act returned a log_prob that is NaN"),
        (_BadLoss, "the metric 'agent/loss' is nan"),
        (_BadParameter, r"the parameter 'memory\.policy_head\.weight' is not finite"),
        (_BadNormaliser, r"the parameter 'obs_moments\.mean' is not finite"),
        (_BadMoment, r"the parameter 'optimizer\.exp_avg_sq of 0' is not finite"),
    ],
)
def test_a_learner_that_fails_is_named_with_iteration_and_last_good_checkpoint(
    run: RunFolder, bandit: TaskDistribution, kind: type[RL2], named: str
) -> None:
    short = dataclasses.replace(_CONFIG, num_iterations=3)
    assert train(_agent(bandit), bandit, short, run)
    path = run.checkpoints.path(3)
    content = path.read_bytes()
    expected = rf"iteration 3: .*{named}.*last good checkpoint is {re.escape(str(path))}"
    with pytest.raises(NonFiniteError, match=expected):
        train(_agent(bandit, kind), bandit, dataclasses.replace(_CONFIG, num_iterations=9), run)
    assert run.checkpoints.latest().read_bytes() == content
    assert len(read_metrics(run.metrics)) == 3
    assert train(_agent(bandit), bandit, _CONFIG, run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: Action(a.value + 5, a.log_prob), r"chose from 5 to [5-9], expected choices from 0 to 4"),
        (lambda a: Action(a.value.float(), a.log_prob), r"a value of torch\.float32 .* expected whole numbers"),
        (
            lambda a: Action(a.value[..., None], a.log_prob),
            r"shape \[4, 1, 1\] .* expected whole numbers of shape \[4, 1\]",
        ),
        (lambda a: Action(a.value, a.log_prob.sum()), r"a log_prob of shape \[\], expected .* log_prob of \[4, 1\]"),
    ],
)
def test_an_action_of_another_kind_is_told_with_what_finds_such_faults(
    run: RunFolder, bandit: TaskDistribution, change: Callable[[Action], Action], message: str
) -> None:
    class Other(RL2):
        def act(self, state: Any, timestep: Timestep, deterministic: bool = False) -> tuple[Action, Any]:
            action, state = super().act(state, timestep, deterministic)
            return change(action), state

    with pytest.raises(ConfigError, match=rf"{message}.*check_agent"):
        train(_agent(bandit, Other), bandit, _CONFIG, run)


@pytest.mark.parametrize("returned", [None, torch.zeros(2), "done"])
def test_metrics_without_names_are_told(run: RunFolder, bandit: TaskDistribution, returned: Any) -> None:
    class Other(RL2):
        def meta_update(self, trial: Trial) -> Any:
            return returned

    with pytest.raises(ConfigError, match=r"Other\.meta_update returned .*, expected numbers by name"):
        train(_agent(bandit, Other), bandit, _CONFIG, run)


def test_arguments_of_another_class_are_told_with_where_to_get_one(run: RunFolder, bandit: TaskDistribution) -> None:
    agent: Any = _agent(bandit)
    named: Any = "bandit"
    made: Any = bandit
    wrong: list[tuple[Any, ...]] = [
        (
            _AGENT,
            bandit,
            _CONFIG,
            run,
            r"agent must be of the class Agent, got the RL2Config RL2Config.*config\.build\(",
        ),
        (
            agent,
            "bandit",
            _CONFIG,
            run,
            r"tasks must be of the class TaskDistribution, got the str 'bandit'; metarl\.make\(ID\)",
        ),
        (
            agent,
            bandit,
            {"seed": 1},
            run,
            r"config must be of the class TrainConfig, got the dict \{'seed': 1\}; metarl\.TrainConfig",
        ),
        (
            agent,
            bandit,
            _CONFIG,
            "runs/mine",
            r"run must be of the class RunFolder, got the str 'runs/mine'; metarl\.RunFolder\.create",
        ),
    ]
    for *arguments, message in wrong:
        with pytest.raises(ConfigError, match=message):
            train(*arguments)
    with pytest.raises(ConfigError, match="tasks must be of the class TaskDistribution, got the str 'bandit'"):
        evaluate(agent, named, num_tasks=2, seed=0)
    with pytest.raises(
        ConfigError, match=r"tasks must be of the class str, got the TaskDistribution .*; a run's parts are named"
    ):
        Experiment.open("model:rl2-bandit", tasks=made)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_named_with_its_task(run: RunFolder, value: float) -> None:
    expected = rf"iteration 0: cells: reward {value} at step 0 .*'reward': {value}.*iteration-00000000\.safetensors"
    distribution = _cells(value)
    with pytest.raises(NonFiniteError, match=expected):
        train(_agent(distribution), distribution, _CONFIG, run)


def test_a_sum_of_rewards_that_overflows_is_told_as_that(run: RunFolder) -> None:
    distribution = _cells(3e38)
    with pytest.raises(NonFiniteError, match=r"iteration 0: the metric 'train/return_0' is inf"):
        train(_agent(distribution), distribution, _CONFIG, run)
    with pytest.raises(
        NonFiniteError, match=r"cells: the return of task .*'reward': .* is inf: the sum of its rewards"
    ):
        evaluate(_agent(distribution), _cells(1.0, test_reward=3e38), num_tasks=2, seed=1)


def test_an_observation_that_is_not_finite_is_named(run: RunFolder) -> None:
    distribution = _cells(obs=math.nan)
    with pytest.raises(NonFiniteError, match=r"iteration 0: cells: observation \[nan\] at step 1"):
        train(_agent(distribution), distribution, _CONFIG, run)


def test_a_nan_that_only_held_out_tasks_show_is_named_with_iteration_and_checkpoint(run: RunFolder) -> None:
    distribution = _cells(test_reward=math.nan)
    config = dataclasses.replace(_CONFIG, eval_every=2, checkpoint_every=1)
    with pytest.raises(NonFiniteError, match=r"iteration 1: cells: reward nan .*checkpoint is .*iteration-00000001"):
        train(_agent(distribution), distribution, config, run)
    assert run.checkpoints.iterations() == [0, 1]


class _Fault(Exception):
    pass


@pytest.mark.parametrize("fails", ["act", "adapt", "meta_update", "not finite"])
def test_what_fails_saves_the_iterations_before_it_and_none_of_its_own(
    tmp_path: Path, bandit: TaskDistribution, fails: str
) -> None:
    config = dataclasses.replace(_CONFIG, checkpoint_every=99)
    whole, broken = RunFolder.create(tmp_path, "whole"), RunFolder.create(tmp_path, "broken")
    assert train(_agent(bandit), bandit, config, whole)

    class Failing(RL2):
        updates = 0

        def act(self, *arguments: Any, **keywords: Any) -> Any:
            if fails == "act" and self.updates == 3:
                raise _Fault("here")
            return super().act(*arguments, **keywords)

        def adapt(self, *arguments: Any) -> Any:
            if fails == "adapt" and self.updates == 3:
                raise _Fault("here")
            return super().adapt(*arguments)

        def meta_update(self, trial: Trial) -> dict[str, float]:
            metrics = super().meta_update(trial)
            self.updates += 1
            if self.updates == 4 and fails == "meta_update":
                raise _Fault("here")
            return metrics | ({"loss": math.inf} if self.updates == 4 else {})

    expected = NonFiniteError if fails == "not finite" else _Fault
    with pytest.raises(expected) as failure:
        train(_agent(bandit, Failing), bandit, config, broken)
    said = str(failure.value) + "".join(getattr(failure.value, "__notes__", []))
    assert "iteration-00000003" in said or "The 3 iterations that were finished before it are saved" in said
    assert broken.checkpoints.iterations() == [0, 3]
    assert train(_agent(bandit), bandit, config, broken)
    ours, theirs = (folder.checkpoints.load_latest()[1]["agent"]["memory"] for folder in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# The disk -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_the_checkpoint_before_is_intact(
    run: RunFolder, bandit: TaskDistribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        # The log was there before the disk filled up; its own failure is tests/test_logger.py's.
        if Path(f"/proc/self/fd/{handle}").readlink().name == "metrics.jsonl":
            return
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(progress: Progress) -> None:
        if progress.iteration == 3:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(CheckpointError, match=r"(best|iteration-00000004)\.safetensors: the disk is full .*resume"):
        train(_agent(bandit), bandit, _CONFIG, run, listener=fill)
    with pytest.raises(CheckpointError, match="No space left"):
        train(_agent(bandit), bandit, _CONFIG, run)
    monkeypatch.undo()
    assert run.checkpoints.load_latest()[0] == 2
    assert train(_agent(bandit), bandit, _CONFIG, run)
    assert [row["iteration"] for row in read_metrics(run.metrics)] == [0, 1, 2, 3]


@contextlib.contextmanager
def sizes_of_files_restored() -> Iterator[None]:
    """Ends a limit on the size of files before pytest writes its own output, which may be a longer file."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_write_that_the_kernel_cuts_short_leaves_the_checkpoint_before(
    run: RunFolder, bandit: TaskDistribution
) -> None:
    def shrink(progress: Progress) -> None:
        if progress.iteration == 3:
            half, (_, hard) = run.checkpoints.latest().stat().st_size // 2, resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, hard))

    config = dataclasses.replace(_CONFIG, num_iterations=9)
    with (
        sizes_of_files_restored(),
        pytest.raises(CheckpointError, match=r"(?s)could not write .*File too large.*intact"),
    ):
        train(_agent(bandit), bandit, config, run, listener=shrink)
    assert run.checkpoints.load_latest()[0] == 2
    assert list(run.checkpoints.folder.glob(".*")) == []


def test_a_run_in_use_names_the_process_and_changes_nothing(run: RunFolder, bandit: TaskDistribution) -> None:
    holder = (
        "import sys; from pathlib import Path; from metarl.runs.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(CheckpointError, match=f"in use by process {process.pid}"):
            train(_agent(bandit), bandit, _CONFIG, run)
        assert not run.checkpoints.folder.exists() and not run.metrics.exists()
        process.communicate("")


def test_a_checkpoint_of_another_agent_is_refused_in_words(run: RunFolder, bandit: TaskDistribution) -> None:
    train(_agent(bandit), bandit, dataclasses.replace(_CONFIG, num_iterations=1), run)
    wide = dataclasses.replace(_AGENT, hidden_size=9).build(bandit.spec, torch.device("cpu"), 1)
    with pytest.raises(CheckpointError, match="of another run: hidden_size is 4 there and 9 here"):
        train(wide, bandit, _CONFIG, run)
    iteration, content = run.checkpoints.load_latest()
    assert iteration == 1
    # One of an older metarl says nothing of that; its tensors have other shapes.
    run.checkpoints.save(iteration, {name: value for name, value in content.items() if name != "origin"})
    with (
        pytest.warns(RuntimeWarning, match="of an older metarl"),
        pytest.raises(CheckpointError, match=r"(?s)does not fit this agent.*size mismatch"),
    ):
        train(wide, bandit, _CONFIG, run)
    with pytest.warns(RuntimeWarning, match="that it belongs to this run was not checked"):
        assert train(_agent(bandit), bandit, _CONFIG, run)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed is 1 there and 2 here"),
        ({"meta_batch_size": 5}, "meta_batch_size is 4 there and 5 here"),
        ({"clip_range": 0.3}, "clip_range is 0.2 there and 0.3 here"),
        ({"tasks": "bandit-gaussian"}, "tasks is 'bandit' there and 'bandit-gaussian' here"),
        ({"agent": SNAILConfig(hidden_size=4)}, "agent is 'rl2' there and 'snail' here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_whatever_its_shapes(
    run: RunFolder, bandit: TaskDistribution, change: dict[str, Any], named: str
) -> None:
    train(_agent(bandit), bandit, dataclasses.replace(_CONFIG, num_iterations=1), run)
    settings = {name: value for name, value in change.items() if name in vars(_AGENT)}
    outer = {name: value for name, value in change.items() if name in vars(_CONFIG)}
    agent: AgentConfig = change.get("agent", dataclasses.replace(_AGENT, **settings))
    tasks = load_distribution(change.get("tasks", "bandit"))
    with pytest.raises(CheckpointError, match=f"of another run: {named}"):
        train(agent.build(tasks.spec, torch.device("cpu"), 1), tasks, dataclasses.replace(_CONFIG, **outer), run)
    free = {"num_iterations": 2, "eval_every": 1, "eval_tasks": 3, "checkpoint_every": 1, "keep_checkpoints": 9}
    assert train(_agent(bandit), bandit, dataclasses.replace(_CONFIG, **free), run)


def test_a_checkpoint_of_another_version_is_refused_in_words(run: RunFolder, bandit: TaskDistribution) -> None:
    train(_agent(bandit), bandit, _CONFIG, run)
    iteration, content = run.checkpoints.load_latest()
    run.checkpoints.save(iteration, {name: value for name, value in content.items() if name != "spec"})
    with pytest.raises(
        CheckpointError, match=r"lacks spec and holds agent, env_steps, origin, scores: another version"
    ):
        train(_agent(bandit), bandit, _CONFIG, run)


def test_metrics_count_every_step_and_shot(run: RunFolder, bandit: TaskDistribution) -> None:
    config = dataclasses.replace(_CONFIG, eval_every=2)
    agent = _agent(bandit)
    train(agent, bandit, config, run)
    rows = read_metrics(run.metrics)
    steps = config.meta_batch_size * agent.rollouts_per_task * _AGENT.episodes_per_trial * bandit.spec.horizon
    assert [row["env_steps"] for row in rows] == [steps * k for k in (1, 2, 3, 4)]
    assert all(
        {"train/return_0", "train/return_1", "seconds/collect", "seconds/meta_update"} <= row.keys() for row in rows
    )
    assert [row["iteration"] for row in rows if "test/return_1" in row] == [1, 3]


@pytest.mark.cuda
def test_cuda_and_cpu_learn_roughly_the_same(tmp_path: Path, bandit: TaskDistribution) -> None:
    returns = []
    for device in ("cpu", "cuda"):
        run = RunFolder.create(tmp_path, device)
        config = dataclasses.replace(_CONFIG, num_iterations=2, meta_batch_size=500)
        agent = _AGENT.build(bandit.spec, torch.device(device), 1)
        assert train(agent, bandit, config, run)
        assert all(tensor.device.type == device for tensor in agent.named_tensors().values())
        returns.append([row["train/return_0"] for row in read_metrics(run.metrics)])
    np.testing.assert_allclose(returns[0], returns[1], atol=0.5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_best_is_chosen_by_means_of_ten_iterations_wherever_a_run_is_interrupted(
    tmp_path: Path, bandit: TaskDistribution, seed: int
) -> None:
    config = dataclasses.replace(_CONFIG, num_iterations=18, checkpoint_every=3, meta_batch_size=2, seed=seed)
    for name, stops in (("whole", ()), ("parts", (4, 7, 11, 13, 16))):
        run = RunFolder.create(tmp_path, name)
        for last in (*stops, 99):
            train(_agent(bandit), bandit, config, run, callbacks=[MaxIterations(last)])
        after = f"train/return_{_agent(bandit).num_adaptations}"
        returns = [row[after] for row in read_metrics(run.metrics)]
        assert len(returns) == 18
        means = {number: sum(returns[number - 10 : number]) / 10 for number in (12, 15, 18)}
        best = load(run.checkpoints.best_path)
        assert (best["iteration"], best["score"]) == max(means.items(), key=lambda pair: (pair[1], -pair[0]))


def test_a_mean_of_few_iterations_is_the_best_only_until_there_is_one_of_ten(
    run: RunFolder, bandit: TaskDistribution
) -> None:
    train(_agent(bandit), bandit, _CONFIG, run)
    assert run.checkpoints.load(run.checkpoints.best_path)[0] == 4
    save(run.checkpoints.best_path, load(run.checkpoints.best_path) | {"score": 1e6})
    train(_agent(bandit), bandit, dataclasses.replace(_CONFIG, num_iterations=10), run)
    assert run.checkpoints.load(run.checkpoints.best_path)[0] == 10


def test_going_back_keeps_what_came_later(run: RunFolder, bandit: TaskDistribution) -> None:
    train(_agent(bandit), bandit, _CONFIG, run)
    later = run.checkpoints.path(4).read_bytes()
    log = run.metrics.read_text()
    train(_agent(bandit), bandit, _CONFIG, run, checkpoint=run.checkpoints.path(2))
    kept = run.path / "abandoned"
    assert (kept / run.checkpoints.path(4).name).read_bytes() == later
    assert (kept / "metrics.jsonl").read_text() == log
    assert (kept / "best.safetensors").exists()
    # And the best of the new branch is found anew.
    assert run.checkpoints.load(run.checkpoints.best_path)[0] <= 4
    assert [row["iteration"] for row in read_metrics(run.metrics)] == [0, 1, 2, 3]


def test_tasks_that_changed_since_the_checkpoint_are_refused(run: RunFolder, bandit: TaskDistribution) -> None:
    train(_agent(bandit), bandit, _CONFIG, run)
    shorter = dataclasses.replace(bandit, horizon=3)
    with pytest.raises(
        CheckpointError, match=r"with horizon = 10, but they have horizon = 3 now: did their definition change"
    ):
        train(_agent(shorter), shorter, dataclasses.replace(_CONFIG, num_iterations=6), run)
    assert run.checkpoints.iterations()[-1] == 4


def test_tasks_that_are_drawn_otherwise_than_before_are_told(run: RunFolder, bandit: TaskDistribution) -> None:
    """Of another range, with the same spaces: nobody would notice."""
    train(_agent(bandit), bandit, _CONFIG, run)
    _, content = run.checkpoints.load_latest()

    def sample(rng: np.random.Generator) -> dict[str, Any]:
        return {"probabilities": rng.uniform(0.9, 1.0, bandit.spec.action_dim)}

    narrow = dataclasses.replace(bandit, sample=sample)
    for resume in (True, False):
        with pytest.warns(RuntimeWarning, match="bandit.* draws other tasks than those that the run was trained on"):
            restore(_agent(narrow), content, narrow, _CONFIG, resume=resume)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore(_agent(bandit), content, bandit, _CONFIG, resume=True)
        del content["origin"]["draws"], content["origin"]["first_steps"]  # An older metarl did not record them.
        restore(_agent(narrow), content, narrow, _CONFIG, resume=True)


class _Lever(gym.Env[Any, Any]):
    """Rewards its action."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,))

    def __init__(self, high: float) -> None:
        self.action_space = gym.spaces.Box(-1.0, high, (2,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), float(action.sum()), False, False, {}


def _levers(high: float) -> TaskDistribution:
    return TaskDistribution("levers", lambda rng: float(rng.uniform()), lambda task: _Lever(high), horizon=3)


def test_other_bounds_of_actions_than_before_are_refused(run: RunFolder) -> None:
    """The spaces have the same sizes, and the same choice of the agent would be another action."""
    train(_agent(_levers(1.0)), _levers(1.0), _CONFIG, run)
    _, content = run.checkpoints.load_latest()
    with pytest.raises(
        CheckpointError,
        match=r"actions in \[\[-1.0, -1.0\], \[1.0, 1.0\]\], but those of levers lie in .* \[2.0, 2.0\]\] now",
    ):
        restore(_agent(_levers(2.0)), content, _levers(2.0), _CONFIG)
    restore(_agent(_levers(1.0)), content, _levers(1.0), _CONFIG)
    del content["origin"]["action_bounds"], content["origin"]["first_steps"]  # An older metarl had neither.
    restore(_agent(_levers(2.0)), content, _levers(2.0), _CONFIG)


def test_actions_without_bounds_are_saved(tmp_path: Path) -> None:
    free = _levers(math.inf)
    run = RunFolder.create(tmp_path, "free")
    train(_agent(free), free, _CONFIG, run)
    _, content = run.checkpoints.load_latest()
    assert content["origin"]["action_bounds"] == free.action_bounds == [[-1.0, -1.0], [None, None]]
    restore(_agent(free), content, free, _CONFIG)


def test_tasks_that_no_digest_can_be_made_of_are_not_told_apart(bandit: TaskDistribution, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        odd = dataclasses.replace(bandit, sample=lambda rng: file, sample_test=lambda rng: file)
        assert odd.draws is None and isinstance(bandit.draws, str)


def test_a_checkpoint_that_says_less_of_its_tasks_is_taken(run: RunFolder, bandit: TaskDistribution) -> None:
    """An older metarl did not know of actions of several parts, and has published models."""
    agent = _agent(bandit)
    train(agent, bandit, _CONFIG, run)
    _, content = run.checkpoints.load_latest()
    del content["spec"]["choices"], content["spec"]["measured"]
    again = _agent(bandit)
    restore(again, content, bandit, _CONFIG)
    for name, tensor in again.named_tensors().items():
        torch.testing.assert_close(tensor, agent.named_tensors()[name], rtol=0.0, atol=0.0)
    content["spec"]["choices"] = (2, 3)
    with pytest.raises(CheckpointError, match=r"tasks with choices = \(2, 3\), but they have choices = \(\) now"):
        restore(again, content, bandit, _CONFIG)
    with pytest.raises(ConfigError, match=r"unknown field of Spec 'obs_din'.*Did you mean 'obs_dim'"):
        restore(again, {**content, "spec": {"obs_din": 1}}, bandit, _CONFIG)
    with pytest.raises(CheckpointError, match=r"horizon = 0, but they have .*horizon = 10 now"):
        restore(again, {**content, "spec": {}}, bandit, _CONFIG)


def test_a_run_of_a_script_is_a_run(run: RunFolder, bandit: TaskDistribution) -> None:
    train(_agent(bandit), bandit, _CONFIG, run)
    again = RunFolder.open(run.path)
    assert again.read_config()["agent"] == "rl2" and again.read_manifest()["seed"] == _CONFIG.seed


def test_an_agent_for_other_spaces_is_refused_before_anything_is_written(
    run: RunFolder, bandit: TaskDistribution
) -> None:
    with pytest.raises(ConfigError, match="the agent was built for"):
        train(_agent(bandit), load_distribution("cartpole-goal"), _CONFIG, run)
    assert not run.checkpoints.folder.exists()


# Diverged simulations -----------------------------------------------------------------------------------------------


class _Sabotaged(MetaWorldVectorEnv):
    """Instance 1 gets an action that is not a number in the third step of every episode: its simulation diverges."""

    def reset(self, **keywords: Any) -> Any:
        self.steps = 0
        return super().reset(**keywords)

    def step(self, actions: Any) -> Any:
        self.steps += 1
        actions = actions.copy()
        if self.steps == 3:
            actions[1] = math.nan
        with unchecked_actions():
            return super().step(actions)


def _diverging(name: str) -> TaskDistribution:
    """One in three episodes of the countdown, or of Meta-World's pool one in each rollout."""
    if name == "countdown":

        def sample(rng: np.random.Generator) -> dict[str, float]:
            return countdown_task(rng) | {"length": 8.0, "diverges_at": float(rng.choice([-1.0, -1.0, 2.0]))}

        return dataclasses.replace(countdown(discrete=False), sample=sample)

    def sample_reach(rng: np.random.Generator) -> dict[str, Any]:
        return {"env_name": "reach-v3", "rand_vec": np.array([0.0, 0.6, 0.02, *rng.uniform([-0.1, 0.8, 0.05], 0.9)])}

    return TaskDistribution(
        id="diverging", sample=sample_reach, make_vector=partial(_Sabotaged, num_workers=1), horizon=12
    )


@pytest.mark.parametrize("name", ["countdown", "metaworld"])
@pytest.mark.parametrize(
    "config", [_AGENT, MAMLTRPOConfig(hidden_sizes=(4,), rollouts_per_task=2, cg_iterations=2)], ids=["rl2", "maml"]
)
def test_diverged_simulations_are_counted_and_training_goes_on(run: RunFolder, config: AgentConfig, name: str) -> None:
    distribution = _diverging(name)
    agent = config.build(distribution.spec, torch.device("cpu"), 1)
    before = {name: tensor.clone() for name, tensor in agent.named_tensors().items()}
    assert train(agent, distribution, dataclasses.replace(_CONFIG, num_iterations=2), run)
    counted = [entry["train/invalid_episodes"] for entry in read_metrics(run.metrics)]
    tensors = agent.named_tensors()
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in tensors.items())
    evaluation = evaluate(agent, distribution, num_tasks=6, seed=5)
    num_rollouts = agent.num_adaptations + 1
    if name == "metaworld":
        assert counted == [num_rollouts] * 2
        assert evaluation.num_invalid == evaluation.returns.shape[1]
    else:
        tasks = [distribution.sample_meta_batch(4, numpy_stream(_CONFIG.seed, "tasks", i)) for i in range(2)]
        per_task = num_rollouts * agent.rollouts_per_task
        assert counted == [per_task * sum(task["diverges_at"] == 2.0 for task in batch) for batch in tasks]
        assert sum(counted) > 0


def test_simulations_that_stay_stable_count_no_invalid_episode(run: RunFolder, bandit: TaskDistribution) -> None:
    assert train(_agent(bandit), bandit, _CONFIG, run)
    assert [entry["train/invalid_episodes"] for entry in read_metrics(run.metrics)] == [0.0] * 4
