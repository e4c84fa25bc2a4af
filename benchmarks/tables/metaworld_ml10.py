"""Meta-World ML10: ten tasks to train on, five to test on."""

from __future__ import annotations

from metarl.benchmarks.metaworld.source import BEST
from metarl.benchmarks.metaworld.tables import DOOR_CLOSE, MAXIMUM, several_tasks_table
from metarl.benchmarks.papers import rows_of

_META_WORLD = rows_of("Meta-World v2", "Table 1", "ML10")
_BECK = rows_of("Beck 2022", "Table 2", "ML10")
_AUTHORS = "3 seeds by the authors' own evaluation, through a reading note"

_TRAIN_TASKS = (
    *("reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-close-v3"),
    *("button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "sweep-v3", "basketball-v3"),
)

TABLE = several_tasks_table(
    "ml10",
    {
        "test": ("drawer-open-v3", "door-close-v3", "shelf-place-v3", "sweep-into-v3", "lever-pull-v3"),
        "train": _TRAIN_TASKS,
    },
    {
        ("MAML-TRPO", "test"): (rows_of("Atamuradov 2025", "abstract")["test", "MAML-TRPO"], "its own evaluation"),
        ("MAML-TRPO", "train"): (rows_of("Atamuradov 2025", "abstract")["train", "MAML-TRPO"], "its own evaluation"),
        ("MAML-TRPO", BEST): (_META_WORLD["meta-train", "MAML"], MAXIMUM),
        ("MAML-TRPO", "test sampled"): (_META_WORLD["meta-test", "MAML"], MAXIMUM),
        ("RL2", BEST): (_META_WORLD["meta-train", "RL2"], MAXIMUM),
        ("RL2", "test sampled"): (_META_WORLD["meta-test", "RL2"], MAXIMUM),
        ("RL2", "test"): (_BECK["meta-test", "RL2 Standard"], _AUTHORS),
        ("RL2 + HN", "test"): (_BECK["meta-test", "RL2 HN Bias-HyperInit"], _AUTHORS),
        ("VariBAD + HN", "test"): (_BECK["meta-test", "VariBAD HN Bias-HyperInit"], _AUTHORS),
    },
    about=DOOR_CLOSE,
    on_request=False,
)
