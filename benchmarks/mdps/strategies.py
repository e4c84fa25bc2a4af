"""The strategies that RL² (Duan et al. 2016, arXiv 1611.02779, section 3.2) compares itself with on random MDPs.

Its authors ran those of Ian Osband's ``iosband/TabulaRL`` with their defaults; where papers leave room, that code
decides. The public repository ``florensacc/rllab-curriculum`` has the script and its grids. All of them plan before
each episode for its length, from what was seen of rewards and next states, and take the best action, ties being broken
at random. Next states of an episode's last step do not count as seen. Means of rewards have a prior around 0, though
they are drawn around 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metarl.benchmarks.mdps.planning import action_values, best_actions, optimistic_values

Array = NDArray[Any]

_NOTHING = 1e-4
"""Weight of a prior that is there to avoid divisions by zero."""


@dataclass(frozen=True)
class History:
    """What was seen of many instances.

    Attributes:
        rewards: sums, ``[instance, state, action]``.
        visits: how often an action was taken, ``[instance, state, action]``.
        moves: next states that were seen, ``[instance, state, action, next state]``.
        episode: number of the episode that begins, from 1.
        horizon: steps of an episode.
    """

    rewards: Array
    visits: Array
    moves: Array
    episode: int
    horizon: int

    def reward_means(self, weight: float) -> Array:
        """Posterior means of rewards with a prior around 0 that counts as so many visits."""
        return np.asarray(self.rewards / (weight + self.visits))

    def transitions(self, weight: float) -> Array:
        """Posterior means of transitions with a prior that counts as so many visits of each next state."""
        counts = weight + self.moves
        return np.asarray(counts / counts.sum(-1, keepdims=True))


class Strategy(Protocol):
    """Plans an episode on each of many instances."""

    def __call__(self, history: History, rng: np.random.Generator) -> Array:
        """The actions to take, ``[time, instance, state]``."""


@dataclass(frozen=True)
class EpsilonGreedy:
    """The best policy if everything were as it was seen on average; with probability ``epsilon`` any action instead.

    Actions that were not tried pay 0 and lead anywhere. Greedy is ``epsilon`` = 0, random ``epsilon`` = 1.
    """

    epsilon: float = 0.0

    def __call__(self, history: History, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        shape = history.horizon, *history.visits.shape[:2]
        anything = rng.integers(history.visits.shape[2], size=shape)
        if self.epsilon == 1.0:
            return anything
        values = action_values(history.reward_means(_NOTHING), history.transitions(_NOTHING), history.horizon)
        # A time comes once in an episode, so that its actions can be drawn before.
        return np.where(rng.random(shape) < self.epsilon, anything, best_actions(values, rng))


@dataclass(frozen=True)
class PosteriorSampling:
    """The best policy for an MDP that is drawn from the posterior (Strens, 2000; Osband et al., 2013).

    With several samples, the highest of their values for each action (optimistic PSRL). Priors: N(0, 1) for means of
    rewards, whose noise is known to be N(0, 1), and a flat Dirichlet distribution for transitions.
    """

    num_samples: int = 1

    def __call__(self, history: History, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        means, deviations = history.reward_means(1.0), 1.0 / np.sqrt(1.0 + history.visits)
        highest: Array | None = None
        for _ in range(self.num_samples):
            rewards = means + deviations * rng.standard_normal(means.shape)
            weights = rng.standard_gamma(1.0 + history.moves)  # Scaled to sum to 1, they are a Dirichlet sample.
            values = action_values(rewards, weights / weights.sum(-1, keepdims=True), history.horizon)
            highest = values if highest is None else np.maximum(highest, values)
        assert highest is not None
        return best_actions(highest, rng)


@dataclass(frozen=True)
class ExplorationBonus:
    """Bayesian exploration bonus (Kolter & Ng, 2009): the posterior's mean, and what was seen seldom is worth more.

    The bonus is ``1 / (n + 2)`` for the reward of an action that was taken ``n`` times, and for each step that follows
    it ``2 T^3 scale / (1 + S + m)``, where ``m`` next states of ``S`` were seen and an episode has ``T`` steps.
    """

    scale: float

    def __call__(self, history: History, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        rewards = history.reward_means(1.0) + 1.0 / (2.0 + history.visits)
        seen = history.moves.shape[-1] + history.moves.sum(-1)
        bonuses = 2.0 * history.horizon**3 * self.scale / (1.0 + seen)
        return best_actions(action_values(rewards, history.transitions(1.0), history.horizon, bonuses), rng)


@dataclass(frozen=True)
class UCRL2:
    """The best policy for the best MDP that is likely enough (Jaksch et al., 2010).

    Rewards and transitions may be off by ``scale sqrt(4 L / n)`` and ``scale sqrt(4 S L / n)`` after ``n`` visits, with
    ``L = log(2 S A (episode + 1) / 0.05)``; the paper's scale is 1.
    """

    scale: float

    def __call__(self, history: History, rng: np.random.Generator) -> Array:
        """See :class:`Strategy`."""
        num_states, num_actions = history.visits.shape[1:]
        log = np.log(2 * num_states * num_actions * (history.episode + 1) / 0.05)
        rewards = self.scale * np.sqrt(4 * log / np.maximum(history.visits, 1.0))
        slack = self.scale * np.sqrt(4 * num_states * log / np.maximum(history.moves.sum(-1), 1.0))
        values = optimistic_values(
            history.reward_means(_NOTHING) + rewards, history.transitions(_NOTHING / 10), slack, history.horizon
        )
        return best_actions(values, rng)


def candidates() -> Mapping[str, tuple[Strategy, ...]]:
    """The strategies of Table 2 by the name of their column, each with the settings to choose from."""
    scales = [float(scale) for scale in np.exp(np.linspace(np.log(1e-4), 0.0, 21)).round(6)]
    return {
        "Random": (EpsilonGreedy(1.0),),
        "PSRL": (PosteriorSampling(),),
        "OPSRL": tuple(PosteriorSampling(num) for num in range(1, 21)),
        "UCRL2": tuple(UCRL2(scale) for scale in scales),
        "BEB": tuple(ExplorationBonus(scale) for scale in scales),
        "eps-Greedy": tuple(EpsilonGreedy(round(0.1 * step, 1)) for step in range(1, 11)),
        "Greedy": (EpsilonGreedy(),),
    }
