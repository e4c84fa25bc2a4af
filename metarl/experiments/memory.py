"""What the settings of an agent ask of memory, estimated before anything runs."""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch

from metarl.agent import AgentConfig
from metarl.runs.memory import Share, available_bytes, require_available
from metarl.types import Spec

_BYTES = 4
"""Of a float32."""


def require_memory(
    config: AgentConfig,
    spec: Spec,
    num_tasks: int,
    device: torch.device,
    tasks_setting: str = "meta_batch_size",
    rollouts_per_task: int | None = None,
    num_adaptations: int | None = None,
) -> None:
    """Refuse settings whose trials cannot fit into the memory that is free now.

    The estimate leaves out whatever depends on the algorithm, such as what is kept for derivatives: it is what the
    trials take at least, and what it lets pass may be too large even so.

    Args:
        config: settings of the agent.
        spec: sizes of observations and actions, and the horizon.
        num_tasks: tasks of a trial.
        device: where tensors live.
        tasks_setting: the name of ``num_tasks``, for the message.
        rollouts_per_task: default: as in training.
        num_adaptations: default: as in training.

    Raises:
        ConfigError: naming the settings, the estimate and what is available.
    """
    shares = estimate(config, spec, num_tasks, tasks_setting, rollouts_per_task, num_adaptations)
    require_available(shares, available_bytes(device), device)


def estimate(
    config: AgentConfig,
    spec: Spec,
    num_tasks: int,
    tasks_setting: str = "meta_batch_size",
    rollouts_per_task: int | None = None,
    num_adaptations: int | None = None,
) -> list[Share]:
    """What a trial holds at least; arguments as for :func:`require_memory`."""
    per_task = config.rollouts_per_task if rollouts_per_task is None else rollouts_per_task
    num_rollouts = 1 + (config.num_adaptations if num_adaptations is None else num_adaptations)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    widths = {name: value for name, value in fields.items() if name.endswith("_sizes") and value}
    sizes = {name: value for name, value in fields.items() if name.endswith("_size") and "batch" not in name}
    parameters = sum(
        spec.obs_dim * layers[0] + sum(left * right for left, right in itertools.pairwise(layers))
        if name == "hidden_sizes"
        else sum(left * right for left, right in itertools.pairwise(layers))
        for name, layers in widths.items()
    )
    parameters += sum(size * size for name, size in sizes.items() if name == "hidden_size")
    networks = dict(widths | sizes)
    # Memory agents share their parameters among tasks, and those of the others are adapted to each of them.
    if config.adapts_by == "gradient step" and num_rollouts > 1 and widths:
        parameters *= 1 + num_tasks
        networks[tasks_setting] = num_tasks
    episodes = {
        tasks_setting: num_tasks,
        "rollouts_per_task": per_task,
        "rollouts of a trial": num_rollouts,
        "horizon": spec.horizon,
    }
    slots = num_tasks * per_task
    steps = slots * num_rollouts * spec.horizon
    # Observation, action before and after, reward before and after, log-probability; flags are left out.
    per_step = _BYTES * (spec.obs_dim + spec.action_dim + math.prod(spec.action_shape) + 3)
    shares = [
        Share("networks", networks, _BYTES * parameters),
        Share("rollouts", episodes, steps * per_step),
    ]
    if pieces := fields.get("bptt_steps", 0):
        # The last piece of a trial is filled up.
        padded = slots * max(0, pieces - num_rollouts * spec.horizon)
        shares.append(Share("pieces of trials", {"bptt_steps": pieces, tasks_setting: num_tasks}, padded * per_step))
    return shares
