"""Values of finite MDPs over an episode, by dynamic programming from its end, for many instances at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def action_values(rewards: Array, transitions: Array, horizon: int, bonuses: Array | float = 0.0) -> Array:
    """``Q_t(s, a) = r(s, a) + (T - 1 - t) b(s, a) + sum_k p(k | s, a) max_b Q_{t+1}(k, b)``, 0 behind the end.

    Args:
        rewards: ``[instance, state, action]``.
        transitions: ``[instance, state, action, next state]``; rows sum to 1.
        horizon: steps of an episode, T.
        bonuses: what each step that follows is worth in addition, ``[instance, state, action]``.

    Returns:
        ``[time, instance, state, action]``.
    """
    num, num_states, num_actions = rewards.shape
    rows = transitions.reshape(num, num_states * num_actions, num_states)
    found = np.empty((horizon, *rewards.shape))
    values = np.zeros((num, num_states))
    for following in range(horizon):
        expected = np.matmul(rows, values[:, :, None]).reshape(rewards.shape)
        found[horizon - 1 - following] = rewards + following * bonuses + expected
        values = found[horizon - 1 - following].max(-1)
    return found


def optimistic_values(rewards: Array, transitions: Array, slack: Array, horizon: int) -> Array:
    """The same by extended value iteration (Jaksch et al., 2010, Figure 2), with carried-over optimism.

    Of all distributions within an L1 distance of ``slack`` the best is taken: half of it goes to the best next state,
    and as much is taken from the worst ones. In the code that RL² ran (``iosband/TabulaRL``) the distribution is
    changed in place, so that each earlier step begins with that of the step behind it, and not with ``transitions``,
    unless the best state got all; at the last step, where all states are worth nothing, the last one counts as best.
    The paper's numbers are those of this program.

    Args:
        rewards: upper bounds, ``[instance, state, action]``.
        transitions: ``[instance, state, action, next state]``; rows sum to 1.
        slack: ``[instance, state, action]``.
        horizon: steps of an episode.

    Returns:
        ``[time, instance, state, action]``.
    """
    found = np.empty((horizon, *rewards.shape))
    values = np.zeros(transitions.shape[::3])
    for following in range(horizon):
        order = np.argsort(values, axis=1, kind="stable")
        places = np.broadcast_to(order[:, None, None], transitions.shape)
        likeliest = np.take_along_axis(transitions, places, -1)
        best = likeliest[..., -1] + slack / 2
        below = likeliest[..., :-1].cumsum(-1)
        # What is too much is taken from the worst states until nothing is left of it.
        excess = np.maximum(below[..., -1] + np.minimum(best, 1.0) - 1.0, 0.0)
        kept = np.diff(np.maximum(below - excess[..., None], 0.0), axis=-1, prepend=0.0)
        shifted = np.concatenate([kept, np.minimum(best, 1.0)[..., None]], -1)
        ordered = np.take_along_axis(values, order, 1)
        found[horizon - 1 - following] = rewards + (shifted * ordered[:, None, None]).sum(-1)
        values = found[horizon - 1 - following].max(-1)
        changed = np.empty_like(transitions)
        np.put_along_axis(changed, places, shifted, -1)
        transitions = np.where(best[..., None] > 1.0, transitions, changed)
    return found


def best_actions(values: Array, rng: np.random.Generator) -> Array:
    """The action of the highest value, ``[...]`` of ``[..., action]``; ties are broken at random."""
    best = values == values.max(-1, keepdims=True)
    return np.asarray((best * (1.0 + rng.random(values.shape, np.float32))).argmax(-1))
