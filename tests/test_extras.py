"""metarl without its extras: whatever needs none works, and whatever needs one says which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A module that is None in sys.modules cannot be imported or found, as if its package were not installed.
_WITHOUT = "import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"

EXTRAS = ("mujoco", "metaworld", "av", "PIL")


def _run(missing: tuple[str, ...], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = Path(__file__).parent
    command = [sys.executable, "-c", _WITHOUT.format(missing=missing) + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def _command_line(missing: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    return _run(missing, "from metarl.cli import main; sys.exit(main())", *words)


def test_the_families_are_found_and_those_of_arithmetic_work() -> None:
    code = """
import metarl.envs
from metarl.tasks import make, registered
from metarl.rendering import video
assert {"ml1/reach-v3", "locomotion/ant-goal", "navigation-2d"} <= registered().keys()
assert make("navigation-2d").spec.obs_dim == 2
assert make("ml10").id == "ml10"
"""
    result = _run(EXTRAS, code)
    assert result.returncode == 0, result.stderr


def test_tasks_are_listed() -> None:
    result = _command_line(EXTRAS[:3], "list")
    assert result.returncode == 0 and "ml10" in result.stdout, result.stderr


_TELL = """
import numpy as np
from pathlib import Path
from rich.console import Console
from metarl.callbacks import Wandb
from metarl.deployment.export import check_format
from metarl.benchmarks.engines import Engine, Job, run_jobs
from metarl.envs.gymnasium_tasks import gymnasium_tasks
from metarl.errors import ConfigError
from metarl.rendering.video import check_video_path
from metarl.tasks import make
for code in sys.argv[1:]:
    try:
        eval(code)
    except ConfigError as error:
        print(error)
"""

_ANT = "gymnasium_tasks('mine/ant', env='Ant-v5', sample=lambda rng: {})"


@pytest.mark.parametrize(
    ("missing", "extra", "codes"),
    [
        (
            "metaworld",
            "metaworld",
            (
                "make('ml1/reach-v3').spec",
                "make('ml1/reach-v3').make_vector_env(2)",
                "make('ml10').train.sample(1, np.random.default_rng(0))",
                "make('ml1/reach-v3').make_render_env({'env_name': 'reach-v3'})",
            ),
        ),
        ("mujoco", "metaworld", ("make('ml1/reach-v3').spec",)),
        (
            "mujoco",
            "mujoco",
            (
                "make('locomotion/ant-goal').spec",
                "make('locomotion/ant-goal').make_render_env({})",
                f"{_ANT}.spec",
                f"{_ANT}.make_render_env({{}})",
            ),
        ),
        ("av", "video", ("check_video_path(Path('video.mp4'))",)),
        ("PIL", "video", ("check_video_path(Path('video.mp4'))",)),
        ("onnxruntime", "onnx", ("check_format(Path('agent.onnx'))",)),
        ("wandb", "wandb", ("Wandb('project')",)),
        ("ray", "ray", ("run_jobs([Job('one', print, ())], Engine('ray'), (), Console(quiet=True))",)),
    ],
)
def test_what_is_missing_is_told_with_its_extra(missing: str, extra: str, codes: tuple[str, ...]) -> None:
    result = _run((missing,), _TELL, *codes)
    told = result.stdout.splitlines()
    assert len(told) == len(codes), result.stdout + result.stderr
    package = "pillow" if missing == "PIL" else missing
    for line in told:
        assert line.endswith(
            f"needs the package {package}, which is not installed: pip install 'metarl-torch[{extra}]'"
        )


@pytest.mark.parametrize(("missing", "task"), [("metaworld", "ml1/reach-v3"), ("mujoco", "locomotion/ant-goal")])
def test_training_tells_it_without_a_traceback(tmp_path: Path, missing: str, task: str) -> None:
    result = _command_line((missing,), "train", "rl2", task, "--runs", str(tmp_path))
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert f"'metarl-torch[{missing}]'" in result.stderr.replace("\n", "")


def test_an_agent_is_trained_without_any_extra_and_a_video_of_it_needs_one(tmp_path: Path) -> None:
    # Pillow is there wherever Matplotlib is.
    missing = ("mujoco", "metaworld", "av")
    sizes = ("--num-iterations", "1", "--meta-batch-size", "2", "--eval-tasks", "2", "--device", "cpu")
    trained = _command_line(missing, "train", "random", "helpers.painted:painted", *sizes, "--runs", str(tmp_path))
    assert trained.returncode == 0, trained.stderr
    (run,) = tmp_path.iterdir()
    result = _command_line(missing, "render", str(run), "--trust-tasks")
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert "'metarl-torch[video]'" in result.stderr.replace("\n", "")
