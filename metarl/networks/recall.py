"""The best moment of a trial, kept by its look: what was observed behind the highest reward so far.

A recurrent network must learn to carry a goal that it found over to later episodes, through gradients that seldom reach
back so far. Here it need not: the place is written down. Learned optimisers of black boxes are given the best point so
far in the same way, and Ritter et al., 2018 ("Been there, done that", arXiv 1805.09692) give RL² a memory of episodes.

Where the reward is the same all over the goal, as in Meta-World, the last moment of the highest reward lies near the
goal's edge as often as not. The mean of all of them lies in its middle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarl.networks.normaliser import RunningMoments


def shown_size(obs_dim: int) -> int:
    """Numbers that are shown: for each of the observation, the reward, and whether there was one."""
    return obs_dim + 2


def kept_size(obs_dim: int) -> int:
    """Numbers that are kept of a trial: the best moment, of how many it is the mean, and that the trial has begun."""
    return shown_size(obs_dim) + 2


class Recall(nn.Module):
    """Shows a network the way from where it is to the trial's best moment, in units of its running standard deviation.

    Near a goal the way is a few centimetres of an observation in metres, which a network hardly sees; and noise that
    pays little less than standing still gives no gradient that would make it look closer.

    Args:
        obs_dim: size of the observation.
    """

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.obs_dim = obs_dim
        self.way = RunningMoments(obs_dim)

    def forward(self, inputs: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """What is shown at each step, and what is kept after the last.

        Args:
            inputs: ``[sequence, time, input]`` of :func:`metarl.networks.memory.trial_inputs`.
            kept: ``[sequence, kept_size]`` before the first of these steps.

        Returns:
            The scaled way, clipped to ±10, the best reward, and whether there was one, ``[sequence, time,
            shown_size]``: zeros before the first reward. And what is kept, ``[sequence, kept_size]``.
        """
        best, kept = recall_best(inputs, kept, self.obs_dim)
        std = self.way.std
        # What hardly ever moves, as a joint that is held, would be blown up by its own deviation.
        way = self._way(inputs, best) / torch.maximum(std, 0.01 * std.max())
        return torch.cat([way.clamp(-10.0, 10.0), best[..., self.obs_dim :]], dim=-1), kept

    @torch.no_grad()
    def update(self, inputs: Tensor, kept: Tensor, valid: Tensor) -> None:
        """Take the ways of valid steps, ``[sequence, time]``, into the running deviation; otherwise as forward."""
        best, _ = recall_best(inputs, kept, self.obs_dim)
        self.way.update(self._way(inputs, best), valid)

    def _way(self, inputs: Tensor, best: Tensor) -> Tensor:
        return (best[..., : self.obs_dim] - inputs[..., : self.obs_dim]) * best[..., -1:]


def recall_best(inputs: Tensor, kept: Tensor, obs_dim: int) -> tuple[Tensor, Tensor]:
    """The mean observation behind the best reward of each trial, up to each step.

    A step's input holds the observation and the reward that came with it. The first step of an episode has none: what
    it shows as previous reward belongs to the episode before. Equal rewards count alike.

    Args:
        inputs: ``[sequence, time, input]`` of :func:`metarl.networks.memory.trial_inputs`.
        kept: ``[sequence, kept_size]`` before the first of these steps.
        obs_dim: size of the observation.

    Returns:
        That mean, the best reward and whether there was one, ``[sequence, time, shown_size]``: zeros before the first
        reward. And what is kept after the last step.
    """
    obs, reward, new_episode = inputs[..., :obs_dim], inputs[..., -2], inputs[..., -1] > 0
    place, best, there, count, begun = torch.split(kept, [obs_dim, 1, 1, 1, 1], dim=1)
    first = torch.zeros_like(new_episode)
    first[:, :1] = begun == 0
    unknown = torch.full_like(reward, -torch.inf)
    rewards = torch.where(new_episode | first, unknown, reward)
    counts = (rewards > -torch.inf).to(torch.float64)
    # What is kept comes in front, as a moment that counts as often as it is the mean of.
    rewards = torch.cat([torch.where(there > 0, best, unknown[:, :1]), rewards], dim=1)
    counts = torch.cat([count, counts], dim=1)
    places = torch.cat([place[:, None], obs], dim=1)
    highest = _running_max(rewards)
    counts = counts * (rewards == highest)
    # Counts and places are summed since the highest reward last rose: all of the sum, less what was before.
    rises = torch.zeros_like(counts, dtype=torch.long)
    rises[:, 1:] = highest[:, 1:] > highest[:, :-1]
    since = _running_max(rises * torch.arange(rises.shape[1], device=rises.device))[..., None]
    sums = torch.cat([counts[..., None], counts[..., None] * places], dim=-1).cumsum(dim=1)
    before = sums.gather(1, (since - 1).clamp(min=0).expand_as(sums))
    sums = (sums - torch.where(since > 0, before, torch.zeros_like(before)))[:, 1:]
    mean = (sums[..., 1:] / sums[..., :1].clamp(min=1.0)).to(obs.dtype)
    found = highest[:, 1:, None]
    is_found = found > -torch.inf
    shown = torch.cat([mean, torch.where(is_found, found, torch.zeros_like(found)), is_found.to(obs.dtype)], dim=-1)
    return shown, torch.cat([shown[:, -1], sums[:, -1, :1].to(obs.dtype), torch.ones_like(begun)], dim=-1)


def _running_max(values: Tensor) -> Tensor:
    """The largest of each row up to each column; of two columns without the scan, which exported networks lack."""
    if values.shape[1] == 2:
        return torch.cat([values[:, :1], values.amax(dim=1, keepdim=True)], dim=1)
    return values.cummax(dim=1).values
