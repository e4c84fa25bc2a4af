"""gymnasium-robotics as tasks: a ball in a maze must find a cell that it is not told.

``pip install gymnasium-robotics`` beside ``metarl-torch[mujoco]``, then run it as it stands, or
``metarl train rl2 robotics_tasks:mazes``.
"""

import gymnasium as gym
import gymnasium_robotics
import numpy as np

from metarl import TaskDistribution
from metarl.experiments import Experiment, resolve

gym.register_envs(gymnasium_robotics)


class HiddenGoal(gym.Wrapper):
    """Goes to the task's cell, from the same start; shows position and speed alone."""

    def __init__(self, env, cell):
        """Mazes take their goal with every reset."""
        super().__init__(env)
        self.cell = np.array(cell)
        self.observation_space = env.observation_space["observation"]

    def reset(self, *, seed=None, options=None):
        self.cell = np.array((options or {}).get("task", self.cell))
        cells = {"goal_cell": self.cell, "reset_cell": np.array([1, 1])}
        seen, info = self.env.reset(seed=seed, options=cells)
        return seen["observation"], info

    def step(self, action):
        seen, *rest = self.env.step(action)
        return seen["observation"], *rest


def cell(rng):
    """A free cell of the open maze, but the start's."""
    free = [(row, column) for row in range(1, 4) for column in range(1, 6) if (row, column) != (1, 1)]
    return free[rng.integers(len(free))]


def maze(task):
    """An open maze, whose episodes end in the goal."""
    return HiddenGoal(gym.make("PointMaze_OpenDense-v3", max_episode_steps=50, continuing_task=False), task)


mazes = TaskDistribution("mine/mazes", cell, make_env=maze, horizon=50, task_on_reset=True)

if __name__ == "__main__":
    sizes = {"num_iterations": 1, "meta_batch_size": 2, "eval_tasks": 2}
    experiment = Experiment.start(resolve("rl2", mazes, train=sizes))
    experiment.train()
    print(f"trained: {experiment.run.path}")
