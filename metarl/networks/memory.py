"""Memory of a trial: a recurrent network over everything that the agent saw."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metarl.types import Spec, Timestep


def trial_inputs(timestep: Timestep) -> Tensor:
    """RL²'s input: observation, previous action, previous reward and done flag (arXiv 1611.02779, section 2.2).

    Args:
        timestep: any leading axes.

    Returns:
        ``[..., obs_dim + action_dim + 2]``.
    """
    scalars = torch.stack([timestep.prev_reward, timestep.prev_done], dim=-1)
    return torch.cat([timestep.obs, timestep.prev_action, scalars], dim=-1)


class GRUMemory(nn.Module):
    """A GRU over :func:`trial_inputs`, with a policy head and a value head.

    Args:
        spec: sizes of observation and action.
        hidden_size: units.
        init_std: initial standard deviation of a Gaussian policy.
    """

    def __init__(self, spec: Spec, hidden_size: int, init_std: float) -> None:
        super().__init__()
        self.gru = nn.GRU(spec.obs_dim + spec.action_dim + 2, hidden_size, batch_first=True)
        self.policy_head = nn.Linear(hidden_size, spec.action_dim)
        self.value_head = nn.Linear(hidden_size, 1)
        if not spec.discrete:
            self.log_std = nn.Parameter(torch.full((spec.action_dim,), math.log(init_std)))
        for name, parameter in self.gru.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
        # A first policy that is nearly uniform, and first values near zero.
        nn.init.orthogonal_(self.policy_head.weight, 0.01)
        nn.init.orthogonal_(self.value_head.weight, 0.01)
        nn.init.zeros_(self.policy_head.bias)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run over whole sequences.

        Args:
            inputs: ``[sequence, time, input]``.
            hidden: ``[sequence, hidden]`` before the first step.

        Returns:
            Policy outputs ``[sequence, time, action_dim]``, values ``[sequence, time]`` and the hidden state after the
            last step ``[sequence, hidden]``.
        """
        memory, last = self.gru(inputs, hidden.unsqueeze(0).contiguous())
        return self.policy_head(memory), self.value_head(memory).squeeze(-1), last.squeeze(0)
