"""Whether this machine can render MuJoCo; where it cannot, tests look at the error instead."""

from __future__ import annotations

import functools

from metarl.envs.mujoco_graphics import choose_backend


@functools.cache
def missing_library() -> str:
    """Why MuJoCo cannot render here; empty if it can."""
    try:
        choose_backend()
    except ValueError as error:
        return str(error)
    return ""
