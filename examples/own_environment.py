"""Tasks with an environment of your own, checked, trained on by two agents, and compared.

Run it as it stands, or name its tasks: ``metarl train rl2 own_environment:reach``.
"""

import gymnasium as gym
import numpy as np

from metarl import TaskDistribution, evaluate
from metarl.experiments import Experiment, resolve
from metarl.testing import check_tasks


class Reach(gym.Env):
    """A point in the plane must go to a place that it cannot see; an episode ends when it is there."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-0.2, 0.2, (2,), np.float32)

    def __init__(self):
        self.goal = np.zeros(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = (options or {}).get("task", self.goal)
        self.place = np.zeros(2, np.float32)
        return self.place, {}

    def step(self, action):
        self.place = self.place + action
        distance = float(np.linalg.norm(self.place - self.goal))
        return self.place, -distance, distance < 0.2, False, {"success": distance < 0.2}


def goal(rng):
    """A place on the unit circle."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


reach = TaskDistribution("mine/reach", goal, make_env=lambda task: Reach(), horizon=20, task_on_reset=True)

if __name__ == "__main__":
    check_tasks(reach)
    sizes = {"num_iterations": 5, "meta_batch_size": 5, "eval_tasks": 5}
    for agent in ("maml-trpo", "rl2"):
        experiment = Experiment.start(resolve(agent, reach, train=sizes, settings={"rollouts_per_task": 5}))
        experiment.train()
        scores = evaluate(experiment.load()[0], reach, num_tasks=20, seed=7)
        print(agent, [scores.interval(shot) for shot in range(scores.returns.shape[1])])
