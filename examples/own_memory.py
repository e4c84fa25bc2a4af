"""A convolutional network as the eye of RL²'s memory, on the pictures of ``own_network.py``.

The command line takes it too: ``metarl train own_memory:PictureRL2Config own_network:pictures``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from own_network import eye, pictures

from metarl.agents import RL2
from metarl.agents.common.recurrent_ppo import RecurrentPPOConfig
from metarl.experiments import Experiment, resolve
from metarl.networks.memory import Memory, input_size


class SeeingMemory(Memory):
    """A GRU on what the eye makes of each picture, and on previous action, previous reward and done flag."""

    def __init__(self, spec, num_units, init_std):
        """The state is the GRU's."""
        super().__init__(spec, num_units, num_units, init_std)
        self.eye = eye(32)
        self.gru = torch.nn.GRU(32 + input_size(spec) - spec.obs_dim, num_units, batch_first=True)

    def remember(self, inputs, state):
        pixels, rest = inputs.split([self.obs_dim, inputs.shape[-1] - self.obs_dim], -1)
        sights = self.eye(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        features, last = self.gru(torch.cat([sights, rest], -1), state[None].contiguous())
        return features, last[0]


@dataclass(frozen=True)
class PictureRL2Config(RecurrentPPOConfig):
    """RL² that looks at pictures."""

    when: ClassVar[str] = "observations are pictures"
    bptt_steps: ClassVar[int] = 0
    precision: ClassVar[str] = "float32"
    normalise_obs: bool = False
    """Pixels are scaled already."""
    num_units: int = 64
    """Units of the GRU."""

    def make_memory(self, spec):
        return SeeingMemory(spec, self.num_units, self.init_std)

    def build(self, spec, device, seed):
        return RL2(self, spec, device, seed)


if __name__ == "__main__":
    sizes = {"num_iterations": 2, "meta_batch_size": 4, "eval_tasks": 2}
    experiment = Experiment.start(resolve(PictureRL2Config(), pictures, train=sizes))
    experiment.train()
    print(f"trained: {experiment.run.path}")
