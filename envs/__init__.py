"""Task families. Importing this package registers every distribution below by its id."""

from __future__ import annotations

from metarl.envs import bandits, classic_control, locomotion, metaworld, navigation, tabular_mdp
from metarl.envs.metaworld import make_vec
from metarl.tasks.registry import register

for _family in (classic_control, navigation, bandits, tabular_mdp, locomotion, metaworld):
    for _distribution in _family.DISTRIBUTIONS:
        register(_distribution, built_in=True)

__all__ = ["make_vec"]
