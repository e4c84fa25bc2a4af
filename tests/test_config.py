"""Settings that cannot work are refused where they are made, and come back from JSON as they were."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, get_type_hints

import pytest
import torch

from metarl.agent import AgentConfig
from metarl.agents import AGENTS, MAMLTRPOConfig, PretrainedConfig, RandomConfig, RL2Config, VariBADConfig
from metarl.config import TrainConfig, choose_device, from_dict
from metarl.distributed import Group, using
from metarl.errors import ConfigError, unknown_name

_KINDS: list[type[Any]] = [TrainConfig, *AGENTS.values()]


def _hints(kind: type[Any]) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(kind).items() if hint in (int, float)}


_NUMBERS = [(kind, name) for kind in _KINDS for name in _hints(kind)]
_ALL_IF_ZERO = ("num_elbo_terms", "num_decoded_steps")
_COUNTS_AND_RATES = [
    (kind, name)
    for kind, name in _NUMBERS
    if name not in _ALL_IF_ZERO
    and re.search(r"^(num|max|keep)_|_(lr|rate|size|every|per_task|per_trial|tasks|iterations|backtracks|std)$", name)
]


@pytest.mark.parametrize(("kind", "name"), _NUMBERS)
def test_a_negative_number_is_refused_by_name(kind: type[Any], name: str) -> None:
    for value in (-1, -0.5, -math.inf):
        with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{name} must .*, got {value!r}"):
            kind(**{name: value})


@pytest.mark.parametrize(("kind", "name"), _COUNTS_AND_RATES)
def test_a_count_or_rate_of_zero_is_refused_by_name(kind: type[Any], name: str) -> None:
    for value in (0, -0.0, True, math.inf, math.nan, None, "1"):
        with pytest.raises(
            ConfigError, match=rf"{kind.__name__}\.{name} must be a (finite|whole) number above 0, got {value!r}"
        ):
            kind(**{name: value})


@pytest.mark.parametrize("name", _ALL_IF_ZERO)
def test_a_count_whose_zero_means_all_is_refused_otherwise(name: str) -> None:
    assert getattr(VariBADConfig(**{name: 0}), name) == 0
    values: tuple[Any, ...] = (True, 0.5, math.inf, math.nan, None, "1")
    for value in values:
        with pytest.raises(ConfigError, match=rf"VariBADConfig\.{name} must be a whole number .*, got {value!r}"):
            VariBADConfig(**{name: value})


def test_a_count_must_be_whole() -> None:
    with pytest.raises(ConfigError, match=r"TrainConfig\.num_iterations must be a whole number above 0, got 2\.5"):
        TrainConfig(num_iterations=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 0.5, None, "1"])
def test_a_seed_must_be_a_natural_number(seed: Any) -> None:
    with pytest.raises(ConfigError, match=r"TrainConfig\.seed must be a whole number of 0 or more"):
        TrainConfig(seed=seed)


def test_negative_chunks_and_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task_chunk must be a whole number of 0 or more, got -1"):
        MAMLTRPOConfig(task_chunk=-1)
    with pytest.raises(ConfigError, match=r"hidden_sizes must be a tuple of whole numbers above 0, got \(8, 0\)"):
        MAMLTRPOConfig(hidden_sizes=(8, 0))


def test_an_unknown_device_is_refused_with_the_choices() -> None:
    with pytest.raises(
        ConfigError,
        match=r"TrainConfig\.device must be one of auto, cpu, cuda, .*cuda:7, got 'cudo'\. Did you mean 'cuda'\?",
    ):
        TrainConfig(device="cudo")  # type: ignore[arg-type]


def test_the_device_is_what_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="torch sees no CUDA device here"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")


def test_one_of_several_devices_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device 'cuda:1' was asked for, but torch sees no CUDA device"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(TrainConfig(device="cuda:1").device) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="device 'cuda:2' was asked for, but torch sees 2, cuda:0 to cuda:1"):
        choose_device("cuda:2")
    every = "'cuda:1' would be that of every rank; with 'cuda' each takes one"
    with using(Group(0, 2)), pytest.raises(ConfigError, match=every):
        choose_device("cuda:1")


@pytest.mark.parametrize(
    "config", [TrainConfig(seed=3, device="cpu"), PretrainedConfig(hidden_sizes=(3, 4, 5)), RL2Config(), RandomConfig()]
)
def test_a_config_comes_back_from_json(config: TrainConfig | AgentConfig) -> None:
    assert from_dict(type(config), json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_missing_fields_keep_their_defaults() -> None:
    assert from_dict(TrainConfig, {"seed": 5}) == TrainConfig(seed=5)


def test_an_unknown_field_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown field of MAMLTRPOConfig 'iner_lr'\. Did you mean 'inner_lr'\?"):
        from_dict(MAMLTRPOConfig, {"iner_lr": 1.0})


@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [
        (MAMLTRPOConfig, "hidden_sizes", 5, "tuple[int, ...], got 5."),
        (MAMLTRPOConfig, "hidden_sizes", [64, "64"], 'tuple[int, ...], got [64, "64"].'),
        (MAMLTRPOConfig, "inner_lr", "0.1", 'float, got "0.1".'),
        (MAMLTRPOConfig, "inner_lr", None, "float, got null."),
        (RL2Config, "memory", "gruu", "Literal['gru', 'lstm', 'transformer'], got \"gruu\"."),
        (RL2Config, "num_epochs", 2.5, "int, got 2.5."),
        (TrainConfig, "seed", {}, "int, got {}."),
    ],
)
def test_a_value_of_another_kind_is_refused(
    kind: type[TrainConfig | AgentConfig], name: str, value: object, expected: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{kind.__name__}.{name} must be of the type {expected}")):
        from_dict(kind, {name: value})


def test_large_groups_of_names_are_not_listed_one_by_one() -> None:
    names = [f"ml1/task-{number}" for number in range(50)] + ["bandit", "mine/a"]
    message = str(unknown_name("task distribution", "ml1/task-x", names))
    assert "Did you mean 'ml1/task-" in message
    assert message.endswith("Valid choices: bandit, mine/a, ml1/... (50 of them).")
