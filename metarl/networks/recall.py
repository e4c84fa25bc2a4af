"""The best moment of a trial, kept by its look: what was observed behind the highest reward so far.

A recurrent network must learn to carry a goal that it found over to later episodes, through gradients that seldom reach
back so far. Here it need not: the place is written down. Learned optimisers of black boxes are given the best point so
far in the same way, and Ritter et al., 2018 ("Been there, done that", arXiv 1805.09692) give RL² a memory of episodes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shown_size(obs_dim: int) -> int:
    """Numbers that are shown: the observation, the reward, and whether there was one."""
    return obs_dim + 2


def kept_size(obs_dim: int) -> int:
    """Numbers that are kept of a trial: what was shown last, and that it has begun; zeros before the first step."""
    return shown_size(obs_dim) + 1


def recall_best(inputs: Tensor, kept: Tensor, obs_dim: int) -> tuple[Tensor, Tensor]:
    """The observation behind the best reward of each trial, up to each step.

    A step's input holds the observation and the reward that came with it. The first step of an episode has none: what
    it shows as previous reward belongs to the episode before. Of equal rewards the last counts.

    Args:
        inputs: ``[sequence, time, input]`` of :func:`metarl.networks.memory.trial_inputs`.
        kept: ``[sequence, kept_size]`` before the first of these steps.
        obs_dim: size of the observation.

    Returns:
        What is shown at each step, ``[sequence, time, shown_size]``: zeros before the first reward. And what is kept
        after the last step.
    """
    obs, reward, new_episode = inputs[..., :obs_dim], inputs[..., -2], inputs[..., -1] > 0
    where, best, seen, begun = kept[:, :obs_dim], kept[:, obs_dim], kept[:, obs_dim + 1] > 0, kept[:, -1:]
    first = torch.zeros_like(new_episode)
    first[:, :1] = begun == 0
    nothing = torch.full_like(reward, -torch.inf)
    rewards = torch.where(new_episode | first, nothing, reward)
    rewards = torch.cat([torch.where(seen, best, nothing[:, 0])[:, None], rewards], dim=1)
    # For one step without the scan, which exported networks would not have.
    one_step = inputs.shape[1] == 1
    index = (rewards[:, 1:] >= rewards[:, :1]).long() if one_step else rewards.cummax(dim=1).indices[:, 1:]
    found = rewards.gather(1, index)
    places = torch.cat([where[:, None], obs], dim=1)
    place = places.gather(1, index[..., None].expand(*index.shape, obs_dim))
    there = found > -torch.inf
    found = torch.where(there, found, torch.zeros_like(found))
    place = torch.where(there[..., None], place, torch.zeros_like(place))
    shown = torch.cat([place, found[..., None], there.to(obs.dtype)[..., None]], dim=-1)
    return shown, torch.cat([shown[:, -1], torch.ones_like(begun)], dim=-1)
