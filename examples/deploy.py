"""Train on a family of CartPoles, adapt to one of them step by step, and write the policy into a file.

python examples/deploy.py [ITERATIONS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import metarl
from metarl.experiments import Experiment, resolve


def make_env(task: dict[str, float]) -> gym.Env:
    """A CartPole whose pole is as long as the task says."""
    env = gym.make("CartPole-v1", max_episode_steps=100)
    env.unwrapped.length = task["length"]
    env.unwrapped.polemass_length = env.unwrapped.masspole * task["length"]
    return env


poles = metarl.TaskDistribution(
    id="example/poles", sample=lambda rng: {"length": float(rng.uniform(0.2, 2.0))}, make_env=make_env
)


def main(num_iterations: int) -> None:
    """Train, adapt, export, and act without metarl."""
    setup = resolve(
        "maml-trpo",
        poles,
        train={"num_iterations": num_iterations, "meta_batch_size": 5, "device": "cpu"},
        settings={"rollouts_per_task": 5, "hidden_sizes": (32,)},
    )
    experiment = Experiment.start(setup)
    experiment.train()

    env = make_env({"length": 1.7})  # A pole that nobody told the agent about.
    learner = metarl.load(experiment.run.path, trust_tasks=True).learner(env)
    before = learner.play(5, seed=0)
    learner.adapt()
    print(f"return before adaptation {np.mean(before):.1f}, after it {np.mean(learner.play(5)):.1f}")

    file = Path("policy.pt2")
    learner.export(file)
    policy = torch.export.load(file).module()  # From here on metarl is not needed.
    obs, _ = env.reset(seed=1)
    print("action:", int(policy(obs=torch.as_tensor(obs))["action"]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
