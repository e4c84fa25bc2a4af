"""With other versions than the verified ones each task is tested, and only what differs loses its speed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl.envs.metaworld import custom
from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv
from metarl.envs.metaworld.verification import VERIFIED_VERSIONS, fast_code_differences
from metarl.types import Task

REACH: Task = {"env_name": "reach-v3", "rand_vec": np.array([0.0, 0.6, 0.02, 0.05, 0.85, 0.2])}
PUSH: Task = {"env_name": "push-v3", "rand_vec": np.array([0.05, 0.65, 0.02, 0.0, 0.85, 0.02])}
ACTIONS = np.random.default_rng(1).uniform(-1, 1, (10, 4, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and versions that are not the verified ones."""
    monkeypatch.setenv("METARL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(VERIFIED_VERSIONS, "numpy", ("1.0",))
    return tmp_path / "cache"


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Change a module of metarl in every process that starts from now on: ``plant(module, code)``."""

    def plant(name: str, code: str) -> None:
        folder = tmp_path / "planted"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            textwrap.dedent(
                f"""
                import importlib.util, sys

                class Finder:
                    busy = False

                    def find_spec(self, name, path, target=None):
                        if name != {name!r} or self.busy:
                            return None
                        self.busy = True
                        spec = importlib.util.find_spec(name)
                        self.busy = False
                        run = spec.loader.exec_module

                        def exec_module(module):
                            run(module)
                            exec({code!r}, vars(module))

                        spec.loader.exec_module = exec_module
                        return spec

                sys.meta_path.insert(0, Finder())
                """
            )
        )
        monkeypatch.syspath_prepend(str(folder))

    return plant


def _verdicts(cache: Path) -> dict[str, str]:
    files = cache.glob("metaworld/self-test-*/*.json")
    return {path.stem: json.loads(path.read_text())["difference"] for path in files}


def _play(env: MetaWorldVectorEnv, tasks: list[Task]) -> list[Any]:
    """All numbers of a few steps."""
    seen = [env.reset(options={"tasks": tasks})[0]]
    for actions in ACTIONS:
        *arrays, info = env.step(actions[: env.num_envs])
        seen += [*arrays, *(info[key] for key in sorted(info))]
    return seen


def _equal(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_task_that_passes_the_test_is_fast_and_not_tested_again(
    cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fast, new = MetaWorldVectorEnv(1, fast=True), MetaWorldVectorEnv(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _equal(_play(new, [REACH]), _play(fast, [REACH]))
    assert "testing the fast code against upstream with metaworld 3.1.1" in capfd.readouterr().err
    assert _verdicts(cache) == {"reach-v3-v2": ""}
    assert fast_code_differences(["reach-v3"], "v2", 1) == {"reach-v3": ""}
    assert capfd.readouterr().err == ""
    fast.close(), new.close()


@pytest.mark.parametrize("damage", ["{", '{"format": 1, "key": "of another machine", "difference": ""}'])
def test_a_damaged_or_foreign_result_is_none(cache: Path, capfd: pytest.CaptureFixture[str], damage: str) -> None:
    assert fast_code_differences(["reach-v3"], "v1", 1) == {"reach-v3": ""}
    (path,) = cache.glob("metaworld/self-test-*/reach-v3-v1.json")
    whole = path.read_text()
    path.write_text(damage)
    capfd.readouterr()
    assert fast_code_differences(["reach-v3"], "v1", 1) == {"reach-v3": ""}
    assert "testing" in capfd.readouterr().err and path.read_text() == whole


_WRONG_PUSH = """
def wrong(env, right=push):
    evaluate = right(env)
    def nearly(frame, grip):
        *info, reward = evaluate(frame, grip)
        return *info, np.nextafter(reward, 100.0)
    return nearly
push = wrong
"""


def test_a_task_that_differs_in_one_bit_alone_falls_back_and_is_told(
    cache: Path, plant: Callable[[str, str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """A set of two names, one of which is wrong; instances change between them."""
    plant("metarl.envs.metaworld.worker.rewards.objects", _WRONG_PUSH)
    distribution = custom(["reach-v3", "push-v3"], ["door-close-v3"])
    env: Any = distribution.make_vector_env(4)
    plain = MetaWorldVectorEnv(4, fast=False)
    message = r"runs push-v3 on upstream's own code.*metaworld 3\.1\.1, mujoco 3\.3\.0, numpy .*: unscaled_reward is "
    message += r"\d.*, upstream's \d.*, at step 1 of the expert with goal 0 after a full reset"
    with pytest.warns(UserWarning, match=message) as told:
        first = _play(env, [REACH, PUSH, PUSH, REACH])
    assert len(told) == 1 and "reach" not in str(told[0].message)
    assert _equal(first, _play(plain, [REACH, PUSH, PUSH, REACH]))
    # Instances go over to the other code and come back; upstream's resets leave traces, so its side starts anew.
    for tasks in ([PUSH, REACH, PUSH, REACH], [REACH] * 4, [PUSH] * 4):
        plain.close()
        plain = MetaWorldVectorEnv(4, fast=False)
        assert _equal(_play(env, tasks), _play(plain, tasks))
    env.close(), plain.close()
    assert _verdicts(cache)["reach-v3-v2"] == "" and "unscaled_reward" in _verdicts(cache)["push-v3-v2"]
    capfd.readouterr()
    with pytest.warns(UserWarning, match="runs push-v3 on"):
        assert "unscaled_reward" in fast_code_differences(["push-v3"], "v2", 1)["push-v3"]
    assert "testing" not in capfd.readouterr().err


def test_helpers_that_cannot_be_imported_are_a_difference(cache: Path, plant: Callable[[str, str], None]) -> None:
    plant("metarl.envs.metaworld.worker.patches", "raise ImportError('SciPy has moved')")
    env = MetaWorldVectorEnv(2, num_workers=1)
    with pytest.warns(UserWarning, match=r"runs reach-v3, push-v3 on .*: it raised ImportError: SciPy has moved"):
        env.reset(options={"tasks": [REACH, PUSH]})
    assert env.step(ACTIONS[0, :2])[1].min() > 0
    assert set(_verdicts(cache).values()) == {"it raised ImportError: SciPy has moved"}
    env.close()


def test_a_test_that_dies_is_told_and_not_kept(cache: Path, plant: Callable[[str, str], None]) -> None:
    plant("metarl.envs.metaworld.worker.self_test", "import os; os._exit(7)")
    env = MetaWorldVectorEnv(1)
    with pytest.warns(UserWarning, match="its test ended with status 7"):
        env.reset(options={"tasks": [REACH]})
    assert env.step(ACTIONS[0, :1])[1][0] > 0
    assert _verdicts(cache) == {}
    env.close()


_EVERY_NUMBER = """
import numpy as np
from metarl.envs.metaworld.worker.layout import COLUMN_NAMES, INVALID
from metarl.envs.metaworld.worker.self_test import first_difference, record

recording = record("reach-v3", "v2", num_goals=1, num_steps=3)
assert first_difference(recording, "v2") == ""
for column, name in enumerate(COLUMN_NAMES):
    kept = recording.rows[2, 1, column]
    recording.rows[2, 1, column] = np.nextafter(kept, 9.0)
    found = first_difference(recording, "v2")
    assert found.startswith(f"{name} is ") and "at step 2 of the random actor with goal 0" in found, found
    recording.rows[2, 1, column] = kept
zeros = recording.rows[3, 0] == 0
recording.rows[3, 0, np.flatnonzero(zeros)[0]] *= -1
assert "is 0.0, upstream's -0.0, at step 3 of the expert" in first_difference(recording, "v2")
recording.truncated[1, 2] = True
assert "truncated is False, upstream's True, at step 1 of the expert with noise" in first_difference(recording, "v2")
"""


def test_the_self_test_finds_any_single_bit_in_any_number() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", _EVERY_NUMBER], check=True)
