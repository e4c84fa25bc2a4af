"""How tests let a Meta-World simulation diverge: by an action that is not a number, which callers may not send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from metarl.envs.metaworld import vector_env


@contextmanager
def unchecked_actions() -> Iterator[None]:
    """Hand actions to the simulations as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_env, "as_actions", lambda actions, *_: actions)
        yield
