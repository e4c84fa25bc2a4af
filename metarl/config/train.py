"""Settings of a training run, and what stands in its ``config.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metarl.config.settings import Count, Device, Seed, check_settings
from metarl.distributed import current, device_of_rank
from metarl.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the outer loop, the same for every agent."""

    seed: Seed = 1
    """Seed for parameters, tasks, environments and actions; the same seed gives the same run, bit for bit."""
    device: Device = "auto"
    """Where networks run; auto takes CUDA if there is any."""
    num_iterations: Count = 100
    """Meta-updates."""
    meta_batch_size: Count = 20
    """Tasks in one meta-update."""
    eval_every: Count = 25
    """Iterations between evaluations on held-out tasks."""
    eval_tasks: Count = 40
    """Held-out tasks in an evaluation."""
    checkpoint_every: Count = 5
    """Iterations between checkpoints."""
    keep_checkpoints: Count = 3
    """Newest checkpoints to keep; the best one is kept as well."""

    def __post_init__(self) -> None:
        check_settings(self)


FREE_ON_RESUME = ("device", "num_iterations", "eval_every", "eval_tasks", "checkpoint_every", "keep_checkpoints")
"""Fields of :class:`TrainConfig` that may change while a run goes on; the others decide what it learns."""


def fixed_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings of the outer loop that a run keeps."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_ON_RESUME}


def require_kept(before: Mapping[str, Any], after: Mapping[str, Any], run: Path, whose: str) -> None:
    """Refuse other settings than a run was begun with.

    Args:
        before: what it must keep, by name.
        after: what is asked for now.
        run: its folder.
        whose: settings they are besides the outer loop's, e.g. ``"agent's"``.

    Raises:
        ConfigError: for the first that differs.
    """
    for name, value in before.items():
        if after[name] != value:
            raise ConfigError(
                f"a run that is resumed keeps its seed, meta-batch and {whose} settings: {name} is {value!r} in {run}, "
                f"got {after[name]!r}. Leave it out, or start a new run."
            )


def choose_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ConfigError: for CUDA on a machine without it, or with fewer devices than ranks; for a number that no device
            has, or one that all ranks would share.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but torch sees no CUDA device here. Use cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return device_of_rank()
    device, count = torch.device(name), torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"device {name!r} was asked for, but torch sees {count}, cuda:0 to cuda:{count - 1}.")
    if device.index is not None and current().world_size > 1:
        raise ConfigError(f"device {name!r} would be that of every rank; with 'cuda' each takes one of its own.")
    return device


def run_config(
    agent: str | None,
    tasks: str | None,
    train: TrainConfig,
    settings: Any,
    not_found: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What stands in the ``config.json`` of a run.

    Args:
        agent: name or ``module:attribute`` of the agent; None for an agent that cannot be found by a name.
        tasks: id or ``module:attribute`` of the distribution; None as for the agent.
        train: settings of the outer loop.
        settings: the agent's config, a dataclass; they stand under the agent's name, or under ``"settings"`` where
            that is None. None for an agent without a config.
        not_found: for ``"agent"`` and ``"tasks"`` the reason why they have no name.
    """
    return {
        "agent": agent,
        "tasks": tasks,
        "train": dataclasses.asdict(train),
        **({} if settings is None else {agent or "settings": dataclasses.asdict(settings)}),
        **({"not_found": dict(not_found)} if not_found else {}),
    }
