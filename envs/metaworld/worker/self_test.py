"""Does the fast code give upstream's numbers here, bit for bit? A few seconds for each task name tell.

For each name and two goals one instance follows upstream's scripted expert, one acts at random, and one does as the
expert with noise, which touches what neither of them does. Upstream's own ``env.step`` records what is right; then its
helpers are replaced in this process, and the fast code plays the same actions twice: after a full reset, and after one
from its snapshot.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

from metarl.envs.metaworld.worker.layout import COLUMN_NAMES, FLOAT32_COLUMNS, OBS
from metarl.envs.metaworld.worker.plain_group import PlainSimulations
from metarl.types import Task
from metarl.vector.buffers import Buffers, Layout
from metarl.vector.workers import Group

Array = NDArray[Any]

NUM_GOALS = 2
NUM_STEPS = 200
"""Most experts need fewer to solve their task."""

_ACTORS = ("expert", "random actor", "expert with noise")
_RESETS = ("a full reset", "a reset from the snapshot")


@dataclass(frozen=True)
class Recording:
    """What upstream did.

    Attributes:
        tasks: one for each instance: for each goal the actors in the order of ``_ACTORS``.
        actions: ``[step, instance, 4]`` float32.
        rows: ``[1 + step, instance, column]``, the first after the reset; see ``layout``.
        truncated: ``[1 + step, instance]`` bool.
    """

    tasks: list[Task]
    actions: Array
    rows: Array
    truncated: Array


def report(reward_version: str, names: Sequence[str]) -> None:
    """Print ``[name, difference]`` as JSON, a line each; an empty difference means that every number was equal."""
    for name, difference in find_differences(reward_version, names):
        print(json.dumps([name, difference]), flush=True)


def find_differences(reward_version: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and first difference of each task; replaces upstream's helpers in this process."""
    # All of upstream's numbers come first: there is no way back from the replaced helpers.
    recordings = {name: record(name, reward_version) for name in names}
    for name, recording in recordings.items():
        yield name, first_difference(recording, reward_version)


def record(name: str, reward_version: str, num_goals: int = NUM_GOALS, num_steps: int = NUM_STEPS) -> Recording:
    """Play one task by upstream's own code."""
    tasks = [task for seed in range(num_goals) for task in [draw_task(name, seed)] * len(_ACTORS)]
    buffers = _new_buffers(len(tasks))
    group = PlainSimulations(reward_version, 0, buffers)
    group.reset([(row, task, None) for row, task in enumerate(tasks)])
    rng = np.random.default_rng(0)
    make_expert: Any = ENV_POLICY_MAP[name]
    experts = [make_expert() for _ in tasks]
    actions, rows, truncated = [], [_rows(buffers).copy()], [buffers.truncated.copy()]
    for _ in range(num_steps):
        for row, expert in enumerate(experts):
            chosen: Array
            actor = _ACTORS[row % len(_ACTORS)]
            if actor == "random actor":
                chosen = rng.uniform(-1.5, 1.5, 4)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Experts ask for more than the robot can do.
                    # A copy: some experts change the observation that they are given.
                    chosen = expert.get_action(_rows(buffers)[row, OBS].copy())
                if actor == "expert with noise":
                    chosen = chosen + rng.normal(0.0, 0.3, 4)
            buffers.actions[row] = chosen
        actions.append(buffers.actions.copy())
        group.step()
        rows.append(_rows(buffers).copy())
        truncated.append(buffers.truncated.copy())
    return Recording(tasks, np.stack(actions), np.stack(rows), np.stack(truncated))


def draw_task(name: str, seed: int) -> Task:
    """A task with a goal drawn as upstream draws it, without its 50 resets."""
    env = ALL_V3_ENVIRONMENTS[name]()
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
    env.seed(seed)
    env.reset()
    return {"env_name": name, "rand_vec": env._last_rand_vec}


def first_difference(recording: Recording, reward_version: str) -> str:
    """Where the fast code first differs from what was recorded, in words; empty if it never does."""
    try:
        # What it imports may have moved in another version of SciPy: that is a difference like any other.
        from metarl.envs.metaworld.worker.fast_group import FastSimulations

        buffers = _new_buffers(len(recording.tasks))
        return _play(recording, FastSimulations(reward_version, 0, buffers), buffers)
    except Exception as error:
        cause = error.__cause__ or error
        return f"it raised {type(cause).__name__}: {cause}"


def _play(recording: Recording, group: Group, buffers: Buffers) -> str:
    requests = list(enumerate(recording.tasks))
    for reset in _RESETS:
        # Other goals in between: a simulation must not remember whose it was.
        group.reset([(row, task, None) for row, (_, task) in zip(range(len(requests)), requests[::-1], strict=True)])
        buffers.actions[:] = recording.actions[0]
        group.step()
        group.reset([(row, task, None) for row, task in requests])
        for step, (expected, truncated) in enumerate(zip(recording.rows, recording.truncated, strict=True)):
            if step:
                buffers.actions[:] = recording.actions[step - 1]
                group.step()
            ours = _rows(buffers)
            # Of equal bits, not of equal value: 0.0 is not -0.0, and a NaN is itself.
            differs = np.argwhere(ours.view(np.uint64) != expected.view(np.uint64)).tolist()
            differs += [[row, -1] for row in np.flatnonzero(buffers.truncated != truncated).tolist()]
            if differs:
                row, column = differs[0]
                name, got, wanted = "truncated", buffers.truncated[row].item(), truncated[row].item()
                if column >= 0:
                    name, got, wanted = COLUMN_NAMES[column], ours[row, column].item(), expected[row, column].item()
                return (
                    f"{name} is {got!r}, upstream's {wanted!r}, at step {step} of the {_ACTORS[row % len(_ACTORS)]} "
                    f"with goal {row // len(_ACTORS)} after {reset}"
                )
    return ""


def _new_buffers(num: int) -> Buffers:
    layout = Layout(num, FLOAT32_COLUMNS, 4)
    return layout.view(bytearray(layout.num_bytes))


def _rows(buffers: Buffers) -> Array:
    return buffers.observations.view(np.float64)
