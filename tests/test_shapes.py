"""Pure functions refuse shapes that would broadcast to a wrong result in silence, and say which."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl.functional.baselines import fit_linear, predict_linear, time_features
from metarl.functional.policy_losses import clipped_ratio_loss, likelihood_ratio_loss, log_likelihood_loss
from metarl.functional.returns import discounted_sums, gae, masked_mean, normalise
from metarl.functional.trust_region import backtrack, conjugate_gradient, step_to_radius


def x(*shape: int) -> Tensor:
    return torch.ones(shape)


def mask(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


CASES: list[tuple[Callable[[], Any], str]] = [
    # All of these broadcast.
    (
        lambda: masked_mean(x(2, 3), mask(2, 1), (1,)),
        "masked_mean: valid must have the shape that of x = (2, 3), got (2, 1)",
    ),
    (
        lambda: masked_mean(x(2, 3), mask(3), (1,)),
        "masked_mean: valid must have the shape that of x = (2, 3), got (3,)",
    ),
    (
        lambda: normalise(x(2, 3), mask(1, 3), (0, 1)),
        "normalise: valid must have the shape that of x = (2, 3), got (1, 3)",
    ),
    (
        lambda: gae(x(2, 3), x(1, 3), x(2), mask(2, 3), mask(2, 3), 0.9, 0.9),
        "gae: values must have the shape [..., time] = (2, 3), got (1, 3)",
    ),
    (
        lambda: gae(x(2, 3), x(2, 3), x(2), mask(2, 1), mask(2, 3), 0.9, 0.9),
        "gae: terminated must have the shape [..., time] = (2, 3), got (2, 1)",
    ),
    (
        lambda: gae(x(2, 3), x(2, 3), x(1), mask(2, 3), mask(2, 3), 0.9, 0.9),
        "gae: last_value must have the shape [...] = (2,), got (1,)",
    ),
    (
        lambda: likelihood_ratio_loss(x(2, 3), x(3), x(2, 3), mask(2, 3)),
        "likelihood_ratio_loss: behaviour_log_prob must have the shape [task, sample] = (2, 3), got (3,)",
    ),
    (
        lambda: likelihood_ratio_loss(*(x(2, 3, 4),) * 3, mask(2, 3, 4)),
        "likelihood_ratio_loss: log_prob must have 2 axes [task, sample], got the shape (2, 3, 4)",
    ),
    (
        lambda: log_likelihood_loss(x(2, 3), x(2, 3), mask(3)),
        "log_likelihood_loss: valid must have the shape [task, sample] = (2, 3), got (3,)",
    ),
    (
        lambda: clipped_ratio_loss(x(2, 3), x(2, 3), x(2, 1), mask(2, 3), 0.2),
        "clipped_ratio_loss: advantage must have the shape [task, sample] = (2, 3), got (2, 1)",
    ),
    (lambda: time_features(x(2, 3, 4), x(3)), "time_features: step must have the shape [...] = (2, 3), got (3,)"),
    (
        lambda: fit_linear(x(2, 5, 4), x(1, 5), mask(2, 5)),
        "fit_linear: targets must have the shape [task, sample] = (2, 5), got (1, 5)",
    ),
    (
        lambda: fit_linear(x(5, 4), x(5), mask(5)),
        "fit_linear: features must have 3 axes [task, sample, feature], got the shape (5, 4)",
    ),
    (
        lambda: predict_linear(x(1, 4), x(2, 5, 4)),
        "predict_linear: weights must have the shape [task, feature] = (2, 4), got (1, 4)",
    ),
    (lambda: step_to_radius(x(3), x(1), 0.01), "step_to_radius: image must have the shape [n] = (3,), got (1,)"),
    (
        lambda: conjugate_gradient(lambda v: v[:1], x(3), 2),
        "conjugate_gradient: product must have the shape [n] = (3,)",
    ),
    (
        lambda: conjugate_gradient(lambda v: v, x(3, 1), 2),
        "conjugate_gradient: b must have 1 axes [n], got the shape (3, 1)",
    ),
    (
        lambda: backtrack(lambda flat: (0.0, 0.0), x(3), x(1), 1.0, 0.01, 0.5, 3),
        "backtrack: step must have the shape [n] = (3,), got (1,)",
    ),
    # These would fail somewhere inside.
    (lambda: discounted_sums(x(2, 0), 0.9), "discounted_sums: x_t must have the shape [..., time], got (2, 0)"),
    (lambda: discounted_sums(x(), 0.9), "discounted_sums: x_t must have the shape [..., time], got ()"),
]


@pytest.mark.parametrize(("call", "message"), CASES)
def test_wrong_shapes_are_refused_with_the_function_the_argument_and_both_shapes(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
