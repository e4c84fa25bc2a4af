"""The index of Gittins (1979) of a Bernoulli arm with a Beta posterior, by two approximations.

The index is the reward per pull of a sure arm that is worth as much as this one, when pulls without end are discounted
by ``discount`` and one may change to the sure arm, for good, at any time. A trial ends after ``n`` pulls instead; RL²
(arXiv 1611.02779, section 3.1) takes the index all the same, by "the practical approximations described in Gittins et
al. (2011), Chakravorty & Mahajan (2013), and Whittle (1982)", and of them the best for each setting. On its authors'
instances Whittle's closed form at discount 1 comes to the paper's digits in seven of nine settings; for n = 500 with 10
and 50 arms the paper has more, by an approximation that it does not name. The index by calibration stands for that
here, with discounts around ``1 - 1 / n``, which look ``n`` pulls ahead.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_NUM_RATES = 400
"""Sure arms that an arm is compared with; the index between two of them is interpolated."""


def whittle_index(successes: Array, failures: Array, discount: float) -> Array:
    """Whittle's (1982) closed form, which holds for large counts and a discount near 1.

    ``mu + mu (1 - mu) / (n sqrt((2 c + 1 / n) mu (1 - mu)) + mu - 1 / 2)``, where ``mu`` is the posterior's mean, ``n``
    its count, and ``c = -log(discount)``.

    Args:
        successes: of the posterior, prior included, above 0; of any shape.
        failures: the same of failures.
        discount: above 0 and at most 1.

    Returns:
        The index, of the same shape.
    """
    count = successes + failures
    mean = successes / count
    variance = mean * (1.0 - mean)
    root = np.sqrt((1.0 / count - 2.0 * np.log(discount)) * variance)
    return np.asarray(mean + variance / (count * root + mean - 0.5))


@lru_cache(maxsize=8)
def calibrated_index(num_pulls: int, discount: float) -> Array:
    """The index by calibration: dynamic programming for many sure arms (Gittins, Glazebrook & Weber, 2011, chapter 8).

    The value of an arm beside a sure one of rate ``r``, in units of reward per pull, is
    ``max(r, mu (1 - d + d V+) + (1 - mu) d V-)`` with the discount ``d`` and the values ``V+`` and ``V-`` after a
    success and a failure. Beyond twice the pulls of a trial an arm's mean is taken as known.

    Args:
        num_pulls: of a trial, n.
        discount: above 0 and below 1.

    Returns:
        ``[successes, failures]``, those seen after a uniform prior, for sums up to n; zero where the sum is larger.
    """
    rates = (np.arange(_NUM_RATES) + 0.5) / _NUM_RATES
    index = np.zeros((num_pulls + 1, num_pulls + 1))
    num_seen = 2 * num_pulls + 10
    means = (np.arange(num_seen + 1) + 1.0) / (num_seen + 2.0)
    values = np.maximum(rates[:, None], means)  # [rate, successes], of all states with so many pulls seen.
    for seen in range(num_seen - 1, -1, -1):
        means = (np.arange(seen + 1) + 1.0) / (seen + 2.0)
        going_on = means * (1.0 - discount + discount * values[:, 1:]) + (1.0 - means) * discount * values[:, :-1]
        if seen <= num_pulls:
            arms = np.arange(seen + 1)
            index[arms, seen - arms] = _crossing(rates, going_on - rates[:, None])
        values = np.maximum(rates[:, None], going_on)
    index.flags.writeable = False  # It is handed to every caller.
    return index


def _crossing(rates: Array, advantages: Array) -> Array:
    """The rates ``[state]`` where the advantage of going on, ``[rate, state]`` and falling with the rate, is zero."""
    last = np.clip((advantages >= 0.0).sum(0) - 1, 0, len(rates) - 2)
    states = np.arange(advantages.shape[1])
    before, after = advantages[last, states], advantages[last + 1, states]
    return np.asarray(rates[last] + (rates[last + 1] - rates[last]) * before / (before - after))
