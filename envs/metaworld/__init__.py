"""Meta-World: upstream's tasks and numbers, bit for bit, at the speed of their physics.

Importing this package imports neither metaworld nor MuJoCo.
"""

from metarl.envs.metaworld.distributions import (
    DISTRIBUTIONS,
    MetaWorldTasks,
    custom,
    make_vec,
    meta_world,
    task_distribution,
)
from metarl.envs.metaworld.task_sets import BENCHMARKS, GoalTable, TaskSet
from metarl.envs.metaworld.upstream import HORIZON, TASK_NAMES, RewardVersion, upstream_env, upstream_task

__all__ = [
    "BENCHMARKS",
    "DISTRIBUTIONS",
    "HORIZON",
    "TASK_NAMES",
    "GoalTable",
    "MetaWorldTasks",
    "RewardVersion",
    "TaskSet",
    "custom",
    "make_vec",
    "meta_world",
    "task_distribution",
    "upstream_env",
    "upstream_task",
]
