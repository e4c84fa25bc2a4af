"""Upstream's v2 rewards on Python floats, value-identical to its ``evaluate_state``: done, and frozen.

Each task has a function (``table`` says which) that takes upstream's environment right after a reset and returns what
evaluates a step of this episode, with all that stays constant computed once. ``terms`` holds what the functions share
and says why they compute on floats; ``objects``, ``mechanisms`` and ``tools`` hold the tasks.

The proof is ``tests/test_metaworld_vector_env.py``, which compares all 50 tasks with upstream bit for bit. The v1
rewards go through upstream's own code, and so would those of a task that the table leaves out.
"""
