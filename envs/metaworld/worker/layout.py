"""What one instance of the Meta-World pool reports in a step, as a row of float64 numbers."""

from __future__ import annotations

OBS_DIM = 39
"""Upstream's observation: hand, gripper and objects, now and one step before, and the goal (zeros: hidden)."""

INFO_KEYS = (
    "success",
    "near_object",
    "grasp_success",
    "grasp_reward",
    "in_place_reward",
    "obj_to_target",
    "unscaled_reward",
)
"""Upstream's ``info``, in this order."""

OBS = slice(0, OBS_DIM)
INFO = slice(OBS_DIM, OBS_DIM + len(INFO_KEYS))
REWARD = INFO.stop
OUTCOME = slice(INFO.start, REWARD + 1)
"""Info and reward; zeros where no step was taken."""

INVALID = OUTCOME.stop
"""1.0 where the simulation diverged."""

NUM_COLUMNS = INVALID + 1

COLUMN_NAMES = (*(f"observation[{index}]" for index in range(OBS_DIM)), *INFO_KEYS, "reward", "invalid")
"""What the columns are, for messages."""

FLOAT32_COLUMNS = 2 * NUM_COLUMNS
"""``metarl.vector.buffers`` shares rows of float32; seen as float64, two of them are one number."""
