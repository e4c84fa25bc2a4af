"""Task families. Importing this package registers every distribution below by its id."""

from __future__ import annotations

from metarl.envs import bandits, classic_control, locomotion, navigation, tabular_mdp
from metarl.tasks import register

for _family in (classic_control, navigation, bandits, tabular_mdp, locomotion):
    for _distribution in _family.DISTRIBUTIONS:
        register(_distribution)
