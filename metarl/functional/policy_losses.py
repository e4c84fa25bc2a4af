"""Losses of policies: one entry per step and a mask, ``[task, sample]`` -> one loss per task, ``[task]``."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.functional.returns import masked_mean
from metarl.functional.shapes import require_rank, require_shape


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

    Raises:
        ValueError: for shapes that do not go together.
    """
    others = {"behaviour_log_prob": behaviour_log_prob, "advantage": advantage, "valid": valid}
    _require_steps("likelihood_ratio_loss", log_prob, **others)
    return -masked_mean(_ratio(log_prob, behaviour_log_prob, valid) * advantage, valid, (1,))


def log_likelihood_loss(log_prob: Tensor, advantage: Tensor, valid: Tensor) -> Tensor:
    """REINFORCE's surrogate of each task: ``-mean_t[ log pi(a_t) A_t ]`` (Williams, 1992).

    At the policy that acted its gradient is that of :func:`likelihood_ratio_loss`; its Hessian lacks the term
    ``A grad logp grad logp'``. It is the inner loss of MAML's code (``cbfinn/maml_rl``).

    Args:
        log_prob: ``[task, sample]`` under the policy to improve.
        advantage: ``[task, sample]``.
        valid: ``[task, sample]`` bool.

    Returns:
        ``[task]``.

    Raises:
        ValueError: for shapes that do not go together.
    """
    _require_steps("log_likelihood_loss", log_prob, advantage=advantage, valid=valid)
    # A log-probability on padding may be infinite, and its derivative NaN, which a mask after the product would keep.
    return -masked_mean(torch.where(valid, log_prob, torch.zeros_like(log_prob)) * advantage, valid, (1,))


def clipped_ratio_loss(
    log_prob: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, valid: Tensor, clip_range: float
) -> Tensor:
    """PPO's clipped surrogate of each task: ``-mean_t[ min(r_t A_t, clip(r_t, 1-c, 1+c) A_t) ]``.

    ``r_t = pi(a_t)/pi_b(a_t)`` (Schulman et al., 2017, arXiv 1707.06347, eq. 7).

    Args:
        log_prob: ``[task, sample]`` under the policy to improve.
        behaviour_log_prob: ``[task, sample]`` under the policy that acted.
        advantage: ``[task, sample]``.
        valid: ``[task, sample]`` bool.
        clip_range: ``c``, above 0.

    Returns:
        ``[task]``.

    Raises:
        ValueError: for shapes that do not go together.
    """
    others = {"behaviour_log_prob": behaviour_log_prob, "advantage": advantage, "valid": valid}
    _require_steps("clipped_ratio_loss", log_prob, **others)
    ratio = _ratio(log_prob, behaviour_log_prob, valid)
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -masked_mean(torch.minimum(ratio * advantage, clipped * advantage), valid, (1,))


def _ratio(log_prob: Tensor, behaviour_log_prob: Tensor, valid: Tensor) -> Tensor:
    """``pi(a_t)/pi_b(a_t)``, 1 on padding: an infinity there would turn gradients into NaN (0 times infinity)."""
    gap = log_prob - behaviour_log_prob
    return torch.where(valid, gap, torch.zeros_like(gap)).exp()


def _require_steps(where: str, log_prob: Tensor, **others: Tensor) -> None:
    axes = "[task, sample]"
    require_rank(where, 2, axes, log_prob=log_prob)
    require_shape(where, tuple(log_prob.shape), axes, **others)
