"""Meta-World ML25: 25 tasks to train on, five to test on. No paper reports it."""

from __future__ import annotations

from metarl.benchmarks.metaworld.tables import DOOR_CLOSE, several_tasks_table

TABLE = several_tasks_table(
    "ml25",
    {"test": ("basketball-v3", "door-close-v3", "shelf-place-v3", "sweep-v3", "button-press-v3")},
    {},
    about=DOOR_CLOSE,
    on_request=True,
)
