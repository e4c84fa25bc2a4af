"""Acting on the processor while the updates run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from metarl.agent import Agent
from metarl.errors import ConfigError, unknown_name
from metarl.functional.trees import map_tensors
from metarl.types import Action, Rollout, Timestep, Trial

ActOn = Literal["device", "cpu"]
"""Where an agent acts while it is trained: where its parameters live, or on the processor, beside the simulations."""

_HOST = torch.device("cpu")


def acting_on(agent: Agent[Any], place: ActOn) -> Agent[Any]:
    """The agent that plays for ``agent`` in training: itself, or one that acts on the processor.

    Raises:
        ConfigError: for another place, or an agent that has no config to be built again by.
    """
    if place not in get_args(ActOn):
        raise unknown_name("place to act", place, get_args(ActOn))
    return HostActor(agent) if place == "cpu" and agent.device.type != "cpu" else agent


class HostActor(Agent[Any]):
    """Acts with a copy of the learner on the processor; adapts and learns with the learner itself, where that is.

    Between two simulated steps a small network takes a GPU longer to begin than a processor to finish, and the action
    has to come back; an inner step or an update over whole rollouts is the GPU's work. The copy takes over the
    learner's parameters at the start of every trial; states and rollouts are moved where they are needed.

    Args:
        learner: what is trained; its parts are what a checkpoint holds.

    Raises:
        ConfigError: for a learner that has no config to be built again by.
    """

    def __init__(self, learner: Agent[Any]) -> None:
        if learner.config is None:
            raise ConfigError(
                f"an agent that acts on the cpu and learns elsewhere is built twice, from its config, and "
                f"{type(learner).__name__} has none. Build it by an AgentConfig that sets agent.config, or let it act "
                "on the device."
            )
        super().__init__(
            learner.spec,
            _HOST,
            num_adaptations=learner.num_adaptations,
            rollouts_per_task=learner.rollouts_per_task,
            num_eval_adaptations=learner.num_eval_adaptations,
        )
        self.config = learner.config
        self.data_parallel = learner.data_parallel
        self.learner = learner
        self._player = learner.config.build(learner.spec, _HOST, 0)
        self.noise = self._player.noise

    def components(self) -> Mapping[str, nn.Module | Optimizer]:
        """The learner's."""
        return self.learner.components()

    def seed(self, seed: int) -> None:
        """Restart the random streams, and let the copy have the learner's parameters."""
        self.learner.seed(seed)
        self._player.seed(seed)
        self._player.load_module_state_dict(self.learner.module_state_dict())

    def begin(self, num_tasks: int) -> Any:
        """The copy's, on the processor."""
        return self._player.begin(num_tasks)

    def act(self, state: Any, timestep: Timestep, deterministic: bool = False) -> tuple[Action, Any]:
        """The copy's, on the processor."""
        return self._player.act(state, timestep, deterministic)

    def adapt(self, state: Any, rollout: Rollout) -> Any:
        """The learner's; the state comes back to the processor."""
        device = self.learner.device
        adapted = self.learner.adapt(map_tensors(lambda tensor: tensor.to(device), state), rollout.to(device))
        return map_tensors(lambda tensor: tensor.to(_HOST), adapted)

    def meta_update(self, trial: Trial) -> dict[str, float]:
        """The learner's."""
        return self.learner.meta_update(trial.to(self.learner.device))
