"""Meta-World ML45: 45 tasks to train on, five to test on."""

from __future__ import annotations

from metarl.benchmarks.metaworld.source import BEST
from metarl.benchmarks.metaworld.tables import MAXIMUM, several_tasks_table
from metarl.benchmarks.papers import rows_of

_META_WORLD = rows_of("Meta-World v2", "Table 1", "ML45")

TABLE = several_tasks_table(
    "ml45",
    {"test": ("bin-picking-v3", "box-close-v3", "hand-insert-v3", "door-lock-v3", "door-unlock-v3")},
    {
        ("MAML-TRPO", BEST): (_META_WORLD["meta-train", "MAML"], MAXIMUM),
        ("MAML-TRPO", "test sampled"): (_META_WORLD["meta-test", "MAML"], MAXIMUM),
        ("RL2", BEST): (_META_WORLD["meta-train", "RL2"], MAXIMUM),
        ("RL2", "test sampled"): (_META_WORLD["meta-test", "RL2"], MAXIMUM),
    },
    about="",
    on_request=True,
)
