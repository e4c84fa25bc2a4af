"""An empty MiniGrid room whose goal cannot be seen: an agent has to search, or to remember where it was.

``pip install minigrid``, then run it as it stands, or ``metarl train maml-trpo minigrid_hidden_goal:goals``.
"""

import gymnasium as gym
import numpy as np
from minigrid.core.grid import Grid
from minigrid.envs import EmptyEnv
from minigrid.wrappers import ImgObsWrapper

from metarl import TaskDistribution
from metarl.experiments import Experiment, resolve

CELLS = [(column, row) for column in range(1, 5) for row in range(1, 5) if (column, row) != (1, 1)]


class HiddenGoal(EmptyEnv):
    """A room of 6 x 6; walking onto the goal ends the episode with MiniGrid's usual reward."""

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
        if tuple(self.agent_pos) == self.goal:
            return observation, self._reward(), True, truncated, {**info, "success": True}
        return observation, 0.0, terminated, truncated, info


def room(goal):
    """Pictures hold kind, colour and state of 7 x 7 cells around the agent."""
    space = gym.spaces.Box(0.0, 1.0, (7, 7, 3), np.float32)
    pictures = ImgObsWrapper(HiddenGoal(goal))
    return gym.wrappers.TransformObservation(pictures, lambda cells: np.float32(cells) / 10.0, space)


goals = TaskDistribution("mine/hidden-goal", lambda rng: CELLS[rng.integers(len(CELLS))], make_env=room, horizon=144)

if __name__ == "__main__":
    sizes = {"num_iterations": 2, "meta_batch_size": 3, "eval_tasks": 2}
    experiment = Experiment.start(resolve("rl2", goals, train=sizes))
    experiment.train()
    print(f"trained: {experiment.run.path}")
