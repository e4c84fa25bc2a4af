"""highway-env as tasks: how fast one ought to drive, and how dense traffic is, differ from task to task.

``pip install highway-env``, then run it as it stands, or ``metarl train rl2 highway_tasks:roads``. Its simulation is
slow: ``num_workers`` shares the instances out over processes.
"""

import gymnasium as gym
import highway_env  # noqa: F401 (registers the environments)

from metarl import TaskDistribution
from metarl.experiments import Experiment, resolve


def road(rng):
    """What the reward asks for is not seen; traffic is."""
    slowest = float(rng.uniform(20.0, 25.0))
    return {"reward_speed_range": [slowest, slowest + 5.0], "vehicles_density": float(rng.uniform(0.5, 1.5))}


def drive(task):
    """Ten decisions a second apart."""
    return gym.make("highway-fast-v0", config={**task, "duration": 10, "vehicles_count": 10})


roads = TaskDistribution("mine/roads", road, make_env=drive, horizon=10)

if __name__ == "__main__":
    sizes = {"num_iterations": 1, "meta_batch_size": 2, "eval_tasks": 2}
    experiment = Experiment.start(resolve("rl2", roads, train=sizes))
    experiment.train()
    print(f"trained: {experiment.run.path}")
