"""MuJoCo's OpenGL without a display: which library renders, chosen by trial, and what to install if none does."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import textwrap
from typing import Any

import gymnasium as gym

from metarl.errors import ConfigError, missing_extra, unknown_name

BACKENDS = ("egl", "osmesa", "glfw")
"""Values of ``MUJOCO_GL`` in the order of preference: EGL uses a GPU if there is one, GLFW needs a display."""

_INSTALL = (
    "On Debian and Ubuntu install one of them: 'apt-get install libegl1 libgl1' (MUJOCO_GL=egl), or "
    "'apt-get install libosmesa6' (MUJOCO_GL=osmesa)."
)

_TRIAL = """
import importlib, os, sys
import mujoco
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(64, 64)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
os._exit(0)
"""
"""A library may load and still lack its driver, and a failed attempt cannot be undone: a process of its own tries."""

_TRIAL_SECONDS = 60.0


def choose_backend() -> str:
    """Have MuJoCo render with a library that works here; call it before the first frame.

    ``MUJOCO_GL`` is kept if it is set, and set to the first of ``BACKENDS`` that works if it is not.

    Returns:
        The value of ``MUJOCO_GL``.

    Raises:
        ConfigError: if MuJoCo is not installed, if ``MUJOCO_GL`` has a value that cannot render, or if nothing can; it
            names the Debian packages.
    """
    _require_mujoco()
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen and chosen not in BACKENDS:
        raise unknown_name("value of MUJOCO_GL", chosen, BACKENDS)
    failures = {}
    for backend in (chosen,) if chosen else BACKENDS:
        failures[backend] = _failure(backend)
        if not failures[backend]:
            os.environ["MUJOCO_GL"] = backend
            return backend
    tried = "; ".join(f"MUJOCO_GL={backend} failed ({failure})" for backend, failure in failures.items())
    raise ConfigError(f"MuJoCo cannot render without a working OpenGL library: {tried}. {_INSTALL}")


def import_mujoco() -> None:
    """Import MuJoCo, which loads the library that ``MUJOCO_GL`` names, and explain a failure.

    Call it before the import of what imports MuJoCo itself and may hide the reason.

    Raises:
        ConfigError: if MuJoCo is not installed, or if ``MUJOCO_GL`` is set and the import fails.
    """
    _require_mujoco()
    try:
        importlib.import_module("mujoco")
    except (ImportError, AttributeError, RuntimeError) as error:
        value = os.environ.get("MUJOCO_GL")
        if not value:
            raise
        raise ConfigError(
            f"MuJoCo cannot be imported with MUJOCO_GL={value} ({type(error).__name__}: {error}). {_INSTALL} "
            "Without rendering, unset MUJOCO_GL."
        ) from error


def _require_mujoco() -> None:
    if importlib.util.find_spec("mujoco") is None:
        raise missing_extra("mujoco", "mujoco", "simulating with MuJoCo")


class OwnContext(gym.Wrapper[Any, Any, Any, Any]):
    """Renders one of Gymnasium's MuJoCo environments in its own OpenGL context, and frees it there.

    Gymnasium draws, and frees textures, in whichever context was used last: of two environments each would spoil the
    other's frames.
    """

    def render(self) -> Any:
        """A frame."""
        self._enter()
        return self.env.render()

    def close(self) -> None:
        """Free the environment and its graphics."""
        viewer = self._enter()
        if viewer is not None:
            viewer.con.free()
        self.env.close()

    def _enter(self) -> Any:
        """Make the viewer's context the current one; there is no viewer before the first frame and after the last."""
        inner: Any = self.env.unwrapped
        viewer = inner.mujoco_renderer.viewer
        if viewer is not None:
            viewer.make_context_current()
        return viewer


@functools.cache
def _failure(backend: str) -> str:
    """Why ``backend`` cannot render in this process's environment; empty if it can."""
    command = [sys.executable, "-c", _TRIAL, backend]
    try:
        result = subprocess.run(
            command,
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_TRIAL_SECONDS:g} s"
    if result.returncode == 0:
        return ""
    lines = [line for line in result.stderr.splitlines() if line and not line[0].isspace()]
    return textwrap.shorten(lines[-1], 100) if lines else f"exit status {result.returncode}"
