"""A recorded config is the one that acts: what can be set changes something, and what is fixed is recorded true."""

from __future__ import annotations

import dataclasses
import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from helpers.countdown import countdown
from helpers.reference_recurrent_ppo import CPU, TASKS
from helpers.settings import committed_scores, hints, is_fixed, settable

from metarl.agent import AgentConfig
from metarl.agents import AGENTS, FOMAMLConfig, GradientAgent, MAMLTRPOConfig, MetaLSTMConfig, PretrainedConfig
from metarl.cli import main
from metarl.config import from_dict
from metarl.errors import ConfigError
from metarl.experiments import Setup
from metarl.rollouts.collector import Collector
from metarl.rollouts.trial import run_trial

SMALL: dict[str, Any] = {
    "hidden_sizes": (5,),
    "hidden_size": 5,
    "decoder_sizes": (4,),
    "rollouts_per_task": 3,
    "num_epochs": 2,
    "init_std": 0.9,
}
OTHER: dict[str, Any] = {
    "clip_range": 1e-3,
    "max_grad_norm": 1e-3,
    "num_minibatches": 1,
    "vae_batch_size": 2,
    "num_elbo_terms": 1,
    "bptt_steps": 2,
    "target_kl": 1e-9,
    "num_heads": 2,
    "head": "hypernetwork",
}
"""Values that act on so little data; elsewhere any other value does."""
BESIDE: dict[str, dict[str, Any]] = {
    "target_kl": {"adaptive_kl": True},
    "fisher_metric": {"first_order": False},
    "backtrack_ratio": {"max_kl": 50.0},
    "max_backtracks": {"max_kl": 50.0, "max_backtracks": 1},
    **{name: {"memory": "transformer", "hidden_size": 8} for name in ("num_layers", "num_heads", "context_steps")},
    "precision": {"memory": "lstm"},
    "head": {"head": "state", "head_sizes": (4,)},
    "head_sizes": {"head": "state", "head_sizes": (4,)},
    "code_size": {"head": "hypernetwork", "head_sizes": (4,)},
}
"""Settings with which another one acts."""


def configured(agent: str, **settings: Any) -> AgentConfig:
    names = hints(AGENTS[agent])
    return AGENTS[agent](**{name: value for name, value in (SMALL | settings).items() if name in names})


def another(value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, 3)
    return value + 1 if isinstance(value, int) else 0.5 * value


@cache
def behaviour(config: AgentConfig) -> list[Any]:
    """All that can be seen of two iterations, and of acting after more adaptations than those of an evaluation."""
    distribution = countdown(False)
    agent = config.build(distribution.spec, CPU, 0)
    collector = Collector(distribution, agent.rollouts_per_task, CPU)
    found: list[Any] = [agent.num_adaptations, agent.num_eval_adaptations]
    for iteration in range(2):
        trial = run_trial(agent, collector, TASKS, agent.num_adaptations, iteration)
        found += [rollout.actions.tolist() for rollout in trial.rollouts]
        found.append(agent.meta_update(trial))
    found.append({name: tensor.tolist() for name, tensor in agent.named_tensors().items()})
    rollout = trial.rollouts[0]
    state = agent.begin(len(TASKS))
    for _ in range(agent.num_eval_adaptations + 1):
        state = agent.adapt(state, rollout)
    found.append(agent.act(state, rollout.timesteps[:, :, 0], deterministic=True)[0].value.tolist())
    if isinstance(agent, GradientAgent):
        meta = agent.meta_gradient
        found.append(len(meta.chunks([meta.batch(rollout)])))
    return found


@pytest.mark.parametrize(("agent", "name"), settable(AGENTS, fixed=False))
def test_every_setting_changes_what_the_agent_does(agent: str, name: str) -> None:
    """One that did not, as FOMAML's ``first_order`` once, would be recorded with a value that means nothing."""
    base = configured(agent, **BESIDE.get(name, {}))
    value = getattr(base, name)
    changed = dataclasses.replace(base, **{name: OTHER.get(name, another(value, hints(AGENTS[agent])[name]))})
    assert behaviour(changed) != behaviour(base)


@pytest.mark.parametrize(("agent", "name"), settable(AGENTS, fixed=True))
def test_what_an_algorithm_fixes_cannot_be_set(
    agent: str, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Neither in Python nor on the command line, and it is recorded."""
    kind = AGENTS[agent]
    (value,) = get_args(hints(kind)[name])
    assert dataclasses.asdict(kind())[name] == value
    other = not value if isinstance(value, bool) else 1 if value == 0 else "other"
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{name} must be {value!r}, which is fixed here, got"):
        kind(**{name: other})
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(SystemExit, match="2"):
        main(["train", agent, "navigation-2d", "--runs", str(tmp_path), flag, str(other)])
    told = capsys.readouterr().err
    assert flag in told and str(other) in told and str(value) in told
    assert not list(tmp_path.iterdir())


def test_no_first_order_is_refused_with_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "fomaml", "navigation-2d", "--no-first-order"])
    told = capsys.readouterr().err
    assert "Unrecognized options: --no-first-order" in told and "--first-order {True}" in told


@pytest.mark.parametrize("kind", [FOMAMLConfig, MetaLSTMConfig])
def test_the_recorded_settings_are_those_with_which_maml_does_the_same(kind: type[AgentConfig]) -> None:
    settings = dataclasses.asdict(kind(**{"hidden_sizes": (5,), "rollouts_per_task": 3}))
    assert behaviour(MAMLTRPOConfig(**settings)) == behaviour(kind(**settings))
    settings["first_order"] = False
    assert behaviour(MAMLTRPOConfig(**settings)) != behaviour(MAMLTRPOConfig(**settings | {"first_order": True}))


@pytest.mark.parametrize("name", AGENTS)
def test_the_recorded_number_of_adaptations_is_that_of_training(name: str) -> None:
    config = configured(name)
    assert config.build(countdown(False).spec, CPU, 0).num_adaptations == config.num_adaptations
    if name in ("pretrained", "oracle"):
        assert dataclasses.asdict(config)["num_inner_steps"] == config.num_adaptations == 0


# Older runs -----------------------------------------------------------------------------------------------------------


SCORES = committed_scores("agent")


@pytest.mark.parametrize("path", SCORES, ids=lambda path: path.stem)
def test_the_config_of_every_committed_score_opens(path: Path) -> None:
    """Under older names too, without a warning, and with the values that it has under any name."""
    content = json.loads(path.read_text())["config"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setup = Setup.from_json(content)
        agent, train_config, config = setup.name, setup.train_config, setup.agent_config
    assert train_config.seed == content["train"]["seed"]
    assert type(config) is AGENTS[agent]
    recorded = dataclasses.asdict(config)
    for name, value in content[agent].items():
        name = config.renamed.get(name, name)
        if name in config.retired and name not in ("first_order", "num_inner_steps"):
            continue
        if agent == "reptile" and name == "first_order":
            continue  # Recorded as false, and never looked at.
        assert recorded[name] == (tuple(value) if isinstance(value, list) else value), name


def test_committed_scores_are_of_every_kind() -> None:
    agents = {json.loads(path.read_text())["config"]["agent"] for path in SCORES}
    assert agents == set(AGENTS) - {"random"}


@pytest.mark.parametrize(
    ("agent", "old"),
    [
        ("fomaml", {"first_order": False, "metric": "full", "compile": False}),
        ("pretrained", {"num_inner_steps": 3, "first_order": True, "metric": "first_order", "compile": False}),
        ("oracle", {"num_inner_steps": 1, "first_order": False, "metric": "full"}),
        ("reptile", {"first_order": False, "compile": False}),
        ("snail", {"bptt_steps": 0, "encoder_sizes": [], "precision": "float32"}),
    ],
)
def test_values_that_never_acted_are_passed_over(agent: str, old: dict[str, Any]) -> None:
    assert from_dict(AGENTS[agent], old) == AGENTS[agent]()


def test_a_retired_setting_that_acted_is_passed_over_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="MAMLTRPOConfig has no compile any more: True is passed over"):
        assert from_dict(MAMLTRPOConfig, {"compile": True}) == MAMLTRPOConfig()


def test_a_fixed_setting_is_refused_where_no_older_file_explains_it() -> None:
    with pytest.raises(ConfigError, match=r"MetaSGDConfig\.inner_rule must be of the type Literal\['sgd'\]"):
        from_dict(AGENTS["meta-sgd"], {"inner_rule": "ravi-lstm"})
    with pytest.raises(ConfigError, match=r"RL2Config\.meta_lr is given twice"):
        from_dict(AGENTS["rl2"], {"meta_lr": 1e-3, "learning_rate": 1e-3})


RENAMED = [(agent, *names) for agent, kind in AGENTS.items() for names in kind.renamed.items()]


@pytest.mark.parametrize(("agent", "old", "new"), RENAMED)
def test_old_names_are_read_from_files_and_flags(
    agent: str, old: str, new: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kind = AGENTS[agent]
    if not is_fixed(hints(kind)[new]):
        value = another(getattr(kind(), new), hints(kind)[new])
        assert getattr(from_dict(kind, {old: value}), new) == value
        flag = f"--{old.replace('_', '-')}"
        with pytest.raises(SystemExit, match="2"):
            main(["train", agent, "navigation-2d", "--runs", str(tmp_path), flag, "x"])
        told = capsys.readouterr().err
        # The value is refused, not the flag.
        assert "'x'" in told and "Unrecognized" not in told


def test_the_reference_of_any_maml_agent_takes_its_settings() -> None:
    config = from_dict(PretrainedConfig, dataclasses.asdict(MAMLTRPOConfig(num_inner_steps=3, inner_lr=0.7)))
    assert config == PretrainedConfig(inner_lr=0.7)
    assert torch.equal(
        *(k.build(countdown(True).spec, CPU, 3).policy.get_parameter("w0") for k in (config, MAMLTRPOConfig()))
    )
