"""The strategies that RL² (Duan et al. 2016, arXiv 1611.02779, section 3.1) compares itself with on bandits.

Where the paper's sentences leave room, its authors' evaluation script decides: the public repository
``florensacc/rllab-curriculum``, ``sandbox/rocky/neural_learner``. All strategies start from one success and one failure
of every arm, the Beta(1, 1) prior, which stands in the counts that they are shown. Of arms that tie the first is
pulled. Settings are chosen from the authors' grids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metarl.benchmarks.bandits.gittins import calibrated_index, whittle_index

Array = NDArray[Any]


class Strategy(Protocol):
    """Chooses an arm for each of many instances."""

    def __call__(self, successes: Array, failures: Array, pull: int, rng: np.random.Generator) -> Array:
        """The arms to pull, ``[instance]``.

        Args:
            successes: of every arm so far, one more than were seen, ``[instance, arm]`` float64.
            failures: the same of failures.
            pull: how many pulls came before this one.
            rng: for strategies that draw.
        """


@dataclass(frozen=True)
class Random:
    """Any arm, all alike."""

    def __call__(self, successes: Array, failures: Array, pull: int, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        num, num_arms = successes.shape
        return np.asarray(rng.integers(num_arms, size=num))


@dataclass(frozen=True)
class EpsilonGreedy:
    """The arm with the best mean; with probability ``epsilon`` any arm instead. Greedy is ``epsilon`` = 0."""

    epsilon: float = 0.0

    def __call__(self, successes: Array, failures: Array, pull: int, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        best = (successes / (successes + failures)).argmax(1)
        num, num_arms = successes.shape
        return np.where(rng.random(num) < self.epsilon, rng.integers(num_arms, size=num), best)


@dataclass(frozen=True)
class UCB1:
    """The arm with the highest ``mean + c * sqrt(2 * log(t) / T)``, ``t`` pulls into the trial.

    Auer et al., 2002, with the constant ``c`` in front, as RL² has it. ``T``, the pulls of the arm, counts the two of
    the prior. At ``t`` = 0, where the logarithm is not defined, all arms are alike.
    """

    c: float = 1.0

    def __call__(self, successes: Array, failures: Array, pull: int, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        pulls = successes + failures
        width = self.c * np.sqrt(2.0 * np.log(max(pull, 1)))
        return np.asarray((successes / pulls + width / np.sqrt(pulls)).argmax(1))


@dataclass(frozen=True)
class ThompsonSampling:
    """The arm that is best in one sample of all means from their posterior, Beta(successes, failures)."""

    def __call__(self, successes: Array, failures: Array, pull: int, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        return np.asarray(rng.beta(successes, failures).argmax(1))


@dataclass(frozen=True)
class OptimisticThompson:
    """The arm that is best in the likeliest of several samples of all means from their posterior.

    RL² "samples N times from the posterior, and takes the one with the highest probability", which is another thing
    than the optimistic sampling of May et al. (2012) that it refers to: a sample is the means of all arms, and its
    probability their joint density. With more samples it comes close to the posterior's mode.
    """

    num_samples: int = 1

    def __call__(self, successes: Array, failures: Array, pull: int, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        num = len(successes)
        best, highest = np.zeros(num, np.int64), np.full(num, -np.inf)
        for _ in range(self.num_samples):
            # A mean that is rounded to 0 or 1 has a density all the same.
            means = rng.beta(successes, failures).clip(1e-300, 1.0 - 2.0**-53)
            # Without the constant of the Beta density, which is the same for all samples.
            log_density = ((successes - 1.0) * np.log(means) + (failures - 1.0) * np.log1p(-means)).sum(1)
            higher = log_density > highest
            best[higher] = means[higher].argmax(1)
            highest[higher] = log_density[higher]
        return best


@dataclass(frozen=True)
class WhittleIndex:
    """The arm with the highest index by Whittle's closed form; RL²'s authors ran it with discount 1."""

    discount: float = 1.0

    def __call__(self, successes: Array, failures: Array, pull: int, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        return np.asarray(whittle_index(successes, failures, self.discount).argmax(1))


@dataclass(frozen=True)
class CalibratedIndex:
    """The arm with the highest index by calibration."""

    discount: float
    num_pulls: int

    def __call__(self, successes: Array, failures: Array, pull: int, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        index = calibrated_index(self.num_pulls, self.discount)
        return np.asarray(index[successes.astype(np.int64) - 1, failures.astype(np.int64) - 1].argmax(1))


def candidates(num_pulls: int) -> Mapping[str, tuple[Strategy, ...]]:
    """The strategies of Table 1 by the name of their column, each with the settings to choose from.

    Args:
        num_pulls: pulls in a trial, n.
    """
    tenths = [round(0.1 * step, 1) for step in range(11)]
    discounts = [1.0 - 1.0 / (scale * num_pulls) for scale in (0.25, 0.5, 1.0, 2.0)]
    return {
        "Random": (Random(),),
        "Gittins": (
            WhittleIndex(),
            *(WhittleIndex(discount) for discount in discounts),
            *(CalibratedIndex(discount, num_pulls) for discount in discounts),
        ),
        "TS": (ThompsonSampling(),),
        "OTS": tuple(OptimisticThompson(num) for num in range(1, 21)),
        "UCB1": tuple(UCB1(c) for c in tenths),
        "eps-Greedy": tuple(EpsilonGreedy(epsilon) for epsilon in tenths),
        "Greedy": (EpsilonGreedy(),),
    }
