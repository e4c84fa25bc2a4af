"""An agent of your own in four verbs, which ``metarl train own_agent:HillClimbConfig navigation-2d`` takes too."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from metarl import Action, Agent, AgentConfig, RunFolder, TrainConfig, make, train
from metarl.testing import check_agent


class HillClimb(Agent[torch.Tensor]):
    """Keeps the mean action of each task's best episode."""

    def __init__(self, config, spec, device):
        super().__init__(spec, device, num_adaptations=1, rollouts_per_task=config.rollouts_per_task)
        self.config = config

    def components(self):
        return {}  # nothing to save

    def begin(self, num_tasks):
        return torch.zeros(num_tasks, self.spec.action_dim, device=self.device)

    def act(self, state, timestep, deterministic=False):
        size = (*timestep.valid.shape, self.spec.action_dim)
        policy = torch.distributions.Normal(state[:, None].expand(size), 0.5)
        value = policy.mean if deterministic else policy.mean + 0.5 * self.noise.normal(size)
        return Action(value, policy.log_prob(value).sum(-1)), state

    def adapt(self, state, rollout):
        rows, best = torch.arange(len(state)), rollout.returns.argmax(1)
        steps = rollout.valid[rows, best][..., None]
        return (rollout.actions[rows, best] * steps).sum(1) / steps.sum(1)

    def meta_update(self, trial):
        return {}  # tasks share nothing


@dataclass(frozen=True)
class HillClimbConfig(AgentConfig):
    """Keeps the best of some tries."""

    when: ClassVar[str] = "one constant action is nearly enough"
    num_adaptations: ClassVar[int] = 1
    rollouts_per_task: int = 10
    """Episodes, each of which is a try."""

    def build(self, spec, device, seed):
        return HillClimb(self, spec, device)


if __name__ == "__main__":
    tasks = make("navigation-2d")
    check_agent(HillClimbConfig(), tasks)
    agent = HillClimbConfig().build(tasks.spec, torch.device("cpu"), seed=1)
    train(agent, tasks, TrainConfig(num_iterations=2, eval_tasks=5), RunFolder.create("runs", "hill-climb"))
