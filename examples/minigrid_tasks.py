"""MiniGrid's four rooms as tasks: the goal lies somewhere else in each, and an agent sees 7 x 7 cells around it.

``pip install minigrid``, then run it as it stands, or ``metarl train rl2 minigrid_tasks:rooms``.
"""

import gymnasium as gym
import minigrid  # noqa: F401 (registers the environments)
import numpy as np
from minigrid.wrappers import ImgObsWrapper

from metarl import TaskDistribution
from metarl.experiments import Experiment, resolve


def goal(rng):
    """A cell of a room, counted from the wall."""
    column, row = rng.choice([x for x in range(1, 18) if x != 9], 2)
    return int(column), int(row)


def room(task):
    """The walls stay, doors are drawn in every episode; pictures hold kind, colour and state of each cell."""
    env = gym.make("MiniGrid-FourRooms-v0", agent_pos=(1, 1), goal_pos=task, max_steps=60)
    space = gym.spaces.Box(0.0, 1.0, (7, 7, 3), np.float32)
    return gym.wrappers.TransformObservation(ImgObsWrapper(env), lambda cells: np.float32(cells) / 10.0, space)


rooms = TaskDistribution("mine/four-rooms", goal, make_env=room, horizon=60)

if __name__ == "__main__":
    sizes = {"num_iterations": 2, "meta_batch_size": 4, "eval_tasks": 2}
    experiment = Experiment.start(resolve("rl2", rooms, train=sizes))
    experiment.train()
    print(f"trained: {experiment.run.path}")
