"""Upstream, the package ``metaworld``: imported when it is needed, its environments, and what it calls its versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pickle
from typing import Any, Literal

import numpy as np

from metarl.envs.mujoco_graphics import choose_backend, import_mujoco
from metarl.errors import missing_extra, unknown_name
from metarl.types import Task

RewardVersion = Literal["v1", "v2"]

HORIZON = 500
"""Steps in an episode."""

_SHORT_NAMES = (
    "assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall button-press "
    "button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open "
    "door-unlock hand-insert drawer-close drawer-open faucet-open faucet-close hammer handle-press-side "
    "handle-press handle-pull-side handle-pull lever-pull pick-place-wall pick-out-of-hole reach push-back push "
    "pick-place plate-slide plate-slide-side plate-slide-back plate-slide-back-side peg-insert-side "
    "peg-unplug-side soccer stick-push stick-pull push-wall reach-wall shelf-place sweep-into sweep window-open "
    "window-close"
)

TASK_NAMES = tuple(f"{name}-v3" for name in _SHORT_NAMES.split())
"""Upstream's 50 tasks."""

_REWARD_VERSIONS = ("v1", "v2")


def upstream() -> Any:
    """Upstream, imported when it is needed: that takes 0.4 s.

    Raises:
        ConfigError: if it, or MuJoCo, is not installed or cannot be imported.
    """
    installed_version("metaworld")
    import_mujoco()
    return importlib.import_module("metaworld")


def installed_version(package: str) -> str:
    """The version of ``package``, one of those that Meta-World needs, without importing it.

    Raises:
        ConfigError: naming metarl's extra if it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise missing_extra(package, "metaworld", "Meta-World")
    return importlib.metadata.version(package)


def upstream_task(task: Task) -> Any:
    """``task`` as the ``metaworld.Task`` that upstream's ``env.set_task`` takes."""
    metaworld = upstream()
    data = {
        "rand_vec": np.asarray(task["rand_vec"]),
        "env_cls": metaworld.ALL_V3_ENVIRONMENTS[task["env_name"]],
        "partially_observable": True,
    }
    return metaworld.Task(task["env_name"], pickle.dumps(data))


def upstream_env(task: Task, *, reward_version: RewardVersion = "v2", **settings: Any) -> Any:
    """Upstream's own environment posing ``task``, e.g. to render it: ``render_mode="rgb_array"``.

    Raises:
        ConfigError: for an unknown task or reward version, if Meta-World is not installed, or if there is no library to
            render with.
    """
    installed_version("metaworld")
    if settings.get("render_mode") in ("rgb_array", "depth_array"):
        choose_backend()
    metaworld = upstream()
    if task["env_name"] not in TASK_NAMES:
        raise unknown_name("Meta-World task", task["env_name"], TASK_NAMES)
    env = metaworld.ALL_V3_ENVIRONMENTS[task["env_name"]](
        reward_function_version=checked_reward_version(reward_version), **settings
    )
    env.set_task(upstream_task(task))
    return env


def checked_reward_version(reward_version: str) -> RewardVersion:
    """``reward_version``, known to be one of upstream's.

    Raises:
        ConfigError: if it is none.
    """
    if reward_version not in _REWARD_VERSIONS:
        raise unknown_name("reward version", reward_version, _REWARD_VERSIONS)
    return "v1" if reward_version == "v1" else "v2"
