"""MiniGrid's four rooms as tasks: the goal lies somewhere else in each, and an agent sees 7 x 7 cells around it.

And ``empty``, a room of 6 x 6 whose goal cannot be seen. ``pip install minigrid``, then run it as it stands, or
``metarl train rl2 minigrid_tasks:rooms``.
"""

import gymnasium as gym
import minigrid  # noqa: F401 (registers the environments)
import numpy as np
from minigrid.core.grid import Grid
from minigrid.envs import EmptyEnv
from minigrid.wrappers import ImgObsWrapper

from metarl import TaskDistribution
from metarl.experiments import Experiment, resolve


def goal(rng):
    """A cell of a room, counted from the wall."""
    column, row = rng.choice([x for x in range(1, 18) if x != 9], 2)
    return int(column), int(row)


def room(task):
    """The walls stay, doors are drawn in every episode; pictures hold kind, colour and state of each cell."""
    return pictures(gym.make("MiniGrid-FourRooms-v0", agent_pos=(1, 1), goal_pos=task, max_steps=60))


def pictures(env):
    """Observations between 0 and 1."""
    space = gym.spaces.Box(0.0, 1.0, (7, 7, 3), np.float32)
    return gym.wrappers.TransformObservation(ImgObsWrapper(env), lambda cells: np.float32(cells) / 10.0, space)


class HiddenGoal(EmptyEnv):
    """An empty room with nothing to see; walking onto the goal ends the episode with MiniGrid's usual reward."""

    def __init__(self, goal):
        self.goal = goal
        super().__init__(size=6)

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.agent_pos, self.agent_dir, self.mission = (1, 1), 0, ""

    def step(self, action):
        """One step; the base class knows of no goal."""
        observation, _, terminated, truncated, info = super().step(action)
        if self.agent_pos[0] == self.goal[0] and self.agent_pos[1] == self.goal[1]:
            return observation, self._reward(), True, truncated, {**info, "success": True}
        return observation, 0.0, terminated, truncated, info


CELLS = [(column, row) for column in range(1, 5) for row in range(1, 5) if (column, row) != (1, 1)]

rooms = TaskDistribution("mine/four-rooms", goal, make_env=room, horizon=60)
empty = TaskDistribution(
    "mine/hidden-goal",
    lambda rng: CELLS[rng.integers(len(CELLS))],
    make_env=lambda task: pictures(HiddenGoal(task)),
    horizon=144,
)

if __name__ == "__main__":
    sizes = {"num_iterations": 2, "meta_batch_size": 4, "eval_tasks": 2}
    experiment = Experiment.start(resolve("rl2", rooms, train=sizes))
    experiment.train()
    print(f"trained: {experiment.run.path}")
