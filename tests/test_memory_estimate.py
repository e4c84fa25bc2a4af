"""Settings that ask for more memory than there is are refused before anything runs, by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import metarl, refused

from metarl.agents import AGENTS, MAMLTRPOConfig
from metarl.config import TrainConfig
from metarl.errors import ConfigError
from metarl.experiments import Setup
from metarl.experiments.memory import available_bytes, estimate, require_memory
from metarl.experiments.presets import PRESETS
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial
from metarl.tasks.registry import load_distribution
from metarl.types import Spec


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            "maml-trpo bandit --hidden-sizes 100000000 100000000",
            r"networks need at least [\d,]+\.\d GiB \(hidden_sizes",
        ),
        ("rl2 bandit --hidden-size 100000000", "hidden_size = 100000000"),
        ("maml-trpo bandit --meta-batch-size 100000000000", "meta_batch_size = 100000000000"),
        ("maml-trpo bandit --eval-tasks 100000000000", "eval_tasks = 100000000000"),
        ("maml-trpo bandit --rollouts-per-task 100000000000", "rollouts_per_task = 100000000000"),
        ("rl2 bandit --episodes-per-trial 100000000000", "rollouts of a trial = 100000000000"),
        ("rl2 bandit --bptt-steps 100000000000", "pieces of trials need at least .*bptt_steps = 100000000000"),
    ],
)
def test_too_much_is_refused_with_setting_estimate_and_what_there_is(
    words: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(f"train {words} --device cpu", capsys)

    assert re.search(named, text)
    assert re.search(r"all together [\d,]+\.\d GiB, but [\d,]+\.\d GiB are available \(cpu\)", text)


def test_too_much_is_refused_on_resume_too_and_leaves_the_run_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    small = "--hidden-size 4 --meta-batch-size 2 --num-minibatches 1 --eval-tasks 2 --num-iterations 1"
    assert metarl(f"train rl2 bandit --device cpu {small}") == 0
    config = Path("runs/rl2-bandit-seed1/config.json")
    before = config.read_bytes()
    text = refused("train --resume runs/rl2-bandit-seed1 --num-iterations 2 --eval-tasks 100000000000", capsys)
    assert re.search(r"rollouts need at least [\d,]+\.\d GiB \(eval_tasks = 100000000000", text)
    assert config.read_bytes() == before


@pytest.mark.parametrize("name", ["maml-trpo", "rl2", "varibad"])
def test_what_a_trial_s_rollouts_take_is_no_less_than_the_estimate(name: str) -> None:
    """An estimate that is too high would refuse what works."""
    distribution = load_distribution("cartpole-goal")
    config = AGENTS[name]()
    agent = config.build(distribution.spec, torch.device("cpu"), 1)
    collector = Collector(distribution, agent.rollouts_per_task, agent.device)
    tasks = distribution.sample_meta_batch(2, np.random.default_rng(0))
    trial = run_trial(agent, collector, tasks, agent.num_adaptations, 0)
    collector.close()
    taken = steps = 0
    for rollout in trial.rollouts:
        seen = rollout.timesteps
        tensors = [seen.obs, seen.prev_action, seen.prev_reward, rollout.actions, rollout.log_probs, rollout.rewards]
        taken += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        steps += rollout.valid.numel()
    share = next(share for share in estimate(config, distribution.spec, 2) if share.what == "rollouts")
    full = 2 * agent.rollouts_per_task * (agent.num_adaptations + 1) * distribution.spec.horizon
    # Rollouts end with their longest episode; an action's index takes eight bytes.
    assert share.num_bytes * steps / full <= taken <= 1.5 * share.num_bytes * steps / full

    parameters = sum(tensor.numel() * tensor.element_size() for tensor in agent.named_tensors().values())
    networks = next(share for share in estimate(config, distribution.spec, 0) if share.what == "networks")
    assert 0 < networks.num_bytes <= parameters


def test_every_preset_fits_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarl.experiments.memory.available_bytes", lambda device: 4 * 2**30)
    spec = Spec(obs_dim=39, action_dim=4, discrete=False, horizon=500)
    for name, preset in PRESETS.items():
        kind = AGENTS[name.split(":")[0]]
        config = kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in preset.agent.items()})
        require_memory(config, spec, TrainConfig(**preset.train).meta_batch_size, torch.device("cpu"))


def test_the_limit_of_a_control_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 7 kB\nSwapFree: 1 kB", "/sys/fs/cgroup/memory.max": "max"}

    def read_text(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert available_bytes(torch.device("cpu")) == 8 * 1024
    files["/sys/fs/cgroup/memory.max"] = "5000"
    assert available_bytes(torch.device("cpu")) == 5000


def test_a_setup_is_checked_before_its_network_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAMLTRPOConfig, "build", lambda *args: pytest.fail("built"))
    with pytest.raises(ConfigError, match="networks need at least"):
        Setup("maml-trpo", "bandit", TrainConfig(), MAMLTRPOConfig(hidden_sizes=(10**9, 10**9))).check()
