"""How a process of the pool starts: MuJoCo without graphics, and then upstream's simulations.

Everything that imports MuJoCo is imported inside these functions: ``MUJOCO_GL`` counts at that moment.
"""

from __future__ import annotations

import importlib
import os
import sys

from metarl.vector.buffers import Buffers
from metarl.vector.workers import Group


def make_group(reward_version: str, fast: bool, first: int, buffers: Buffers) -> Group:
    """A worker's share of the instances.

    Args:
        reward_version: upstream's reward functions.
        fast: step with the value-identical helpers, else with upstream's own code.
        first: number of the first instance, for error messages.
        buffers: rows of these instances.
    """
    _import_mujoco()
    if fast:
        from metarl.envs.metaworld.worker.fast_group import FastSimulations

        return FastSimulations(reward_version, first, buffers)
    from metarl.envs.metaworld.worker.plain_group import PlainSimulations

    return PlainSimulations(reward_version, first, buffers)


def self_test() -> None:
    """Test the tasks in ``sys.argv[2:]`` with the rewards of ``sys.argv[1]``; prints a line of JSON for each."""
    _import_mujoco()
    from metarl.envs.metaworld.worker.self_test import report

    report(sys.argv[1], sys.argv[2:])


def _import_mujoco() -> None:
    # Nothing is drawn here: a graphics library that is missing is no matter, nor worth the time to load one.
    os.environ["MUJOCO_GL"] = "disable"
    mujoco = importlib.import_module("mujoco")
    # A diverging simulation is reported in info; MuJoCo would also write a log into the working directory.
    mujoco.set_mju_user_warning(lambda text: None)
