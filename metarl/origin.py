"""What a run is of: its agent, the agent's settings, its tasks and its seed, by name and for comparison.

A run's config.json names them, so that another process can build the agent again. Each checkpoint carries them too,
since tensors of the right shapes do not tell whose they are.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from metarl.agent import Agent, AgentConfig
from metarl.agents import AGENTS
from metarl.agents.registry import agent_name
from metarl.config import TrainConfig, fixed_settings, from_dict, run_config
from metarl.errors import ConfigError
from metarl.rollouts.first_steps import difference, first_steps
from metarl.runs.files import typed
from metarl.runs.outer_loop import require_same_run
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.registry import distribution_name
from metarl.types import Timestep


def describe_origin(agent: Agent[Any], distribution: TaskDistribution, config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint says of the run that it belongs to.

    Args:
        agent: one without a config has neither a name nor settings here.
        distribution: its tasks, told by their id.
        config: settings of the outer loop; those that may change are left out.
    """
    return {
        **_names(agent, distribution, config),
        "draws": distribution.draws,
        "action_bounds": distribution.action_bounds,
        "first_steps": first_steps(distribution),
    }


def _names(agent: Agent[Any], distribution: TaskDistribution, config: TrainConfig) -> dict[str, Any]:
    settings = agent.config if isinstance(agent.config, AgentConfig) else None
    return {
        "agent": None if settings is None else _kind(settings),
        "settings": None if settings is None else dataclasses.asdict(settings),
        "tasks": distribution.id,
        "train": fixed_settings(config),
    }


def require_same_origin(
    saved: Mapping[str, Any] | None, agent: Agent[Any], distribution: TaskDistribution, config: TrainConfig
) -> None:
    """Refuse the checkpoint of another run.

    Args:
        saved: what :func:`describe_origin` said when the checkpoint was saved; None for one of an older metarl, which
            is taken with a warning.
        agent: that is to get its state.
        distribution: its tasks.
        config: settings of the outer loop.

    Raises:
        CheckpointError: if agent, settings, tasks or seed differ, naming what was saved and what is here.
    """
    if saved is None:
        warnings.warn(
            "the checkpoint is of an older metarl, which did not record agent, settings, tasks and seed: that it "
            "belongs to this run was not checked.",
            RuntimeWarning,
            stacklevel=4,
        )
        return
    where = "the checkpoint's origin"
    here = _names(agent, distribution, config)
    pairs = [("agent", saved.get("agent"), here["agent"]), ("tasks", saved.get("tasks"), here["tasks"])]
    pairs += [(name, value, here["train"].get(name)) for name, value in typed(saved, "train", dict, where).items()]
    if isinstance(agent.config, AgentConfig) and saved.get("agent") == here["agent"]:
        then = dataclasses.asdict(from_dict(type(agent.config), typed(saved, "settings", dict, where)))
        pairs += [(name, then[name], value) for name, value in here["settings"].items()]
    different = [
        f"{name} is {then!r} there and {now!r} here"
        for name, then, now in pairs
        # A script's agent need not have a config.
        if then != now and not (name == "agent" and None in (then, now))
    ]
    require_same_run(different)


def warn_of_other_tasks(saved: Mapping[str, Any], distribution: TaskDistribution) -> bool:
    """Warn if tasks of the same name are not those that a run was trained on; an older metarl recorded less of them.

    Args:
        saved: what :func:`describe_origin` said when the checkpoint was saved.
        distribution: of that name, today.

    Returns:
        Whether it warned.
    """
    draws = saved.get("draws")
    steps = typed(saved, "first_steps", list, "the checkpoint's origin") if saved.get("first_steps") else None
    problem: str | None = None
    if draws is not None and distribution.draws not in (None, draws):
        problem = (
            "draws other tasks than those that the run was trained on: its definition was changed, or it draws from "
            "something else than its rng, or another version of a library draws otherwise"
        )
    elif steps is not None and (now := first_steps(distribution)) is not None and (found := difference(steps, now)):
        problem = (
            "does something else than when the run was trained: in the first steps of one task, by the same seed and "
            f"actions, {found}. The environment's code was changed, or a library that simulates it"
        )
    if problem is not None:
        warnings.warn(
            f"{distribution.id} {problem}. What is learned or measured from here on is on the tasks of today.",
            RuntimeWarning,
            stacklevel=3,
        )
    return problem is not None


def _kind(config: AgentConfig) -> str:
    """The agent's name, or for a user's own its class alone: the module has another name in the script that trains."""
    return next((name for name, kind in AGENTS.items() if kind is type(config)), type(config).__qualname__)


def find_names(agent: Agent[Any], distribution: TaskDistribution, config: TrainConfig) -> dict[str, Any]:
    """The content of config.json for a script's run: names of agent and tasks, or why they have none."""
    names: dict[str, str] = {}
    not_found: dict[str, str] = {}
    finders: dict[str, Callable[[], str]] = {
        "agent": lambda: _name_agent(agent),
        "tasks": lambda: distribution_name(distribution),
    }
    for part, find in finders.items():
        try:
            names[part] = find()
        except ConfigError as error:
            not_found[part] = str(error)
    settings = agent.config if isinstance(agent.config, AgentConfig) else None
    return run_config(names.get("agent"), names.get("tasks"), config, settings, not_found)


def _name_agent(agent: Agent[Any]) -> str:
    """The name under which ``agent`` can be built again.

    Raises:
        ConfigError: saying why it cannot.
    """
    config = agent.config
    if not isinstance(config, AgentConfig):
        raise ConfigError(f"its class, {type(agent).__name__}, carries no config to build it from")
    name = agent_name(config)
    again = config.build(agent.spec, agent.device, 0)
    # A script may have given it another policy or outer update, which nobody would notice later on.
    theirs, ours = vars(again) | {"class": again}, vars(agent) | {"class": agent}
    for part in theirs.keys() & ours.keys():
        there, here = type(theirs[part]), type(ours[part])
        if there is not here and type(None) not in (there, here):
            raise _other_agent(config, f"{part} is a {there.__name__} there and a {here.__name__} here")
    for count in ("num_adaptations", "rollouts_per_task", "num_eval_adaptations"):
        if theirs[count] != ours[count]:
            raise _other_agent(config, f"{count} is {theirs[count]!r} there and {ours[count]!r} here")
    try:
        again.load_module_state_dict(agent.module_state_dict())
    except (KeyError, RuntimeError, ValueError) as error:
        raise _other_agent(config, f"its parameters do not fit: {error}") from error
    for one, other in zip(_acts(again), _acts(agent), strict=True):
        if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise _other_agent(config, "with the same parameters it acts otherwise")
    return name


def _other_agent(config: AgentConfig, how: str) -> ConfigError:
    return ConfigError(f"its config, a {type(config).__name__}, builds another agent: {how}")


@torch.no_grad()
def _acts(agent: Agent[Any], num_steps: int = 3) -> list[Tensor]:
    """What an agent does in the first steps of a trial whose observations and rewards are noise.

    Raises:
        ConfigError: if it cannot.
    """
    spec, device = agent.spec, agent.device
    noise = torch.Generator().manual_seed(0)
    nothing, zero = torch.zeros(1, 1, spec.action_dim, device=device), torch.zeros(1, 1, device=device)
    valid = torch.ones(1, 1, dtype=torch.bool, device=device)
    agent.seed(0)  # As happens before every trial.
    found = []
    try:
        state = agent.begin(1)
        for step in range(num_steps):
            obs = torch.randn(1, 1, spec.obs_dim, generator=noise).to(device)
            reward = torch.randn(1, 1, generator=noise).to(device) if step else zero
            action, state = agent.act(state, Timestep(obs, nothing, reward, zero, valid), deterministic=True)
            found += [action.value.double(), action.log_prob.double()]
    except Exception as error:
        raise ConfigError(f"it cannot act on noise, by which agents are compared: {error!r}") from error
    return found
