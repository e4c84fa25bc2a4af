"""The linear feature baseline, fitted for all tasks in one batched solve."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.functional.returns import discounted_sums, gae, normalise
from metarl.functional.shapes import require_rank, require_shape
from metarl.types import Rollout

_SAMPLES_PER_FEATURE = 3
"""Valid steps that a task must have for each feature. With fewer, the fit takes the noise of returns for knowledge of
states: of n steps and p features it leaves 1 - p / n of the noise in the residuals, and of p steps but rounding."""

_OF_TIME = 4
"""The last features, which depend on time alone, and the last of them not even on that."""

_FEW = 2
"""Steps through which powers of time go exactly: what is left of their returns is rounding. One constant stays."""


def time_features(obs: Tensor, step: Tensor) -> Tensor:
    """Features of a state: observation, its square, three powers of time, and one.

    Duan et al., 2016 (arXiv 1604.06778, section 4.2.2); observations are clipped to ±10 as in rllab.

    Args:
        obs: ``[..., obs_dim]``.
        step: ``[...]`` number of steps since the episode's start.

    Returns:
        ``[..., 2 obs_dim + 4]`` float64.

    Raises:
        ValueError: for steps of another shape than the observations'.
    """
    require_shape("time_features", tuple(obs.shape[:-1]), "[...]", step=step)
    obs = obs.double().clamp(-10.0, 10.0)
    time = step.double()[..., None] / 100.0
    return torch.cat([obs, obs.square(), time, time.square(), time**3, torch.ones_like(time)], dim=-1)


def fit_linear(features: Tensor, targets: Tensor, valid: Tensor, ridge: float = 1e-5) -> Tensor:
    """Weights of the ridge regression of each task.

    ``w = (X'X + ridge I)^-1 X'y`` in float64: in float32 the normal equations of 80 correlated features lose
    most of their digits, silently. Where a factorisation fails, ridge grows, at last to 1e-7 of the largest diagonal
    entry, which float64 can always factorise.

    Args:
        features: ``[task, sample, feature]`` float64.
        targets: ``[task, sample]``.
        valid: ``[task, sample]`` bool.
        ridge: regularisation, above 0.

    Returns:
        ``[task, feature]`` float64.

    Raises:
        ValueError: for shapes that do not go together.
    """
    require_rank("fit_linear", 3, "[task, sample, feature]", features=features)
    require_shape("fit_linear", tuple(features.shape[:-1]), "[task, sample]", targets=targets, valid=valid)
    x = features.masked_fill(~valid[..., None], 0.0)
    gram = x.mT @ x
    moment = (x.mT @ targets.double().masked_fill(~valid, 0.0)[..., None]).squeeze(-1)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
    largest = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]
    for power in range(1, 6):
        # A masked retry keeps the host from waiting for the device: tasks that succeeded are left alone.
        retry, still = torch.linalg.cholesky_ex(gram + (ridge + 1e-12 * largest) * 10.0**power * eye)
        factor = torch.where((failed > 0)[:, None, None], retry, factor)
        failed = torch.where(failed > 0, still, failed)
    return torch.cholesky_solve(moment[..., None], factor).squeeze(-1)


def predict_linear(weights: Tensor, features: Tensor) -> Tensor:
    """Values of each task's features under its own weights: ``v = X w``.

    Args:
        weights: ``[task, feature]``.
        features: ``[task, ..., feature]``.

    Returns:
        ``[task, ...]``.

    Raises:
        ValueError: for weights of other tasks or features.
    """
    require_shape("predict_linear", (features.shape[0], features.shape[-1]), "[task, feature]", weights=weights)
    flat = features.flatten(1, -2)
    return (flat @ weights[..., None]).squeeze(-1).view(features.shape[:-1])


def linear_baseline_advantages(
    rollout: Rollout, discount: float, gae_lambda: float, *, bootstrap_at_horizon: bool
) -> Tensor:
    """Normalised advantages of a rollout under a linear feature baseline fitted to that same rollout, per task.

    The baseline is fitted to the rewards that were seen, none of which lies behind the end of an episode. Of a task
    with fewer than three valid steps for each feature, such as images in a few short episodes, it sees time alone, and
    of one with two steps at most not even that.

    Args:
        rollout: axes ``[task, episode, time]``.
        discount: in [0, 1].
        gae_lambda: in [0, 1].
        bootstrap_at_horizon: whether the state in which time ran out is worth what the baseline says; without, nothing.

    Returns:
        ``[task, episode, time]``, mean 0 and standard deviation 1 over each task's valid steps, 0 on padding;
        in the dtype of the rewards.
    """
    valid = rollout.valid
    steps = torch.arange(valid.shape[-1], device=valid.device).expand(valid.shape)
    features = time_features(rollout.obs, steps)
    targets = discounted_sums(rollout.rewards, discount)
    last_features = time_features(rollout.last_obs, rollout.lengths)
    needed = _SAMPLES_PER_FEATURE * features.shape[-1]
    num_steps = valid.sum((1, 2))
    num_known = torch.where(num_steps > _FEW, _OF_TIME, 1).where(num_steps < needed, features.shape[-1])
    if valid[0].numel() < needed:
        # In no task: solving for thousands of weights that are zero, of images, takes minutes and gigabytes.
        features, last_features = features[..., -_OF_TIME:], last_features[..., -_OF_TIME:]
    weights = fit_linear(_last(features, num_known).flatten(1, 2), targets.flatten(1), valid.flatten(1))
    values = predict_linear(weights, features)
    last_value = torch.zeros_like(values[..., 0])
    if bootstrap_at_horizon:
        last_value = predict_linear(weights, last_features)
    advantages = gae(rollout.rewards, values, last_value, rollout.terminated, valid, discount, gae_lambda)
    return normalise(advantages, valid, (1, 2)).to(rollout.rewards.dtype)


def _last(features: Tensor, num: Tensor) -> Tensor:
    """The last ``num`` ``[task]`` features, those before them zero, so that their weights are too."""
    index = torch.arange(features.shape[-1], device=features.device)
    return features.where(index >= features.shape[-1] - num[:, None, None, None], 0.0)
