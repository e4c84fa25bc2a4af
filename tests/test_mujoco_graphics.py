"""MuJoCo renders with what works, or an error names what to install."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from metarl.envs import mujoco_graphics as opengl
from metarl.envs.mujoco_graphics import BACKENDS, choose_backend
from metarl.errors import ConfigError


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The backends that work, for a test to fill."""
    found: set[str] = set()
    # An entry of its own, so that what the code sets is taken back after the test.
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(opengl, "_failure", lambda backend: "" if backend in found else f"no lib{backend}.so")
    return found


@pytest.mark.parametrize(
    ("there", "chosen"), [({"egl", "osmesa", "glfw"}, "egl"), ({"osmesa", "glfw"}, "osmesa"), ({"glfw"}, "glfw")]
)
def test_the_first_backend_that_works_is_chosen_and_set(working: set[str], there: set[str], chosen: str) -> None:
    working |= there
    assert choose_backend() == chosen == os.environ["MUJOCO_GL"]


def test_the_users_choice_is_kept(working: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    working |= {"egl", "osmesa"}
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert choose_backend() == os.environ["MUJOCO_GL"] == "osmesa"


def test_without_a_library_the_error_names_what_was_tried_and_the_debian_packages(working: set[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_backend()
    assert all(f"MUJOCO_GL={backend} failed (no lib{backend}.so)" in str(caught.value) for backend in BACKENDS)
    assert "apt-get install libegl1 libgl1" in str(caught.value)
    assert "apt-get install libosmesa6" in str(caught.value)


def test_a_choice_that_fails_is_not_silently_replaced(working: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    working |= {"egl"}
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(ConfigError, match=r"MUJOCO_GL=osmesa failed .*apt-get install libosmesa6"):
        choose_backend()


def test_an_unknown_choice_gets_the_nearest_one(working: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "mesa")
    with pytest.raises(ConfigError, match=r"unknown value of MUJOCO_GL 'mesa'\. Did you mean 'osmesa'"):
        choose_backend()


def test_a_backend_is_tried_in_a_process_of_its_own_and_the_reason_is_kept() -> None:
    before = dict(os.environ)
    assert opengl._failure("nonsense") == "RuntimeError: invalid value for environment variable MUJOCO_GL: nonsense"
    assert before == dict(os.environ)


_RENDER = """
import numpy as np
from metarl.envs.metaworld import upstream_env
task = {"env_name": "reach-v3", "rand_vec": np.array([0.0, 0.6, 0.02, 0.05, 0.85, 0.2])}
env = upstream_env(task, render_mode="rgb_array")
env.reset()
frame = env.render()
env.close()
print(frame.shape, frame.std() > 20)
"""


def _run(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment | settings, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_upstreams_environment_renders_headless_or_says_what_is_missing(backend: str) -> None:
    result = _run(_RENDER, MUJOCO_GL=backend)
    if not opengl._failure(backend):
        assert result.stdout.split("\n")[0] == "(480, 480, 3) True", result.stderr
    else:
        assert result.returncode == 1
        assert "ConfigError: MuJoCo cannot render" in result.stderr and "apt-get install" in result.stderr


def test_an_import_that_fails_for_its_library_is_explained_and_stops_only_who_needs_mujoco() -> None:
    """PyOpenGL told to use another library makes MuJoCo's import fail, as a missing library does."""
    code = "\n".join(
        (
            "from metarl.tasks import make",
            "import metarl.envs",
            "print(make('cartpole-goal').spec)",
            "for load in (lambda: make('locomotion/ant-goal').spec, metarl.envs.metaworld.upstream.upstream):",
            "    try:",
            "        load()",
            "    except Exception as error:",
            "        print(type(error).__name__, error)",
        )
    )
    printed = _run(code, MUJOCO_GL="egl", PYOPENGL_PLATFORM="osmesa").stdout.splitlines()
    assert printed[0].startswith("Spec(")
    assert len(printed) == 3
    for line in printed[1:]:
        assert line.startswith("ConfigError MuJoCo cannot be imported with MUJOCO_GL=egl (")
        assert "apt-get install libegl1 libgl1" in line and "unset MUJOCO_GL" in line


def test_the_pool_needs_no_graphics_library() -> None:
    """Nor does it load one: its workers simulate where this process could not even import MuJoCo."""
    code = "\n".join(
        (
            "import numpy as np",
            "from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv",
            "pool = MetaWorldVectorEnv(1, num_workers=1)",
            "task = {'env_name': 'reach-v3', 'rand_vec': np.array([0.0, 0.6, 0.02, 0.05, 0.85, 0.2])}",
            "print(pool.reset(options={'tasks': [task]})[0].shape)",
            "pool.close()",
        )
    )
    result = _run(code, MUJOCO_GL="egl", PYOPENGL_PLATFORM="osmesa")
    assert result.stdout == "(1, 39)\n", result.stderr
