"""Losses of policies. Every function gets one entry per step and a mask, and reduces over what it says."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.functional.returns import masked_mean


def likelihood_ratio_loss(log_prob: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, valid: Tensor) -> Tensor:
    """Importance-weighted policy gradient loss of each task: ``-mean_t[ pi(a_t)/pi_b(a_t) A_t ]``.

    At ``pi = pi_b`` its gradient is REINFORCE's, and its Hessian keeps the term ``A grad logp grad logp'`` that the
    Hessian of ``logp A`` drops, which an exact second-order MAML gradient needs
    (Al-Shedivat et al., 2018, arXiv 1710.03641; Rothfuss et al., 2019, arXiv 1810.06784, section 4).

    Args:
        log_prob: ``[task, sample]`` under the policy to improve.
        behaviour_log_prob: ``[task, sample]`` under the policy that acted.
        advantage: ``[task, sample]``.
        valid: ``[task, sample]`` bool.

    Returns:
        ``[task]``.
    """
    return -masked_mean((log_prob - behaviour_log_prob).exp() * advantage, valid, (1,))


def clipped_ratio_loss(
    log_prob: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, valid: Tensor, clip_range: float
) -> Tensor:
    """PPO's clipped surrogate of each row, ``-mean_t[ min(r A, clip(r, 1-c, 1+c) A) ]``.

    Schulman et al., 2017 (arXiv 1707.06347), eq. 7. Shapes as in :func:`likelihood_ratio_loss`.
    """
    ratio = (log_prob - behaviour_log_prob).exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -masked_mean(torch.minimum(ratio * advantage, clipped * advantage), valid, (1,))
