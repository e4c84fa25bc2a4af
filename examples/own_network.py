"""A convolutional network of your own on pictures, adapted by MAML; ``own_memory.py`` has it in RL².

The command line takes it too: ``metarl train own_network:PictureMAMLConfig own_network:pictures``.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from own_environment import Reach, goal

from metarl import TaskDistribution
from metarl.agents import GradientAgent
from metarl.agents.maml import MAMLTRPOConfig
from metarl.experiments import Experiment, resolve
from metarl.networks.policy import ModulePolicy
from metarl.seeding import torch_stream


def eye(num_outputs):
    """``[..., 256]`` pixels of 16 x 16 -> ``[..., num_outputs]``."""
    conv = torch.nn.Conv2d(1, 8, kernel_size=4, stride=4)
    layers = (torch.nn.Unflatten(-1, (1, 16, 16)), conv, torch.nn.ReLU(), torch.nn.Flatten(-3))
    return torch.nn.Sequential(*layers, torch.nn.Linear(128, num_outputs))


def picture(place):
    """The place as a bright square on black, 0 to 1."""
    row, column = np.clip(6.0 * place + 8.0, 0, 14).astype(int)
    pixels = np.zeros((16, 16), np.float32)
    pixels[row : row + 2, column : column + 2] = 1.0
    return pixels


def seen(task):
    """An environment that shows pictures; those of 0 to 255 would be divided by 255 here."""
    return gym.wrappers.TransformObservation(Reach(), picture, gym.spaces.Box(0.0, 1.0, (16, 16), np.float32))


pictures = TaskDistribution("mine/pictures", goal, make_env=seen, horizon=20, task_on_reset=True)


@dataclass(frozen=True)
class PictureMAMLConfig(MAMLTRPOConfig):
    """MAML-TRPO whose policy is the network."""

    def build(self, spec, device, seed):
        with torch_stream(seed, "init"):
            policy = ModulePolicy(spec, eye(spec.action_dim), self.init_std)
        return GradientAgent(self, spec, device, seed, policy=policy)


if __name__ == "__main__":
    sizes = {"num_iterations": 2, "meta_batch_size": 2, "eval_tasks": 2}
    experiment = Experiment.start(resolve(PictureMAMLConfig(rollouts_per_task=4), pictures, train=sizes))
    experiment.train()
    print(f"trained: {experiment.run.path}")
